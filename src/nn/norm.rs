//! Norms: one fused pass forward, one backward, on the CPU; Candle's own elsewhere.

use super::step::numbers;
use crate::ops;
use crate::step::NormWeights;
use candle_core::{DType, Result, Tensor};
use candle_nn::{Init, LayerNorm, LayerNormConfig, Module, RmsNorm, VarBuilder};

/// Whether this crate's op takes a tensor: half types and F32 on the CPU. F64 and other devices go through Candle's.
pub(super) fn has_op(x: &Tensor) -> bool {
    x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16)
}

/// Whether one kernel of Candle's may stand for several of its operations: half types and F32 on a CUDA device, where no gradient goes through.
pub(super) fn has_kernel(x: &Tensor) -> bool {
    x.device().is_cuda() && matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16) && !x.track_op()
}

/// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` over the last dimension, differentiable; see [`ops::layer_norm`].
#[doc(alias = "RBELayerNorm")]
#[derive(Clone, Debug)]
pub struct RbeLayerNorm(LayerNorm);

impl RbeLayerNorm {
    /// A norm with weight and bias of shape `(size)`.
    pub fn new(weight: Tensor, bias: Tensor, eps: f64) -> Self {
        Self(LayerNorm::new(weight, bias, eps))
    }

    /// Candle's layer of the same numbers.
    pub fn inner(&self) -> &LayerNorm {
        &self.0
    }
}

impl RbeLayerNorm {
    /// The norm as a token's step takes it; `None` where it is trained, or has a mean and no bias.
    pub(crate) fn step(&self) -> Result<Option<NormWeights>> {
        let (weight, eps) = (numbers(self.0.weight())?, self.0.eps());
        let bias = self.0.bias().map(numbers).transpose()?;
        Ok(match (weight, bias) {
            (Some(weight), Some(Some(bias))) => Some(NormWeights { weight, bias: Some(bias), eps }),
            (Some(weight), None) if !self.0.remove_mean() => Some(NormWeights { weight, bias: None, eps }),
            _ => None,
        })
    }
}

impl Module for RbeLayerNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.0.bias() {
            Some(bias) if has_op(x) => ops::layer_norm(x, self.0.weight(), bias, self.0.eps()),
            Some(bias) => candle_nn::ops::layer_norm_slow(x, self.0.weight(), bias, self.0.eps() as f32),
            None if has_op(x) && !self.0.remove_mean() => ops::rms_norm(x, self.0.weight(), self.0.eps()),
            None => self.0.forward(x),
        }
    }
}

/// A layer norm from `weight` and `bias` of shape `(size)`, as `candle_nn::layer_norm`.
///
/// # Errors
/// When a tensor is missing or has another shape.
pub fn layer_norm<C: Into<LayerNormConfig>>(size: usize, config: C, vb: VarBuilder) -> Result<RbeLayerNorm> {
    Ok(RbeLayerNorm(candle_nn::layer_norm(size, config, vb)?))
}

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension, differentiable; see [`ops::rms_norm`].
#[doc(alias = "RBERMSNorm")]
#[derive(Clone, Debug)]
pub struct RbeRmsNorm {
    norm: RmsNorm,
    /// A weight that is being trained, to which one is added in every forward.
    around_one: Option<Tensor>,
}

impl RbeRmsNorm {
    /// A norm with a weight of shape `(size)`.
    pub fn new(weight: Tensor, eps: f64) -> Self {
        Self { norm: RmsNorm::new(weight, eps), around_one: None }
    }

    /// A norm that multiplies with `1 + weight`, as Gemma's do: the weight is what a norm of ones is changed by.
    ///
    /// # Errors
    /// Candle's.
    pub fn around_one(weight: Tensor, eps: f64) -> Result<Self> {
        let variable = weight.is_variable().then(|| weight.clone());
        Ok(Self { norm: RmsNorm::new(plus_one(&weight)?, eps), around_one: variable })
    }

    /// Candle's layer of the same numbers.
    pub fn inner(&self) -> &RmsNorm {
        &self.norm
    }
}

impl RbeRmsNorm {
    /// The norm as a token's step takes it; `None` where it is trained.
    pub(crate) fn step(&self) -> Result<Option<NormWeights>> {
        if self.around_one.is_some() {
            return Ok(None);
        }
        let eps = self.norm.eps();
        Ok(numbers(self.norm.weight())?.map(|weight| NormWeights { weight, bias: None, eps }))
    }
}

/// `1 + weight`, of a half type on the CPU in F32, which the op takes beside any input.
fn plus_one(weight: &Tensor) -> Result<Tensor> {
    let half = matches!(weight.dtype(), DType::F16 | DType::BF16);
    if half && weight.device().is_cpu() { weight.to_dtype(DType::F32)? + 1. } else { weight + 1. }
}

impl Module for RbeRmsNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let trained = match &self.around_one {
            Some(weight) => Some(RmsNorm::new(plus_one(weight)?, self.norm.eps())),
            None => None,
        };
        let norm = trained.as_ref().unwrap_or(&self.norm);
        match has_op(x) {
            true => ops::rms_norm(x, norm.weight(), norm.eps()),
            // Candle's kernel is one launch, has no backward, and sums an F64 row in F32.
            false if has_kernel(x) && !norm.weight().track_op() => norm.forward(x),
            false => norm.forward_diff(x),
        }
    }
}

