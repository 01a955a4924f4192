//! The trellis code on NEON: 16 values in about twelve instructions, in about fourteen from 3 bits on.
//!
//! What each half of a byte contributes to the indices is looked up (see [`NIBBLE_TABLES`]), a quarter of a line at a time; a
//! state of twelve bits lies in three or four halves. Seven bits of an index are looked up in two tables of 64: `tbl` gives
//! zero, and `tbx` leaves what there was, where an index less the table's first lies outside. From 3 bits on the eighth is
//! the sign.

use super::isa::Neon;
use crate::codec::Block;
use crate::codec::term::trellis::COARSE_BITS;
use crate::cpu::kernels::generic::decode::{COARSE_CODES, FINE_CODES, Nibbles, decode_nibbles};
use crate::cpu::kernels::generic::trellis::{self as generic, Decode, DecodedStrips, GroupRows};
use crate::cpu::kernels::unroll::{dispatch_code, each};
use crate::cpu::layout::planes::Line;
use crate::cpu::layout::trellis::{Bundle, PackedGroup, PackedTrellis};
use crate::cpu::layout::{Input, QuantizedRows, RowDots, RowSums};
use std::arch::aarch64::*;
use std::ops::Range;

#[target_feature(enable = "neon")]
pub(super) fn product(
    term: &PackedTrellis,
    i: usize,
    blocks: Range<usize>,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    generic::product(Neon::new(), term, i, blocks, x, sums);
}

#[target_feature(enable = "neon")]
pub(super) fn transposed(term: &PackedTrellis, block: Block, g: Input, acc: &mut [f32]) {
    generic::transposed(Neon::new(), term, block, g, acc);
}

#[target_feature(enable = "neon")]
pub(super) fn rows(scale_group: &PackedGroup, rows: &mut GroupRows) {
    generic::rows(Neon::new(), scale_group, rows);
}

impl Decode for Neon {
    #[inline(always)]
    fn decode_bundle(self, bundle: Bundle, codes: &mut [Line], stride: usize) {
        // SAFETY: the token proves the instructions.
        unsafe { decode_bundle(bundle, codes, stride) }
    }

    #[inline(always)]
    fn multiply_tile(self, scale_groups: &DecodedStrips, tile: usize, sums: &mut [RowSums], stride: usize) {
        generic::multiply_tile(self, scale_groups, tile, sums, stride, |dots, bias, factor, sums| {
            // SAFETY: as above.
            unsafe { add_dots(dots, bias, factor, sums) }
        });
    }
}

/// Not inlined: see [`generic::add_dots`].
#[inline(never)]
#[target_feature(enable = "neon")]
pub(in crate::cpu::kernels::aarch64) fn add_dots(dots: &RowDots, bias: i32, factor: f32, sums: &mut RowSums) {
    generic::add_dots(dots, bias, factor, sums);
}

#[target_feature(enable = "neon")]
pub(in crate::cpu::kernels::aarch64) fn decode_bundle(bundle: Bundle, codes: &mut [Line], stride: usize) {
    dispatch_code!(bundle.code, decode(bundle, codes, stride))
}

#[target_feature(enable = "neon")]
fn decode<const BITS: usize, const STATE: usize>(bundle: Bundle, codes: &mut [Line], stride: usize) {
    decode_nibbles::<_, BITS, STATE>(Neon::new(), bundle, codes, stride);
}

impl Nibbles for Neon {
    type Tables = [uint8x16x4_t; 2];

    #[inline(always)]
    fn xor(self, a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        // SAFETY: here and below, the token proves the instructions.
        unsafe { veorq_u8(a, b) }
    }

    #[inline(always)]
    fn look_up(self, table: &[u8; 16], index: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above, and a table is sixteen bytes.
        unsafe { vqtbl1q_u8(vld1q_u8(table.as_ptr()), index) }
    }

    #[inline(always)]
    fn tables<const BITS: usize>(self) -> [uint8x16x4_t; 2] {
        // SAFETY: as above.
        unsafe { code_tables::<BITS>() }
    }

    #[inline(always)]
    fn codes_of<const BITS: usize>(self, tables: [uint8x16x4_t; 2], index: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { look_up::<BITS>(tables, index) }
    }

    #[inline(always)]
    fn store(self, bytes: uint8x16_t, line: &mut Line, part: usize) {
        let quarter = &mut line.0[16 * part..][..16];
        // SAFETY: a quarter of a line is sixteen bytes.
        unsafe { vst1q_u8(quarter.as_mut_ptr(), bytes) }
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
    use super::*;
    use crate::cpu::kernels::generic::decode::assert_codes_of_indices;

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
