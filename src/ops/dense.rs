//! The product of activations with a weight that is not compressed.

use super::{CandlePool, rows, to_f32};
use crate::Error;
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};
use candle_nn::Module;
use rbe_core::cpu;

/// A dense layer's `y = x W' + b`, on the threads that multiply compressed weights where both are in F32 on the CPU and no gradient goes
/// through them: Candle's own product has threads of its own, which would wait for those that still look out for the next product.
///
/// # Errors
/// As the layer's.
pub(crate) fn dense_forward(linear: &candle_nn::Linear, x: &Tensor) -> Result<Tensor> {
    let weight = linear.weight();
    let fits = x.rank() > 1 && x.dims().last() == weight.dims().last() && weight.is_contiguous();
    let plain =
        |tensor: &Tensor| tensor.device().is_cpu() && tensor.dtype() == DType::F32 && !tensor.track_op();
    if !fits || !plain(x) || !plain(weight) {
        return linear.forward(x);
    }
    cpu::requested_level().map_err(Error::from)?;
    let y = x.apply_op2_no_bwd(weight, &DenseMatMul)?;
    match linear.bias() {
        None => Ok(y),
        Some(bias) => y.broadcast_add(bias),
    }
}

const NAME: &str = "rbe-dense-matmul";

struct DenseMatMul;

impl CustomOp2 for DenseMatMul {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (CpuStorage::F32(weight), Some((start, end))) = (weight, weight_layout.contiguous_offsets())
        else {
            bail!("{NAME} multiplies by contiguous F32 weights");
        };
        let (out_features, _) = weight_layout.shape().dims2()?;
        let mut shape = x_layout.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = out_features;
        }
        let x = to_f32(x, x_layout, NAME)?;
        let mut y = cpu::zeros(shape.iter().product(), &CandlePool);
        cpu::dense_matmul(&weight[start..end], rows(&x, x_layout), &mut y, &CandlePool);
        Ok((CpuStorage::F32(y), shape.into()))
    }
}
