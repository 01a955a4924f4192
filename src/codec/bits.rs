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

/// The bits `values[i] >> bit & 1` as masks of eight.
pub(super) fn collect(values: &[u8], bit: u32) -> impl Iterator<Item = u8> + '_ {
    values
        .chunks(8)
        .map(move |group| group.iter().enumerate().fold(0, |mask, (i, value)| mask | (value >> bit & 1) << i))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_undoes_collect() {
        let values: Vec<u8> = (0..29u8).map(|i| i.wrapping_mul(73)).collect();
        for bit in 0..8 {
            let bits: Vec<u8> = collect(&values, bit).flat_map(|mask| spread(mask).to_le_bytes()).collect();
            for (i, value) in values.iter().enumerate() {
                assert_eq!(bits[i], value >> bit & 1);
            }
            assert!(bits[values.len()..].iter().all(|&bit| bit == 0));
        }
    }
}
