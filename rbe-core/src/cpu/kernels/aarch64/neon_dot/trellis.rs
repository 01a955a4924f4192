//! The trellis: NEON's codes, multiplied with dot products.
//!
//! Few digits are multiplied as a scale group is decoded. For more a block is decoded once, and four rows of it at a time are
//! multiplied with up to eight digits, so that dot products and sums stay in registers from scale group to scale group.

use super::isa::NeonDot;
use super::planes::dot_of_four;
use crate::cpu::kernels::aarch64::neon::trellis::{activations, add_share, decode_bundle, dispatch_passes};
use crate::cpu::kernels::generic::fused::{self, Fused, Multiply, dispatch_columns};
use crate::cpu::kernels::generic::trellis::{self as generic, Decode, DecodedStrips, MultiplyTile, Place};
use crate::cpu::kernels::unroll::{dispatch_batch, each};
use crate::cpu::layout::planes::{Line, QUADS, TILE_COLS, TILE_ROWS};
use crate::cpu::layout::trellis::{BIAS, Bundle, PackedTrellis};
use crate::cpu::layout::{QuantizedRows, RowSums};
use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::Range;

#[target_feature(enable = "neon,dotprod")]
pub(super) fn product(
    term: &PackedTrellis,
    i: usize,
    groups: Range<usize>,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    if !fused::fuses(term, i, x) {
        generic::product(NeonDot::with_dot(), term, i, groups, x, sums);
        return;
    }
    fused::product(term, i, groups, x, |group| {
        dispatch_columns!(group.scale_group, add_group(group, sums));
    });
}

#[target_feature(enable = "neon,dotprod")]
fn add_group<const BITS: usize, const STATE: usize, const TILES: usize>(group: Fused, sums: &mut [RowSums]) {
    dispatch_passes!(NeonDot::with_dot(), BITS, STATE, TILES, group, sums)
}

impl Multiply for NeonDot {
    const HOLDS_DOTS: bool = true;

    #[inline(always)]
    fn activations(self, x: &[i8], part: usize, tiles: usize) -> uint8x16_t {
        activations(self, x, part, tiles)
    }

    #[inline(always)]
    fn add_products(self, sums: uint8x16_t, codes: uint8x16_t, x: uint8x16_t) -> uint8x16_t {
        // SAFETY: here and below, the token proves the instructions.
        unsafe {
            let (codes, x) = (vreinterpretq_s8_u8(codes), vreinterpretq_s8_u8(x));
            vreinterpretq_u8_s32(dot(vreinterpretq_s32_u8(sums), codes, x))
        }
    }

    #[inline(always)]
    fn add_share(self, sums: &mut [f32], dots: uint8x16_t, bias: i32, factor: f32) {
        // SAFETY: as above.
        unsafe { add_share(sums, dots, bias, factor) }
    }
}

/// `sum[r] + sum over c of codes[4r + c] x[4r + c]`.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn dot(mut sum: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
    // `vdotq_s32` by its instruction: the standard library does not offer it on stable compilers.
    // SAFETY: the instruction exists, by the function's features, and reads and writes only these registers.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {codes:v}.16b, {x:v}.16b",
            sum = inout(vreg) sum,
            codes = in(vreg) codes,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

impl Decode for NeonDot {
    #[inline(always)]
    fn decode_bundle(self, bundle: Bundle, codes: &mut [Line], stride: usize) {
        // SAFETY: the token proves the instructions.
        unsafe { decode_bundle(bundle, codes, stride) }
    }
}

impl MultiplyTile for NeonDot {
    /// Codes are at most 127, signed bytes as they are.
    const CODE_BIAS: i32 = BIAS;

    #[inline(always)]
    fn multiply_tile(self, scale_groups: &DecodedStrips, tile: usize, sums: &mut [RowSums], stride: usize) {
        // SAFETY: as above.
        unsafe { multiply_tile(scale_groups, tile, sums, stride) }
    }
}

