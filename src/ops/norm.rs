//! Norms over the last dimension, fused, with gradients.

use super::{CandlePool, dtype_of, from_f32, to_f32, values_of};
use crate::Error;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rbe_core::cpu::{self, Norm};

/// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` over the last dimension (Ba et al., arXiv 1607.06450), of `x`'s type;
/// `weight` and `bias` `(size)` may be of another. Differentiable in all three. Statistics take two passes in F32 and F64, so
/// a mean far larger than the deviations costs no digits.
///
/// # Errors
/// When a shape does not fit, or a tensor is not F32, F16 or BF16 on the CPU.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    cpu::requested_level().map_err(Error::from)?;
    x.apply_op3(weight, bias, RbeNorm(Norm { eps: eps as f32, centered: true }))
}

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension (Zhang and Sennrich, arXiv 1910.07467), as [`layer_norm`].
///
/// # Errors
/// As [`layer_norm`].
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    cpu::requested_level().map_err(Error::from)?;
    x.apply_op2(weight, RbeNorm(Norm { eps: eps as f32, centered: false }))
}

struct RbeNorm(Norm);

const NAME: &str = "rbe-norm";

impl RbeNorm {
    fn forward(
        &self,
        (x, x_layout): (&CpuStorage, &Layout),
        (weight, weight_layout): (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let size = *x_layout.dims().last().unwrap_or(&0);
        let fits = |layout: &Layout| layout.dims() == [size];
        if size == 0 || !fits(weight_layout) || bias.is_some_and(|(_, layout)| !fits(layout)) {
            bail!(
                "{NAME}: input of shape {:?} with a weight of {:?}",
                x_layout.shape(),
                weight_layout.shape()
            );
        }
        let values = to_f32(x, x_layout, NAME)?;
        let weight = to_f32(weight, weight_layout, NAME)?;
        let bias = bias.map(|(bias, layout)| to_f32(bias, layout, NAME)).transpose()?.unwrap_or_default();
        let mut out = cpu::zeros(values.len(), &CandlePool);
        cpu::norm(self.0, &values, &weight, &bias, &mut out, &CandlePool);
        Ok((from_f32(out, dtype_of(x), NAME)?, x_layout.shape().clone()))
    }

    /// The gradients of input, weight and bias.
    fn backward(&self, x: &Tensor, weight: &Tensor, g: &Tensor) -> Result<[Tensor; 3]> {
        let (values, g) = (values_of(x, NAME)?, values_of(g, NAME)?);
        let mut dx = vec![0.0; values.len()];
        let weights = values_of(weight, NAME)?;
        let (dw, db) = cpu::norm_gradients(self.0, &values, &weights, &g, &mut dx, &CandlePool);
        let tensor = |values: Vec<f32>, like: &Tensor| {
            Tensor::from_vec(values, like.shape(), like.device())?.to_dtype(like.dtype())
        };
        Ok([tensor(dx, x)?, tensor(dw, weight)?, tensor(db, weight)?])
    }
}

impl CustomOp2 for RbeNorm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((x, lx), (w, lw), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, _] = self.backward(x, w, g)?;
        Ok((Some(dx), Some(dw)))
    }
}

impl CustomOp3 for RbeNorm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((x, lx), (w, lw), Some((b, lb)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, db] = self.backward(x, w, g)?;
        Ok((Some(dx), Some(dw), Some(db.to_dtype(b.dtype())?)))
    }
}
