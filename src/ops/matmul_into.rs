//! The product of activations with a compressed weight, into a tensor that is there.

use super::{CandlePool, to_f32};
use crate::RbeTensor;
use crate::cpu::{self, Precision};
use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Storage, Tensor, bail};

/// `y <- x W' + b`, in place: `x` `(.., in)`, `y` `(.., out)`, `b` `(out)`, contiguous F32 tensors on the CPU. Nothing goes
/// into Candle's graph, and nothing is allocated here once as many vectors have been multiplied before.
///
/// # Errors
/// When a tensor has another shape or type or is elsewhere, and when the weight is transposed.
pub fn matmul_into(
    x: &Tensor,
    weight: &RbeTensor,
    bias: Option<&Tensor>,
    precision: Precision,
    y: &Tensor,
) -> Result<()> {
    if weight.is_transposed() || weight.shape().rank() != 2 {
        bail!("{NAME} takes compressed matrices as they are stored, not transposed ones or vectors");
    }
    for tensor in [Some(x), Some(y), bias].into_iter().flatten() {
        super::expect_device(tensor, weight, NAME)?;
        if !tensor.device().is_cpu() {
            bail!("{NAME} writes on the CPU, not on {:?}", tensor.device().location());
        }
    }
    y.inplace_op2(x, &RbeMatMulInto { weight, bias, precision })
}

const NAME: &str = "rbe-matmul-into";

struct RbeMatMulInto<'a> {
    weight: &'a RbeTensor,
    bias: Option<&'a Tensor>,
    precision: Precision,
}

impl InplaceOp2 for RbeMatMulInto<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        y: &mut CpuStorage,
        y_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
    ) -> Result<()> {
        let (out_features, in_features) = self.weight.shape().dims2()?;
        // Compared in place: a shape of its own would be allocated.
        let fits = match (x_layout.dims().split_last(), y_layout.dims().split_last()) {
            (Some((ins, x_leading)), Some((outs, y_leading))) => {
                (ins, outs, x_leading) == (&in_features, &out_features, y_leading)
            }
            _ => false,
        };
        if !fits {
            bail!(
                "{NAME}: input of shape {:?} and output of shape {:?} with a weight of shape ({out_features}, {in_features})",
                x_layout.shape(),
                y_layout.shape()
            );
        }
        let (CpuStorage::F32(y), Some((start, end))) = (y, y_layout.contiguous_offsets()) else {
            bail!("{NAME} writes contiguous F32 tensors");
        };
        let y = &mut y[start..end];
        let x = to_f32(x, x_layout, NAME)?;
        cpu::product(self.weight.loaded(), &x, x.len() / in_features, y, self.precision, &CandlePool);
        if let Some(bias) = self.bias {
            let (storage, layout) = bias.storage_and_layout();
            let Storage::Cpu(storage) = &*storage else { bail!("{NAME}: a bias that is not on the CPU") };
            let bias = to_f32(storage, layout, NAME)?;
            if bias.len() != out_features {
                bail!("{NAME}: bias of {} elements for {out_features} outputs", bias.len());
            }
            for y in y.chunks_exact_mut(out_features) {
                y.iter_mut().zip(&*bias).for_each(|(y, bias)| *y += bias);
            }
        }
        Ok(())
    }
}
