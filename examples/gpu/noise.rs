//! Numbers that look random and are the same in every run.

use anyhow::Result;
use candle_core::{Device, Tensor};

/// Bits of a linear congruence, the upper ones.
pub(crate) fn bits(seed: u64) -> impl Iterator<Item = u32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    })
}

/// About normal, of this standard deviation, in F32: sums of four that are uniform.
pub(crate) fn tensor(seed: u64, deviation: f32, shape: (usize, usize), device: &Device) -> Result<Tensor> {
    let mut bits = bits(seed);
    let mut uniform = || bits.next().map_or(0.0, |bits| (f64::from(bits) / 2f64.powi(31) - 1.0) as f32);
    // Each has a variance of a third.
    let mut value = || (uniform() + uniform() + uniform() + uniform()) * deviation * 0.75f32.sqrt();
    let values: Vec<f32> = (0..shape.0 * shape.1).map(|_| value()).collect();
    Ok(Tensor::from_vec(values, shape, device)?)
}
