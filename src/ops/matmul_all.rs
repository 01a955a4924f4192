//! The products of one input with several compressed weights.

use super::matmul::{matmul, output_shape};
use super::{CandlePool, dtype_of, from_f32, rows, to_f32};
use crate::RbeTensor;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rbe_core::cpu::{self, Precision};

/// `y_n = x W_n'` for `x` of shape `(.., in)` and compressed `W_n` of shapes `(out_n, in)`; each `y_n` is `(.., out_n)` of
/// `x`'s type. The same bits as [`matmul`] of each, but neighbours with one seed, block edge and transform, as one encoder
/// makes them, share the transform of `x`: queries, keys and values, say. Differentiable in `x`.
///
/// On a CUDA device, and of transposed tensors, each is a product of its own.
///
/// # Errors
/// As [`matmul`].
pub fn matmul_all(x: &Tensor, weights: &[&RbeTensor], precision: Precision) -> Result<Vec<Tensor>> {
    let apart = |weight: &&RbeTensor| weight.is_transposed() || weight.shape().rank() != 2;
    if x.device().is_cuda() || weights.len() < 2 || weights.iter().any(apart) {
        return weights.iter().map(|weight| matmul(x, weight, precision)).collect();
    }
    weights.iter().try_for_each(|weight| super::expect_device(x, weight, NAME))?;
    let precision = super::precision_for(x, precision);
    let op = RbeMatMulAll { weights: weights.iter().map(|weight| (*weight).clone()).collect(), precision };
    let shapes = op.output_shapes(x.layout())?;
    let joined = x.apply_op1(op)?;
    let mut first = 0;
    let part = |shape: Shape| {
        let len = shape.elem_count();
        first += len;
        joined.narrow(0, first - len, len)?.reshape(shape)
    };
    shapes.into_iter().map(part).collect()
}

const NAME: &str = "rbe-matmul-all";

/// Its output is every product's, one after another.
struct RbeMatMulAll {
    weights: Vec<RbeTensor>,
    precision: Precision,
}

impl RbeMatMulAll {
    /// `(.., out_n)` for an input `(.., in)`.
    fn output_shapes(&self, input: &Layout) -> Result<Vec<Shape>> {
        self.weights.iter().map(|weight| output_shape(weight, input, NAME)).collect()
    }
}

impl CustomOp1 for RbeMatMulAll {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let lens: Vec<usize> = self.output_shapes(layout)?.iter().map(Shape::elem_count).collect();
        let x = to_f32(storage, layout, NAME)?;
        let mut joined = vec![0.0; lens.iter().sum()];
        let mut rest = &mut joined[..];
        let mut ys: Vec<&mut [f32]> =
            lens.iter().map(|len| rest.split_off_mut(..*len).unwrap_or_default()).collect();
        let matrices = self.weights.iter().map(RbeTensor::oriented).collect::<crate::Result<Vec<_>>>()?;
        cpu::matmul_all(&matrices, rows(&x, layout), &mut ys, self.precision, &CandlePool);
        let shape = Shape::from(joined.len());
        Ok((from_f32(joined, dtype_of(storage), NAME)?, shape))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let mut first = 0;
        let mut sum: Option<Tensor> = None;
        for (weight, shape) in self.weights.iter().zip(self.output_shapes(x.layout())?) {
            let dy = dy.narrow(0, first, shape.elem_count())?.reshape(&shape)?;
            first += shape.elem_count();
            let share = matmul(&dy, &weight.t()?, self.precision)?;
            sum = Some(match sum {
                Some(sum) => (sum + share)?,
                None => share,
            });
        }
        Ok(sum)
    }
}
