//! The product with a compressed weight whose numbers are variables.

use super::{CandlePool, dtype_of, from_f32, rows, to_f32, values_of};
use crate::RbeTensor;
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};
use rbe_core::cpu::{self, Gradients};

/// `y = x W(p)'` for `x` of shape `(.., in)` and the compressed `weight` of shape `(out, in)` with `parameters` in the place
/// of its own: F32, `(count)`, as [`RbeTensor::parameters`] orders them. `y` is `(.., out)` of `x`'s type.
///
/// Differentiable in both. All of it runs in the coefficient domain: with `x^ = A_in x` and `g^ = A_out dy`, a sparse
/// coefficient's gradient is `sum g^_r x^_c` over the batch, a scale's that of all coefficients it multiplies, a basis
/// parameter's `sum g' phi x`. For large batches; [`matmul`](super::matmul()) is the product for inference.
///
/// # Errors
/// When `weight` is a vector, `x`'s last side is not `in`, there are more or fewer parameters, or a type or device is
/// not supported.
pub fn parametric_matmul(x: &Tensor, parameters: &Tensor, weight: &RbeTensor) -> Result<Tensor> {
    if weight.shape().rank() != 2 {
        bail!("a product needs a compressed matrix, not a tensor of shape {:?}", weight.shape());
    }
    x.apply_op2(parameters, RbeParametricMatMul { weight: weight.clone() })
}

struct RbeParametricMatMul {
    weight: RbeTensor,
}

const NAME: &str = "rbe-parametric-matmul";

impl CustomOp2 for RbeParametricMatMul {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        parameters: &CpuStorage,
        parameters_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (out_features, in_features) = self.weight.shape().dims2()?;
        let Some((_, leading)) = x_layout.dims().split_last().filter(|(last, _)| **last == in_features)
        else {
            bail!(
                "{NAME}: input of shape {:?} with a weight of shape ({out_features}, {in_features})",
                x_layout.shape()
            );
        };
        let count: usize = self.weight.parameter_groups().iter().map(|group| group.count).sum();
        if parameters_layout.dims() != [count] || dtype_of(parameters) != DType::F32 {
            bail!(
                "{NAME}: parameters of shape {:?} and type {:?}; the weight has ({count}) in F32",
                parameters_layout.shape(),
                dtype_of(parameters)
            );
        }
        let values = to_f32(x, x_layout, NAME)?;
        let parameters = to_f32(parameters, parameters_layout, NAME)?;
        let x_rows = rows(&values, x_layout);
        let mut y = vec![0.0; x_rows.batch() * out_features];
        cpu::parametric_matmul(self.weight.oriented()?, &parameters, x_rows, &mut y, &CandlePool);
        let shape = [leading, &[out_features]].concat();
        Ok((from_f32(y, dtype_of(x), NAME)?, Shape::from(shape)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        parameters: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (values, g) = (values_of(x, NAME)?, values_of(dy, NAME)?);
        let p = values_of(parameters, NAME)?;
        let mut dx = x.track_op().then(|| vec![0.0; values.len()]);
        let mut dp = vec![0.0; p.len()];
        let (x_rows, g) = (rows(&values, x.layout()), rows(&g, dy.layout()));
        let gradients = Gradients { x: dx.as_deref_mut(), parameters: &mut dp };
        cpu::parametric_gradients(self.weight.oriented()?, &p, x_rows, g, gradients, &CandlePool);
        let dx = dx.map(|dx| Tensor::from_vec(dx, x.shape(), x.device())?.to_dtype(x.dtype())).transpose()?;
        Ok((dx, Some(Tensor::from_vec(dp, parameters.shape(), parameters.device())?)))
    }
}
