//! The gate of a feed-forward layer, fused, with gradients.

use super::{CandlePool, dtype_of, from_f32, to_f32};
use crate::Error;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use candle_nn::ops::sigmoid;
use rbe_core::cpu;

/// `silu(gate) * up` of tensors of one shape, with `silu(x) = x / (1 + exp(-x))`: SwiGLU (Shazeer, arXiv 2002.05202) in one pass.
/// Relative error below 1e-6. Differentiable in both.
///
/// # Errors
/// When the shapes or types differ, or a tensor is not F32, F16 or BF16 on the CPU.
pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    cpu::requested_level().map_err(Error::from)?;
    gate.apply_op2(up, SiluMul)
}

struct SiluMul;

const NAME: &str = "silu-mul";

impl CustomOp2 for SiluMul {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (shape, dtype) = (gate_layout.shape(), dtype_of(gate));
        if shape != up_layout.shape() || dtype != dtype_of(up) {
            let (other, other_dtype) = (up_layout.shape(), dtype_of(up));
            bail!("{NAME}: a gate of shape {shape:?} and {dtype:?} with {other:?} and {other_dtype:?}");
        }
        let (gate, up) = (to_f32(gate, gate_layout, NAME)?, to_f32(up, up_layout, NAME)?);
        let mut out = cpu::zeros(gate.len(), &CandlePool);
        cpu::silu_mul(&gate, &up, &mut out, &CandlePool);
        Ok((from_f32(out, dtype, NAME)?, shape.clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let sigmoid = sigmoid(gate)?;
        let silu = (gate * &sigmoid)?;
        // silu'(x) = s + silu(x) (1 - s).
        let slope = (&sigmoid + (&silu * (1.0 - &sigmoid)?)?)?;
        Ok((Some(((g * up)? * slope)?), Some((g * silu)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};

    fn inputs() -> Result<(Var, Var)> {
        let values = (0..3 * 1009).map(|n| ((n * 37 % 401) as f32 - 200.0) * 0.5);
        let gate = Tensor::from_iter(values, &Device::Cpu)?.reshape((3, 1009))?;
        let up =
            Tensor::from_iter((0..3 * 1009).map(|n| (n as f32).sin()), &Device::Cpu)?.reshape((3, 1009))?;
        Ok((Var::from_tensor(&gate)?, Var::from_tensor(&up)?))
    }

    /// The largest difference, beside the larger of 1 and what is expected.
    fn difference(a: &Tensor, expected: &Tensor) -> Result<f32> {
        ((a - expected)?.abs()? / expected.abs()?.maximum(1.0)?)?.flatten_all()?.max(0)?.to_scalar()
    }

    #[test]
    fn value_and_gradients_are_those_of_candles_operations() -> Result<()> {
        let (gate, up) = inputs()?;
        let (ours, candles) = (silu_mul(&gate, &up)?, (gate.silu()? * up.as_tensor())?);
        assert!(difference(&ours, &candles)? < 1e-6);
        let weight = up.affine(0.3, 0.1)?.detach();
        let gradients = |y: &Tensor| -> Result<[Tensor; 2]> {
            let all = (y * &weight)?.sum_all()?.backward()?;
            Ok([&gate, &up].map(|of| all.get(of).expect("it depends on both").clone()))
        };
        for (ours, candles) in gradients(&ours)?.iter().zip(&gradients(&candles)?) {
            assert!(difference(ours, candles)? < 1e-5);
        }
        Ok(())
    }

    #[test]
    fn extremes_are_what_they_are_by_the_formula() -> Result<()> {
        let gate = [0.0, -0.0, 100.0, -100.0, 1e30, -1e30, f32::INFINITY, f32::NAN];
        let ones = Tensor::ones(gate.len(), DType::F32, &Device::Cpu)?;
        let found = silu_mul(&Tensor::new(&gate, &Device::Cpu)?, &ones)?.to_vec1::<f32>()?;
        assert_eq!(found[..7], [0.0, 0.0, 100.0, -0.0, 1e30, -0.0, f32::INFINITY]);
        assert!(found[7].is_nan());
        Ok(())
    }

    #[test]
    fn any_layout_and_float_type_is_taken_and_what_differs_refused() -> Result<()> {
        let (gate, up) = inputs()?;
        let (gate, up) = (gate.t()?, up.t()?);
        let expected = (gate.silu()? * &up)?;
        assert!(difference(&silu_mul(&gate, &up)?, &expected)? < 1e-6);
        let half = silu_mul(&gate.to_dtype(DType::F16)?, &up.to_dtype(DType::F16)?)?;
        assert_eq!(half.dtype(), DType::F16);
        assert!(difference(&half.to_dtype(DType::F32)?, &expected)? < 2e-3);
        for (gate, up) in [(gate.clone(), up.t()?), (gate.to_dtype(DType::F16)?, up.clone())] {
            let error = silu_mul(&gate, &up).unwrap_err().to_string();
            assert!(error.contains("a gate of shape"), "{error}");
        }
        Ok(())
    }
}
