//! Products of codes and activations: those of the bytes at even places and those at odd ones, in 16 bits each.

use super::isa::Simd128;
use crate::cpu::kernels::generic::dot::Broadcast;
use crate::cpu::kernels::generic::fused::Multiply;
use crate::cpu::layout::RowDots;
use crate::cpu::layout::planes::QUAD;
use std::arch::wasm32::*;

/// Adds to each lane of `sums` the four products of its codes and activations.
#[inline(always)]
fn add_products(sums: v128, codes: v128, x: v128) -> v128 {
    let even = i32x4_dot_i16x8(v128_and(codes, u16x8_splat(0xff)), i16x8_shr(i16x8_shl(x, 8), 8));
    let odd = i32x4_dot_i16x8(u16x8_shr(codes, 8), i16x8_shr(x, 8));
    i32x4_add(sums, i32x4_add(even, odd))
}

impl Multiply for Simd128 {
    const HOLDS_DOTS: bool = true;

    /// A quarter of a line is of one group.
    #[inline(always)]
    fn activations(self, x: &[i8], part: usize, tiles: usize) -> v128 {
        let four = &x[part * 4 / tiles * QUAD..][..QUAD];
        // SAFETY: four bytes.
        unsafe { v128_load32_splat(four.as_ptr().cast()) }
    }

    #[inline(always)]
    fn add_products(self, sums: v128, codes: v128, x: v128) -> v128 {
        add_products(sums, codes, x)
    }

    #[inline(always)]
    fn add_share(self, sums: &mut [f32], dots: v128, bias: i32, factor: f32) {
        let share = f32x4_convert_i32x4(i32x4_sub(dots, i32x4_splat(bias)));
        let sums: &mut [f32; 4] = sums.try_into().expect("four sums");
        // SAFETY: four sums.
        unsafe {
            let sum = f32x4_add(v128_load(sums.as_ptr().cast()), f32x4_mul(share, f32x4_splat(factor)));
            v128_store(sums.as_mut_ptr().cast(), sum);
        }
    }
}

impl Broadcast for Simd128 {
    const CHAINS: usize = 1;

    #[inline(always)]
    fn dot<const PLANES: usize>(self, sums: v128, codes: v128, x: i32) -> v128 {
        add_products(sums, codes, i32x4_splat(x))
    }

    #[inline(always)]
    fn add_lanes(self, a: v128, b: v128) -> v128 {
        i32x4_add(a, b)
    }

    #[inline(always)]
    fn store_dots(self, sums: v128, dots: &mut RowDots, part: usize) {
        let dots = &mut dots.0[4 * part..][..4];
        // SAFETY: four numbers.
        unsafe { v128_store(dots.as_mut_ptr().cast(), sums) }
    }
}
