//! The trellis code on NEON: 16 values in five instructions, in seven with three bits a row and in eight with four.
//!
//! Windows and their tables are as [`windows`] has them, a quarter of a line at a time.

use super::isa::Neon;
use crate::codec::Block;
use crate::cpu::kernels::generic::trellis::{
    self as generic, Decode, DecodedStrips, GroupRows, MultiplyTile,
};
use crate::cpu::kernels::generic::windows::{self, Windows};
use crate::cpu::kernels::isa::Bytes;
use crate::cpu::kernels::unroll::dispatch_code;
use crate::cpu::layout::planes::{Line, QUAD};
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
}

impl MultiplyTile for Neon {
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
    windows::decode_bundle::<_, BITS, STATE>(Neon::new(), bundle, codes, stride);
}

impl Windows for Neon {
    #[inline(always)]
    fn load_next(self, line: &Line, part: usize, lanes: usize) -> uint8x16_t {
        let own = self.load(line, part);
        // The four bytes after the last: of the next quarter, or of the first that the column has.
        let quarters = (QUAD * lanes).div_ceil(16);
        let next = self.load(line, part / quarters * quarters + (part + 1) % quarters);
        // SAFETY: here and below, the token proves the instructions.
        unsafe {
            if lanes == 2 {
                vreinterpretq_u8_u32(vrev64q_u32(vreinterpretq_u32_u8(own)))
            } else {
                vextq_u8::<4>(own, next)
            }
        }
    }

    #[inline(always)]
    fn store(self, bytes: uint8x16_t, line: &mut Line, part: usize) {
        let quarter = &mut line.0[16 * part..][..16];
        // SAFETY: as above.
        unsafe { vst1q_u8(quarter.as_mut_ptr(), bytes) }
    }

    #[inline(always)]
    fn table(self, table: &[u8; 16]) -> uint8x16_t {
        // SAFETY: as above; sixteen bytes.
        unsafe { vld1q_u8(table.as_ptr()) }
    }

    #[inline(always)]
    fn look_up(self, table: uint8x16_t, index: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { vqtbl1q_u8(table, index) }
    }

    #[inline(always)]
    fn window_across(self, bytes: uint8x16_t, next: uint8x16_t, at: usize) -> uint8x16_t {
        // SAFETY: as above.
        unsafe {
            let low = vshlq_u8(bytes, vdupq_n_s8(-(at as i8)));
            let high = vshlq_u8(next, vdupq_n_s8((8 - at) as i8));
            vandq_u8(vorrq_u8(low, high), vdupq_n_u8(0x0f))
        }
    }

    #[inline(always)]
    fn xor(self, a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { veorq_u8(a, b) }
    }

    #[inline(always)]
    fn add(self, a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { vaddq_u8(a, b) }
    }
}
