//! The trellis code on NEON: 16 values in about twelve instructions, in about fourteen from 3 bits on.
//!
//! What each half of a byte contributes to the indices is looked up (see [`NIBBLE_TABLES`]), a quarter of a line at a time; a
//! state of twelve bits lies in three or four halves. Seven bits of an index are looked up in two tables of 64: `tbl` gives
//! zero, and `tbx` leaves what there was, where an index less the table's first lies outside. From 3 bits on the eighth is
//! the sign.

use super::super::trellis::{BYTES, COARSE_CODES, FINE_CODES, NIBBLE_TABLES, pieces, with_following};
use super::super::unroll::{dispatch_code, each};
use crate::codec::term::trellis::COARSE_BITS;
use crate::cpu::layout::planes::Line;
use crate::cpu::layout::trellis::{Bundle, PERIOD};
use std::arch::aarch64::*;

/// The codes of one register's groups, as [`generic`](super::super::trellis::decode_bundle) has them.
#[target_feature(enable = "neon")]
pub(super) fn decode_bundle(bundle: Bundle, codes: &mut [Line], stride: usize) {
    dispatch_code!(bundle.code, decode(bundle, codes, stride))
}

#[target_feature(enable = "neon")]
fn decode<const BITS: usize, const STATE: usize>(bundle: Bundle, codes: &mut [Line], stride: usize) {
    assert!(codes.len() > (PERIOD - 1) * stride);
    let tables = NIBBLE_TABLES.of(bundle.code);
    let lines = with_following(bundle, BITS);
    let codes_of_indices = code_tables::<BITS>();
    for quarter in 0..4 {
        let mut nibbles = [vdupq_n_u8(0); 2 * BYTES];
        for (nibbles, line) in nibbles.as_chunks_mut::<2>().0.iter_mut().zip(&lines) {
            // SAFETY: a quarter of a line is sixteen bytes.
            let bytes = unsafe { vld1q_u8(line.0[16 * quarter..][..16].as_ptr()) };
            *nibbles = [vandq_u8(bytes, vdupq_n_u8(0x0f)), vshrq_n_u8::<4>(bytes)];
        }
        each!(S in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] {
            let (first, o) = (BITS * S / 4, BITS * S % 4);
            let mut index = vdupq_n_u8(0);
            for (table, nibble) in tables[o][..pieces(o, STATE, 4)].iter().zip(&nibbles[first..]) {
                // SAFETY: a table is sixteen bytes.
                index = veorq_u8(index, vqtbl1q_u8(unsafe { vld1q_u8(table.as_ptr()) }, *nibble));
            }
            let values = look_up::<BITS>(codes_of_indices, index);
            // SAFETY: a quarter of one of `codes`, by the assertion above.
            unsafe { vst1q_u8(codes.as_mut_ptr().add(S * stride).cast::<u8>().add(16 * quarter), values) };
        });
    }
}

/// The codes of 128 indices.
#[target_feature(enable = "neon")]
#[inline]
fn code_tables<const BITS: usize>() -> [uint8x16x4_t; 2] {
    let codes = if BITS <= usize::from(COARSE_BITS) { &COARSE_CODES } else { &FINE_CODES };
    // SAFETY: a table is 64 bytes.
    each!(N in [0 1] unsafe { vld1q_u8_x4(codes[N].0.as_ptr()) })
}

/// `value + 128` of indices.
#[target_feature(enable = "neon")]
#[inline]
fn look_up<const BITS: usize>(codes: [uint8x16x4_t; 2], index: uint8x16_t) -> uint8x16_t {
    let low = vandq_u8(index, vdupq_n_u8(0x7f));
    let code = vqtbl4q_u8(codes[0], low);
    let code = vqtbx4q_u8(code, codes[1], vsubq_u8(low, vdupq_n_u8(64)));
    if BITS <= usize::from(COARSE_BITS) {
        return code;
    }
    // `-(value + 128) = -value + 128` in eight bits.
    let negative = vreinterpretq_u8_s8(vshrq_n_s8::<7>(vreinterpretq_s8_u8(index)));
    vsubq_u8(veorq_u8(code, negative), negative)
}

#[cfg(test)]
mod tests {
    use super::super::super::trellis::assert_codes_of_indices;
    use super::*;

    /// Every byte as [`look_up`] gets it.
    #[target_feature(enable = "neon")]
    fn all_codes<const BITS: usize>() -> [u8; 256] {
        let mut codes = std::array::from_fn(|n| n as u8);
        for codes in codes.as_chunks_mut::<16>().0 {
            // SAFETY: sixteen bytes are read and written.
            unsafe {
                let found = look_up::<BITS>(code_tables::<BITS>(), vld1q_u8(codes.as_ptr()));
                vst1q_u8(codes.as_mut_ptr(), found);
            }
        }
        codes
    }

    #[test]
    fn every_value_is_found() {
        // SAFETY: every processor of the target has NEON.
        unsafe { assert_codes_of_indices(all_codes::<2>(), all_codes::<3>()) }
    }
}
