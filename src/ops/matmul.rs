//! The product of activations with a compressed weight.

use super::{CandlePool, dtype_of, from_f32, rows, to_f32};
use crate::RbeTensor;
#[cfg(feature = "cuda")]
use crate::cuda;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rbe_core::cpu::{self, Precision};

/// `y = x W'` for `x` of shape `(.., in)` and a compressed `W` of shape `(out, in)`; `y` is `(.., out)` of
/// `x`'s type. Differentiable in `x`: `dx = dy W`.
///
/// `precision` is that of `x` against bit-planes and trellises; the other terms, and the weight of a transposed tensor, always take
/// `x` as F32. On a CUDA device all do. [`Precision::Auto`] is exact where a gradient goes through `x`: the products are those
/// whose gradient it is.
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
    expect_matrix(weight)?;
    super::expect_device(x, weight, NAME)?;
    // The CPU's products take any strides, the CUDA kernels whole vectors.
    let x = if x.device().is_cuda() { &x.contiguous()? } else { x };
    let precision = super::precision_for(x, precision);
    x.apply_op1(RbeMatMul { weight: weight.clone(), gradient: gradient.clone(), precision })
}

/// `y = x W' + bias`, for `x` and `W` as [`matmul`] takes them and `bias` of shape `(out)` and `x`'s type. Differentiable in `x` and `bias`.
/// On a CUDA device it is added where the product is written: for one token that is one launch.
///
/// # Errors
/// As [`matmul`], and when `bias` has another shape or type or is on another device.
pub fn matmul_with_bias(
    x: &Tensor,
    weight: &RbeTensor,
    bias: &Tensor,
    precision: Precision,
) -> Result<Tensor> {
    expect_matrix(weight)?;
    super::expect_device(x, weight, NAME)?;
    expect_bias(x, weight, bias, NAME)?;
    if !x.device().is_cuda() {
        return matmul(x, weight, precision)?.broadcast_add(bias);
    }
    let precision = super::precision_for(x, precision);
    x.contiguous()?.apply_op2(&bias.contiguous()?, RbeMatMulBias { weight: weight.clone(), precision })
}

const NAME: &str = "rbe-matmul";

/// Refuses a bias that is not the weight's and the input's.
pub(super) fn expect_bias(x: &Tensor, weight: &RbeTensor, bias: &Tensor, op: &str) -> Result<()> {
    let (out_features, _) = weight.shape().dims2()?;
    if bias.dims() == [out_features] && bias.dtype() == x.dtype() {
        return Ok(());
    }
    let (shape, dtype) = (bias.shape(), bias.dtype());
    bail!(
        "{op}: a bias of shape {shape:?} in {dtype:?}, where the weight has {out_features} rows and the input is {:?}",
        x.dtype()
    )
}

fn expect_matrix(weight: &RbeTensor) -> Result<()> {
    if weight.shape().rank() != 2 {
        bail!("a product needs a compressed matrix, not a tensor of shape {:?}", weight.shape());
    }
    Ok(())
}

struct RbeMatMul {
    weight: RbeTensor,
    /// What the gradient flows back through.
    gradient: RbeTensor,
    precision: Precision,
}

/// `(.., out)` for an input `(.., in)`.
pub(super) fn output_shape(weight: &RbeTensor, input: &Layout, op: &str) -> Result<Shape> {
    let (out_features, in_features) = weight.shape().dims2()?;
    match input.dims().split_last() {
        Some((&last, leading)) if last == in_features => Ok(Shape::from([leading, &[out_features]].concat())),
        _ => bail!(
            "{op}: input of shape {:?} with a weight of shape ({out_features}, {in_features})",
            input.shape()
        ),
    }
}

impl CustomOp1 for RbeMatMul {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let shape = output_shape(&self.weight, layout, NAME)?;
        let x = to_f32(storage, layout, self.name())?;
        let weight = self.weight.oriented()?;
        let y = cpu::matmul_all(&[weight], rows(&x, layout), self.precision, &CandlePool);
        Ok((from_f32(y, dtype_of(storage), self.name())?, shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let shape = output_shape(&self.weight, layout, NAME)?;
        let transposed = self.weight.is_transposed();
        let asked = cuda::Asked { x: (storage, layout), transposed, op: NAME };
        Ok((cuda::matmul(&[(self.weight.on_cuda()?, None)], &asked)?, shape))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(matmul(dy, &self.gradient.t()?, self.precision)?))
    }
}

struct RbeMatMulBias {
    weight: RbeTensor,
    precision: Precision,
}

impl CustomOp2 for RbeMatMulBias {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        _x: &CpuStorage,
        _: &Layout,
        _bias: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("{NAME}: on the CPU a bias is added to the product")
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let shape = output_shape(&self.weight, x_layout, NAME)?;
        let transposed = self.weight.is_transposed();
        let asked = cuda::Asked { x: (x, x_layout), transposed, op: NAME };
        Ok((cuda::matmul(&[(self.weight.on_cuda()?, Some((bias, bias_layout)))], &asked)?, shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = matmul(dy, &self.weight.t()?, self.precision)?;
        let out_features = bias.elem_count();
        let rows = x.elem_count() / x.dims().last().copied().unwrap_or(1).max(1);
        Ok((Some(dx), Some(dy.reshape((rows, out_features))?.sum(0)?)))
    }
}