/// Adds the products of one tile of decoded scale groups with all their digits to the vectors' sums, `stride` apart.
#[target_feature(enable = "neon,dotprod")]
fn multiply_tile(scale_groups: &DecodedStrips, tile: usize, sums: &mut [RowSums], stride: usize) {
    let (all, per_row) = (scale_groups.x.slices(), scale_groups.x.slices_per_row());
    let mut taken = 0;
    while taken < all {
        let left = all - taken;
        let at = Place { tile, digit: taken, stride };
        let sums = &mut sums[taken / per_row * stride..];
        taken += match per_row {
            1 => dispatch_batch!(1, left, multiply(scale_groups, at, sums), [8, 6, 4, 3, 2, 1]),
            2 => dispatch_batch!(2, left, multiply(scale_groups, at, sums), [8, 6, 4, 2]),
            3 => dispatch_batch!(3, left, multiply(scale_groups, at, sums), [9, 6, 3]),
            digits => unreachable!("{digits} digits of a vector"),
        };
    }
}

/// `COUNT` digits, `PER_VECTOR` of them of each vector; dot products and sums stay in registers.
#[target_feature(enable = "neon,dotprod")]
fn multiply<const PER_VECTOR: usize, const COUNT: usize>(
    scale_groups: &DecodedStrips,
    at: Place,
    sums: &mut [RowSums],
) -> usize {
    let x_stride = scale_groups.x.stride();
    for quarter in 0..TILE_ROWS / 4 {
        let mut held = [vdupq_n_f32(0.0); COUNT];
        for (vector, held) in held.iter_mut().enumerate().take(COUNT / PER_VECTOR) {
            let sums = &sums[vector * at.stride + at.tile].0[4 * quarter..][..4];
            // SAFETY: four sums.
            *held = unsafe { vld1q_f32(sums.as_ptr()) };
        }
        for (codes, digits) in scale_groups.codes.iter().zip(&scale_groups.digits) {
            let (biases, factors) =
                (&digits.biases[at.digit..][..COUNT], &digits.factors[at.digit..][..COUNT]);
            let values = &digits.values[at.digit * x_stride..];
            assert!(values.len() >= (COUNT - 1) * x_stride + TILE_COLS);
            let codes: &[Line; QUADS] = codes[at.tile * QUADS..].first_chunk().expect("eight quads");
            let codes = each!(QUAD_INDEX in [0 1 2 3 4 5 6 7] {
                let codes = &codes[QUAD_INDEX].0[16 * quarter..][..16];
                // SAFETY: sixteen bytes.
                vreinterpretq_s8_u8(unsafe { vld1q_u8(codes.as_ptr()) })
            });
            each!(DIGIT in [0 1 2 3 4 5 6 7 8] if DIGIT < COUNT {
                // SAFETY: 32 bytes inside `values`, by the assertion above.
                let x = unsafe {
                    let x = values.as_ptr().add(DIGIT * x_stride);
                    [vld1q_s8(x), vld1q_s8(x.add(16))]
                };
                let mut dots = vdupq_n_s32(-biases[DIGIT]);
                each!(QUAD_INDEX in [0 1 2 3 4 5 6 7] {
                    dots = dot_of_four::<{ QUAD_INDEX % 4 }>(dots, codes[QUAD_INDEX], x[QUAD_INDEX / 4]);
                });
                let held = &mut held[DIGIT / PER_VECTOR];
                *held = vaddq_f32(*held, vmulq_n_f32(vcvtq_f32_s32(dots), factors[DIGIT]));
            });
        }
        for (vector, held) in held.iter().enumerate().take(COUNT / PER_VECTOR) {
            let sums = &mut sums[vector * at.stride + at.tile].0[4 * quarter..][..4];
            // SAFETY: as above.
            unsafe { vst1q_f32(sums.as_mut_ptr(), *held) };
        }
    }
    COUNT
}
