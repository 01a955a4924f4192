//! The row of a norm: `(x - mean) / sqrt(variance + eps) * weight + bias`, or with `mean = 0` and no bias the
//! root-mean-square norm, and its gradients.
//!
//! Statistics take two passes: the variance is that of the differences from the mean, so that a large mean costs no digits.
//! Sums are in lanes over at most [`CHUNK`] elements and beyond in F64.

use crate::cpu::kernels::isa::Isa;
use crate::cpu::layout::LANES;

/// Elements whose sum is held in F32 lanes.
const CHUNK: usize = 1024;

/// A row of a norm.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct NormRow<'a> {
    pub x: &'a [f32],
    pub weight: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
    /// Whether the mean is taken away first.
    pub centered: bool,
}

/// What a row's gradient is written to.
pub(in crate::cpu) struct NormGradient<'a> {
    /// Of the row: overwritten.
    pub x: &'a mut [f32],
    /// Of weight and bias: added to.
    pub weight: &'a mut [f32],
    pub bias: &'a mut [f32],
}

/// The sum of `f` of corresponding elements.
#[inline(always)]
fn sum(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f64 {
    let mut total = 0.0;
    for (a, b) in a.chunks(CHUNK).zip(b.chunks(CHUNK)) {
        let mut lanes = [0f32; LANES];
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        for (a, b) in a.iter().zip(b) {
            for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
                *lane += f(*a, *b);
            }
        }
        for (lane, (a, b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
            *lane += f(*a, *b);
        }
        total += lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>();
    }
    total
}

/// The mean (0 where not `centered`) and `1 / sqrt(variance + eps)`.
#[inline(always)]
fn statistics(x: &[f32], eps: f32, centered: bool) -> (f32, f32) {
    let count = x.len() as f64;
    let mean = if centered { (sum(x, x, |x, _| x) / count) as f32 } else { 0.0 };
    let variance = sum(x, x, |x, _| (x - mean) * (x - mean)) / count;
    (mean, (1.0 / (variance + f64::from(eps)).sqrt()) as f32)
}

/// `out = norm(x) weight + bias`; an empty bias is none.
#[inline(always)]
pub(in crate::cpu) fn norm(row: NormRow, bias: &[f32], out: &mut [f32]) {
    let NormRow { x, weight, eps, centered } = row;
    let (mean, inverse) = statistics(x, eps, centered);
    for (out, (x, weight)) in out.iter_mut().zip(x.iter().zip(weight)) {
        *out = (x - mean) * inverse * weight;
    }
    out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
}

/// The gradients of `<g, norm(x) weight + bias>`. With `n = (x - mean) inverse` and `h = g weight`:
/// `dx = inverse (h - mean(h) - n mean(h n))`, the first mean only where `centered`.
#[inline(always)]
pub(in crate::cpu) fn norm_gradient(row: NormRow, g: &[f32], out: NormGradient) {
    let NormRow { x, weight, eps, centered } = row;
    let NormGradient { x: dx, weight: dweight, bias: dbias } = out;
    let (mean, inverse) = statistics(x, eps, centered);
    let count = x.len() as f64;
    for ((dx, g), weight) in dx.iter_mut().zip(g).zip(weight) {
        *dx = g * weight;
    }
    let mean_h = if centered { (sum(dx, dx, |h, _| h) / count) as f32 } else { 0.0 };
    let mean_hn = (sum(dx, x, |h, x| h * ((x - mean) * inverse)) / count) as f32;
    for (dx, x) in dx.iter_mut().zip(x) {
        *dx = inverse * (*dx - mean_h - (x - mean) * inverse * mean_hn);
    }
    for ((dweight, g), x) in dweight.iter_mut().zip(g).zip(x) {
        *dweight += g * ((x - mean) * inverse);
    }
    dbias.iter_mut().zip(g).for_each(|(dbias, g)| *dbias += g);
}

/// `x <- exp(x - shift)` for `x <= shift`; returns the sum. As [`exp_of`].
#[inline(always)]
pub(in crate::cpu) fn exp(x: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let take = |x: &mut f32, lane: &mut f32| {
        *x = exp_of::<Unfused>(*x - shift);
        *lane += *x;
    };
    // Chunks whose length is known fill registers.
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    for chunk in whole {
        chunk.iter_mut().zip(&mut lanes).for_each(|(x, lane)| take(x, lane));
    }
    rest.iter_mut().zip(&mut lanes).for_each(|(x, lane)| take(x, lane));
    lanes.iter().sum()
}

/// `out = silu(gate) up` with `silu(x) = x / (1 + exp(-x))`, element by element.
#[inline(always)]
pub(in crate::cpu) fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for (out, (gate, up)) in out.iter_mut().zip(gate.iter().zip(up)) {
        // Of numbers below 0 exp(x) / (1 + exp(x)), so that nothing is too large.
        let small = exp_of::<Unfused>(-gate.abs());
        let numerator = if *gate < 0.0 { small } else { 1.0 };
        *out = gate * (numerator / (1.0 + small)) * up;
    }
}

/// Products and sums that are rounded one after the other, on every level.
#[derive(Clone, Copy)]
struct Unfused;

impl Isa for Unfused {
    const FMA: bool = false;
}

/// `exp(t)` for `t <= 0`. Relative error below 3e-7; zero below -87.
///
/// `exp(t) = 2^n exp(r)` with `n` the integer nearest to `t / ln 2` and a polynomial of degree 6 on `|r| <= ln 2 / 2`.
#[inline(always)]
pub(super) fn exp_of<I: Isa>(t: f32) -> f32 {
    const TO_INTEGER: f32 = (3 << 22) as f32;
    /// The high bits of `ln 2`, which times a small integer are exact, and the rest.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let bounded = if t > -87.0 { t } else { -87.0 };
    let shifted = I::multiply_add(bounded, std::f32::consts::LOG2_E, TO_INTEGER);
    let n = shifted - TO_INTEGER;
    let r = I::multiply_add(n, -LN_2[1], I::multiply_add(n, -LN_2[0], bounded));
    let mut tail = 1.0 / 720.0;
    for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5] {
        tail = I::multiply_add(r, tail, coefficient);
    }
    let exponent = shifted.to_bits().wrapping_sub(TO_INTEGER.to_bits()).wrapping_add(127) << 23;
    let value = I::multiply_add(r * r, tail, 1.0 + r) * f32::from_bits(exponent);
    // Neither above nor below is what is not a number, and stays so.
    let low = if t <= -87.0 { 0.0 } else { t };
    if t > -87.0 { value } else { low }
}
