//! Bit masks: eight bits to eight bytes and back, least significant bit first.

/// `SPREAD[m]` has the value 1 in byte `i` where bit `i` of `m` is set (byte 0 is the least significant).
static SPREAD: [u64; 256] = {
    let mut table = [0; 256];
    let mut mask = 0;
    while mask < 256 {
        let mut bit = 0;
        while bit < 8 {
            table[mask] |= ((mask >> bit & 1) as u64) << (8 * bit);
            bit += 1;
        }
        mask += 1;
    }
    table
};

/// Each bit of `mask` in a byte of its own.
pub(crate) fn spread(mask: u8) -> u64 {
    SPREAD[usize::from(mask)]
}

/// The lowest bit of each byte in a bit of its own: [`spread`] undone.
pub(super) fn collect(bytes: u64) -> u8 {
    // Byte `i` times the factor's `2^(56 - 7i)` puts its bit at `56 + i`; no two products meet.
    ((bytes & 0x0101_0101_0101_0101).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collect_undoes_spread() {
        for mask in 0..=255 {
            assert_eq!(collect(spread(mask)), mask);
            assert_eq!(collect(spread(mask) | 0xfefe_fefe_fefe_fefe), mask);
            assert!((0..8).all(|bit| spread(mask) >> (8 * bit) & 0xff == u64::from(mask >> bit & 1)));
        }
    }
}
