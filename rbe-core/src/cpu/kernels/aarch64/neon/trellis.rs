//! The trellis code on NEON: 16 values in five instructions, in seven with three bits a row and in eight with four.
//!
//! Windows and their tables are as [`windows`] has them, a quarter of a line at a time.

use super::isa::{Neon, Proof};
use crate::codec::Block;
use crate::cpu::kernels::generic::fused::{self, Fused, Multiply, dispatch_columns};
use crate::cpu::kernels::generic::trellis::{self as generic, Decode, DecodedStrips, MultiplyTile};
use crate::cpu::kernels::generic::windows::{self, Windows};
use crate::cpu::kernels::isa::Bytes;
use crate::cpu::kernels::unroll::dispatch_code;
use crate::cpu::layout::planes::{Line, QUAD};
use crate::cpu::layout::trellis::{Bundle, GroupCodes, PackedGroup, PackedTrellis};
use crate::cpu::layout::{Input, QuantizedRows, RowDots, RowSums};
use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::Range;

/// [`fused::add_group`] with as many rows in a pass as registers hold the dot products of.
macro_rules! dispatch_passes {
    ($isa:expr, $bits:ident, $state:ident, $tiles:ident, $group:ident, $sums:ident) => {
        match $group.x.slices() {
            1 => fused::add_group::<_, $bits, $state, $tiles, 16, 1>($isa, $group, $sums),
            _ => fused::add_group::<_, $bits, $state, $tiles, 8, 2>($isa, $group, $sums),
        }
    };
}
pub(in crate::cpu::kernels::aarch64) use dispatch_passes;

#[target_feature(enable = "neon")]
pub(super) fn product(
    term: &PackedTrellis,
    i: usize,
    groups: Range<usize>,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    if !fused::fuses(term, i, x) {
        generic::product(Neon::new(), term, i, groups, x, sums);
        return;
    }
    fused::product(term, i, groups, x, |group| {
        dispatch_columns!(group.scale_group, add_group(group, sums));
    });
}

#[target_feature(enable = "neon")]
fn add_group<const BITS: usize, const STATE: usize, const TILES: usize>(group: Fused, sums: &mut [RowSums]) {
    dispatch_passes!(Neon::new(), BITS, STATE, TILES, group, sums)
}

impl Multiply for Neon {
    const HOLDS_DOTS: bool = true;

    #[inline(always)]
    fn activations(self, x: &[i8], part: usize, tiles: usize) -> uint8x16_t {
        activations(self, x, part, tiles)
    }

    /// Sums of two products, at most `2 * 127 * 127`, fit in 16 bits.
    #[inline(always)]
    fn add_products(self, sums: uint8x16_t, codes: uint8x16_t, x: uint8x16_t) -> uint8x16_t {
        // SAFETY: here and below, the token proves the instructions.
        unsafe {
            let (codes, x) = (vreinterpretq_s8_u8(codes), vreinterpretq_s8_u8(x));
            let low = vmull_s8(vget_low_s8(codes), vget_low_s8(x));
            let pairs = vpaddq_s16(low, vmull_high_s8(codes, x));
            vreinterpretq_u8_s32(vpadalq_s16(vreinterpretq_s32_u8(sums), pairs))
        }
    }

    #[inline(always)]
    fn add_share(self, sums: &mut [f32], dots: uint8x16_t, bias: i32, factor: f32) {
        // SAFETY: as above.
        unsafe { add_share(sums, dots, bias, factor) }
    }
}

/// The four activations of a quarter of a line, which is of one group.
#[inline(always)]
pub(in crate::cpu::kernels::aarch64) fn activations<P: Proof>(
    _: Neon<P>,
    x: &[i8],
    part: usize,
    tiles: usize,
) -> uint8x16_t {
    let four = &x[part * 4 / tiles * QUAD..][..QUAD];
    let out;
    // `vld1q_dup_s32` by its instruction: of two equal halves the optimiser keeps one, and then has to move the upper halves of the
    // codes down to multiply them.
    // SAFETY: the token proves the instruction; it reads four bytes and writes this register.
    unsafe {
        asm!(
            "ld1r {{{out:v}.4s}}, [{four}]",
            out = lateout(vreg) out,
            four = in(reg) four.as_ptr(),
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    out
}

/// `sums += (dots - bias) * factor` of four rows.
#[target_feature(enable = "neon")]
#[inline]
pub(in crate::cpu::kernels::aarch64) fn add_share(
    sums: &mut [f32],
    dots: uint8x16_t,
    bias: i32,
    factor: f32,
) {
    assert_eq!(sums.len(), 4);
    let share = vcvtq_f32_s32(vsubq_s32(vreinterpretq_s32_u8(dots), vdupq_n_s32(bias)));
    // SAFETY: four sums, by the assertion.
    unsafe {
        let sum = vaddq_f32(vld1q_f32(sums.as_ptr()), vmulq_n_f32(share, factor));
        vst1q_f32(sums.as_mut_ptr(), sum);
    }
}

#[target_feature(enable = "neon")]
pub(super) fn transposed(term: &PackedTrellis, block: Block, g: Input, acc: &mut [f32]) {
    generic::transposed(Neon::new(), term, block, g, acc);
}

#[target_feature(enable = "neon")]
pub(super) fn group_codes(scale_group: &PackedGroup, codes: &mut GroupCodes) {
    generic::decode_group(Neon::new(), scale_group, codes);
}

impl Decode for Neon {
    #[inline(always)]
    fn decode_bundle(self, bundle: Bundle, codes: &mut [Line], stride: usize) {
        // SAFETY: the token proves the instructions.
        unsafe { decode_bundle(bundle, codes, stride) }
    }
}

impl MultiplyTile for Neon {
    const CODE_BIAS: i32 = generic::code_bias::<Self>();

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

impl<P: Proof> Windows for Neon<P> {
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
            let low = self.shift_right(bytes, at);
            // The optimiser knows the shift.
            let both = match at {
                5 => vsliq_n_u8::<3>(low, next),
                6 => vsliq_n_u8::<2>(low, next),
                _ => vsliq_n_u8::<1>(low, next),
            };
            vandq_u8(both, vdupq_n_u8(0x0f))
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
