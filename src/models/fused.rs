//! Candle's fused kernels where nothing asks for a gradient, the composed form where something does.
//!
//! The fused kernels have no backward and drop the gradient without a word; a model that is fine-tuned
//! must not call them. Each function here gives the same value either way.

use candle_core::{DType, Result, Tensor};
use candle_nn::{LayerNorm, Module, RmsNorm, ops, rotary_emb};

/// The dtype to accumulate in: F32 for the half precisions, else the values' own.
pub(super) fn accumulation_dtype(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        dtype => dtype,
    }
}

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension.
pub(super) fn rms_norm(norm: &RmsNorm, x: &Tensor) -> Result<Tensor> {
    // F32 alone: the fused kernel rounds the row's norm to a half type, and sums an F64 row in F32.
    let fused = x.dtype() == DType::F32 && !x.track_op() && !norm.weight().track_op();
    if fused { norm.forward(&x.contiguous()?) } else { norm.forward_diff(x) }
}

/// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` over the last dimension.
pub(super) fn layer_norm(norm: &LayerNorm, x: &Tensor) -> Result<Tensor> {
    let Some(bias) = norm.bias() else { return norm.forward(x) };
    let (weight, eps) = (norm.weight(), norm.eps() as f32);
    let tracked = x.track_op() || weight.track_op() || bias.track_op();
    if tracked || x.dtype() == DType::F64 {
        ops::layer_norm_slow(x, weight, bias, eps)
    } else {
        ops::layer_norm(&x.contiguous()?, weight, bias, eps)
    }
}

/// `exp(x) / sum(exp(x))` over the last dimension.
pub(super) fn softmax(x: &Tensor) -> Result<Tensor> {
    if x.track_op() { ops::softmax(x, candle_core::D::Minus1) } else { ops::softmax_last_dim(x) }
}

/// Rotates the pairs `(i, i + head_dim/2)` of `x` `(batch, heads, seq, head_dim)`, contiguous, by the angles
/// whose cosines and sines `(seq, head_dim/2)` are given.
pub(super) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    if x.track_op() { rotary_emb::rope_slow(x, cos, sin) } else { rotary_emb::rope(x, cos, sin) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    /// Largest difference between `f` on a plain tensor and `f` on one that asks for its gradient.
    fn fused_against_composed(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<f32> {
        let (fused, composed) = (f(x)?, f(Var::from_tensor(x)?.as_tensor())?);
        assert!(!fused.track_op() && composed.track_op());
        (fused - composed)?.abs()?.flatten_all()?.max(0)?.to_scalar()
    }

    #[test]
    fn both_forms_agree() -> Result<()> {
        let device = Device::Cpu;
        let x = Tensor::randn(0.5f32, 2., (2, 3, 5, 64), &device)?;
        let weight = Tensor::randn(1f32, 0.1, 64, &device)?;
        let bias = Tensor::randn(0f32, 0.1, 64, &device)?;
        let angle = Tensor::randn(0f32, 3., (5, 32), &device)?;
        let rms = RmsNorm::new(weight.clone(), 1e-5);
        let layer = LayerNorm::new(weight, bias, 1e-5);
        for difference in [
            fused_against_composed(&x, |x| rms_norm(&rms, x))?,
            fused_against_composed(&x, |x| layer_norm(&layer, x))?,
            fused_against_composed(&x, softmax)?,
            fused_against_composed(&x, |x| rotate(x, &angle.cos()?, &angle.sin()?))?,
        ] {
            assert!(difference < 5e-6, "{difference}");
        }
        Ok(())
    }
}
