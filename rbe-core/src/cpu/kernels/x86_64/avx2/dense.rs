//! Norms, exponentials, dot products and activations: the generic loops.

use crate::cpu::kernels::generic::norm::{NormGradient, NormRow};
use crate::cpu::kernels::generic::{activations, dense, norm};
use crate::cpu::kernels::x86_64::frame::align_frame;

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn norm(row: NormRow, bias: &[f32], out: &mut [f32]) {
    align_frame();
    norm::norm(row, bias, out);
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn norm_gradient(row: NormRow, g: &[f32], out: NormGradient) {
    align_frame();
    norm::norm_gradient(row, g, out);
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn exp(x: &mut [f32], shift: f32) -> f32 {
    align_frame();
    norm::exp(x, shift)
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    align_frame();
    norm::silu_mul(gate, up, out);
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    align_frame();
    dense::dot(a, b)
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn weigh(x: &mut [f32], by: f32, weights: &[f32]) {
    dense::weigh(x, by, weights);
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn largest(x: &[f32]) -> f32 {
    activations::largest(x)
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn quantize_slice(x: &mut [f32], scale: f32, digits: &mut [i8], sums: &mut [i32]) {
    activations::quantize_slice(x, scale, digits, sums);
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn pair_digits(first: &[i8], second: Option<&[i8]>, pairs: &mut [i16]) {
    activations::pair_digits(first, second, pairs);
}
