//! The product of activations with a compressed weight, into a tensor that is there.

use super::{CandlePool, rows, to_f32};
use crate::RbeTensor;
use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, Result, Tensor, bail};
use rbe_core::cpu::{self, Precision};

/// `y <- x W' + b`, in place: `x` `(.., in)`, `y` `(.., out)`, `b` `(out)`, contiguous F32 tensors on the CPU. Nothing goes
/// into Candle's graph, and nothing is allocated here once as many vectors have been multiplied before.
///
/// # Errors
/// When a tensor has another shape or type or is elsewhere, when the weight is transposed, and when `y` shares its memory with
/// `x` or `b`, as a view of either does.
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
    let op = RbeMatMulInto { weight, precision };
    // Candle locks all that take part in one order, and refuses an output that is an input too. An op that locked the bias
    // by itself would wait for ever where it is the output, or where two threads write what the other one reads.
    match bias {
        None => y.inplace_op2(x, &op),
        Some(bias) => y.inplace_op3(x, bias, &op),
    }
}

const NAME: &str = "rbe-matmul-into";

struct RbeMatMulInto<'a> {
    weight: &'a RbeTensor,
    precision: Precision,
}

impl RbeMatMulInto<'_> {
    fn write(
        &self,
        y: &mut CpuStorage,
        y_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
        bias: Option<(&CpuStorage, &Layout)>,
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
        let bias = bias.map(|(storage, layout)| to_f32(storage, layout, NAME)).transpose()?;
        if let Some(bias) = bias.as_ref().filter(|bias| bias.len() != out_features) {
            bail!("{NAME}: bias of {} elements for {out_features} outputs", bias.len());
        }
        let (CpuStorage::F32(y), Some((start, end))) = (y, y_layout.contiguous_offsets()) else {
            bail!("{NAME} writes contiguous F32 tensors");
        };
        let y = &mut y[start..end];
        let x = to_f32(x, x_layout, NAME)?;
        cpu::matmul(self.weight.oriented()?, rows(&x, x_layout), y, self.precision, &CandlePool);
        if let Some(bias) = bias {
            for y in y.chunks_exact_mut(out_features) {
                y.iter_mut().zip(&*bias).for_each(|(y, bias)| *y += bias);
            }
        }
        Ok(())
    }
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
        self.write(y, y_layout, x, x_layout, None)
    }
}

impl InplaceOp3 for RbeMatMulInto<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        y: &mut CpuStorage,
        y_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<()> {
        self.write(y, y_layout, x, x_layout, Some((bias, bias_layout)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Encoder, EncoderConfig, Rate};
    use candle_core::{DType, Device};

    #[test]
    fn an_output_that_is_an_input_is_refused_and_not_waited_for() -> Result<()> {
        let weight = Tensor::randn(0f32, 1.0, (64, 64), &Device::Cpu)?;
        let weight =
            Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(4.1))).and_then(|e| e.encode(&weight))?;
        let memory = Tensor::ones((4, 64), DType::F32, &Device::Cpu)?;
        let (y, other) = (memory.narrow(0, 0, 1)?, memory.narrow(0, 1, 1)?);
        let x = Tensor::randn(0f32, 1.0, (1, 64), &Device::Cpu)?;
        let into = |x: &Tensor, bias: &Tensor| matmul_into(x, &weight, Some(bias), Precision::Exact, &y);
        for shared in [&y, &other] {
            let bias = shared.squeeze(0)?;
            assert!(into(&x, &bias).unwrap_err().to_string().contains("shares storage"));
            assert!(into(shared, &x.squeeze(0)?).unwrap_err().to_string().contains("shares storage"));
            assert!(matmul_into(shared, &weight, None, Precision::Exact, &y).is_err());
        }
        assert_eq!(y.to_vec2::<f32>()?, [[1f32; 64]]);
        // A bias of a wrong length is refused before anything is written; one that is another's input may be both.
        assert!(into(&x, &x.narrow(1, 0, 32)?.squeeze(0)?).is_err());
        assert_eq!(y.to_vec2::<f32>()?, [[1f32; 64]]);
        into(&x, &x.squeeze(0)?)?;
        let product = super::super::matmul(&x, &weight, Precision::Exact)?;
        let difference = (y - (product + x)?)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(difference < 1e-5, "{difference}");
        Ok(())
    }
}
