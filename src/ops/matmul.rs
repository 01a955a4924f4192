//! The product of activations with a compressed weight.

use super::{CandlePool, dtype_of, from_f32, to_f32};
use crate::RbeTensor;
use crate::cpu::{self, Precision};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

/// `y = x W'` for `x` of shape `(.., in)` and a compressed `W` of shape `(out, in)`; `y` is `(.., out)` of
/// `x`'s type. Differentiable in `x`: `dx = dy W`.
///
/// `precision` is that of `x` against bit-planes; the other terms, and the weight of a transposed tensor, always take
/// `x` as F32.
///
/// # Errors
/// When `W` is a vector, `x`'s last side is not `in`, its type is not F32, F16 or BF16, or it is on another
/// device.
pub fn matmul(x: &Tensor, weight: &RbeTensor, precision: Precision) -> Result<Tensor> {
    matmul_with_gradient(x, weight, weight, precision)
}

/// As [`matmul`], with the gradient of another weight of the same shape: that of a finer quantiser, say.
pub(crate) fn matmul_with_gradient(
    x: &Tensor,
    weight: &RbeTensor,
    gradient: &RbeTensor,
    precision: Precision,
) -> Result<Tensor> {
    if weight.shape().rank() != 2 {
        bail!("a product needs a compressed matrix, not a tensor of shape {:?}", weight.shape());
    }
    x.apply_op1(RbeMatMul { weight: weight.clone(), gradient: gradient.clone(), precision })
}

struct RbeMatMul {
    weight: RbeTensor,
    /// What the gradient flows back through.
    gradient: RbeTensor,
    precision: Precision,
}

impl CustomOp1 for RbeMatMul {
    fn name(&self) -> &'static str {
        "rbe-matmul"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (out_features, in_features) = self.weight.shape().dims2()?;
        let Some((&last, leading)) = layout.dims().split_last().filter(|(last, _)| **last == in_features)
        else {
            bail!(
                "{}: input of shape {:?} with a weight of shape ({out_features}, {in_features})",
                self.name(),
                layout.shape()
            );
        };
        let x = to_f32(storage, layout, self.name())?;
        let tokens = x.len() / last;
        let mut y = vec![0.0; tokens * out_features];
        if self.weight.is_transposed() {
            cpu::transposed_product(self.weight.loaded(), &x, tokens, &mut y, &CandlePool);
        } else {
            cpu::product(self.weight.loaded(), &x, tokens, &mut y, self.precision, &CandlePool);
        }
        let shape = [leading, &[out_features]].concat();
        Ok((from_f32(y, dtype_of(storage), self.name())?, Shape::from(shape)))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(matmul(dy, &self.gradient.t()?, self.precision)?))
    }
}