/// A root-mean-square norm from `weight` of shape `(size)`, as `candle_nn::rms_norm`.
///
/// # Errors
/// When the tensor is missing or has another shape.
pub fn rms_norm(size: usize, eps: f64, vb: VarBuilder) -> Result<RbeRmsNorm> {
    Ok(RbeRmsNorm { norm: candle_nn::rms_norm(size, eps, vb)?, around_one: None })
}

/// A root-mean-square norm that multiplies with one more than `weight` of shape `(size)`, as Gemma's; a `VarMap` that does not have
/// it makes it of zeros.
///
/// # Errors
/// When the tensor is missing or has another shape.
pub fn rms_norm_around_one(size: usize, eps: f64, vb: VarBuilder) -> Result<RbeRmsNorm> {
    RbeRmsNorm::around_one(vb.get_with_hints(size, "weight", Init::Const(0.))?, eps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    /// Largest difference relative to the largest value.
    fn difference(a: &Tensor, b: &Tensor) -> Result<f64> {
        let (a, b) = (a.to_dtype(DType::F64)?, b.to_dtype(DType::F64)?);
        let largest = |x: &Tensor| x.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>();
        Ok(largest(&(a - &b)?)? / largest(&b)?)
    }

    /// The definition, in F64.
    fn textbook(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
        let x = x.to_dtype(DType::F64)?;
        let last = x.rank() - 1;
        let x = match bias {
            Some(_) => x.broadcast_sub(&x.mean_keepdim(last)?)?,
            None => x,
        };
        let scale = ((x.sqr()?.mean_keepdim(last)? + eps)?.sqrt()?).recip()?;
        let y = x.broadcast_mul(&scale)?.broadcast_mul(&weight.to_dtype(DType::F64)?)?;
        bias.map_or(Ok(y.clone()), |bias| y.broadcast_add(&bias.to_dtype(DType::F64)?))
    }

    #[test]
    fn values_and_gradients_are_the_definitions() -> Result<()> {
        let bounds = [(DType::F64, 1e-6), (DType::F32, 3e-6), (DType::F16, 2e-3), (DType::BF16, 1.6e-2)];
        for (dtype, bound) in bounds {
            for (rows, size) in [(1, 1), (3, 5), (2, 64), (70, 257), (2, 2500)] {
                let random = |mean: f32, shape: &[usize]| -> Result<Var> {
                    Var::from_tensor(&Tensor::randn(mean, 1., shape, &Device::Cpu)?.to_dtype(dtype)?)
                };
                // A mean of three deviations, so that forgetting it shows.
                let x = random(3., &[1, rows, size])?;
                let (weight, bias) = (random(1., &[size])?, random(0., &[size])?);
                let g = Tensor::randn(0f32, 1., (1, rows, size), &Device::Cpu)?.to_dtype(dtype)?;
                let layer = RbeLayerNorm::new(weight.as_tensor().clone(), bias.as_tensor().clone(), 1e-5);
                let rms = RbeRmsNorm::new(weight.as_tensor().clone(), 1e-5);
                let ours = [layer.forward(&x)?, rms.forward(&x)?];
                let exact = [textbook(&x, &weight, Some(&bias), 1e-5)?, textbook(&x, &weight, None, 1e-5)?];
                for (n, (ours, exact)) in ours.iter().zip(&exact).enumerate() {
                    assert_eq!(ours.dtype(), dtype);
                    let context = format!("{dtype:?} {rows}x{size} {n}");
                    // One element is its own mean: what is left of it is rounding.
                    if size > 1 || n == 1 {
                        assert!(difference(ours, exact)? < bound, "{context}: {}", difference(ours, exact)?);
                    }
                    let gradients = |y: &Tensor| (y * g.to_dtype(y.dtype())?)?.sum_all()?.backward();
                    let (ours, exact) = (gradients(ours)?, gradients(exact)?);
                    for (what, var) in [("x", &x), ("weight", &weight), ("bias", &bias)] {
                        let (Some(ours), Some(exact)) = (ours.get(var), exact.get(var)) else {
                            assert!(what == "bias" && n == 1);
                            continue;
                        };
                        assert_eq!(ours.dtype(), dtype);
                        if size > 1 {
                            let error = difference(ours, exact)?;
                            assert!(error < 4. * bound, "{context} {what}: {error}");
                        }
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn a_mean_far_from_zero_costs_no_digits() -> Result<()> {
        let deviations = Tensor::randn(0f32, 1., (4, 4096), &Device::Cpu)?;
        // Multiples of 2^-8 near 4096 are exact in F32.
        let deviations = ((deviations * 256.)?.round()? / 256.)?;
        let ones = Tensor::ones(4096, DType::F32, &Device::Cpu)?;
        let norm = RbeLayerNorm::new(ones.clone(), ones.zeros_like()?, 1e-5);
        let exact = textbook(&deviations, &ones, Some(&ones.zeros_like()?), 1e-5)?;
        let error = difference(&norm.forward(&(deviations + 4096.)?)?, &exact)?;
        // The mean is rounded to F32 once: 2.4e-4 of a deviation at most.
        assert!(error < 1e-4, "{error}");
        Ok(())
    }

    #[test]
    fn what_does_not_fit_is_an_error() -> Result<()> {
        let x = Tensor::ones((2, 5), DType::F32, &Device::Cpu)?;
        let norm = RbeRmsNorm::new(Tensor::ones(4, DType::F32, &Device::Cpu)?, 1e-5);
        let error = norm.forward(&x).expect_err("four weights for five").to_string();
        assert!(error.contains("[2, 5]") && error.contains("[4]"), "{error}");
        Ok(())
    }
}
