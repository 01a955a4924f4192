//! The products of one input with several compressed weights.

use super::matmul::{expect_bias, matmul, matmul_with_bias, output_shape};
use super::{CandlePool, dtype_of, from_f32, rows, to_f32};
use crate::RbeTensor;
#[cfg(feature = "cuda")]
use crate::cuda;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, Storage, bail};
use rbe_core::cpu::{self, Precision};

/// `y_n = x W_n'` for `x` of shape `(.., in)` and compressed `W_n` of shapes `(out_n, in)`; each `y_n` is `(.., out_n)` of
/// `x`'s type. The same as [`matmul`] of each, on the CPU to the bit, but neighbours with one seed, block edge and transform, as one encoder
/// makes them, share the transform of `x`: queries, keys and values, say. Differentiable in `x`.
///
/// On a CUDA device products of one token transform `x` themselves, each in its only launch; with more tokens one launch does it for all.
/// Of transposed tensors each is a product of its own.
///
/// # Errors
/// As [`matmul`].
pub fn matmul_all(x: &Tensor, weights: &[&RbeTensor], precision: Precision) -> Result<Vec<Tensor>> {
    let biased: Vec<_> = weights.iter().map(|weight| (*weight, None)).collect();
    matmul_all_with_biases(x, &biased, precision)
}

/// The same, with a bias of shape `(out_n)` and `x`'s type added where there is one. Differentiable in these too.
pub(crate) fn matmul_all_with_biases(
    x: &Tensor,
    weights: &[(&RbeTensor, Option<&Tensor>)],
    precision: Precision,
) -> Result<Vec<Tensor>> {
    let apart = |(weight, bias): &(&RbeTensor, Option<&Tensor>)| {
        let learns = x.device().is_cuda() && bias.is_some_and(Tensor::track_op);
        learns || weight.is_transposed() || weight.shape().rank() != 2
    };
    if weights.len() < 2 || weights.iter().any(apart) {
        return weights
            .iter()
            .map(|(weight, bias)| match bias {
                Some(bias) => matmul_with_bias(x, weight, bias, precision),
                None => matmul(x, weight, precision),
            })
            .collect();
    }
    for (weight, bias) in weights {
        super::expect_device(x, weight, NAME)?;
        bias.map(|bias| expect_bias(x, weight, bias, NAME)).transpose()?;
    }
    let precision = super::precision_for(x, precision);
    let (biases, on_device) = (weights.iter().map(|(_, bias)| *bias), x.device().is_cuda());
    let op = RbeMatMulAll {
        weights: weights.iter().map(|(weight, _)| (*weight).clone()).collect(),
        biases: biases
            .clone()
            .map(|bias| bias.filter(|_| on_device).map(Tensor::contiguous).transpose())
            .collect::<Result<_>>()?,
        precision,
    };
    let shapes = op.output_shapes(x.layout())?;
    // The CPU's products take any strides, the CUDA kernels whole vectors.
    let joined = if on_device { x.contiguous()?.apply_op1(op)? } else { x.apply_op1(op)? };
    let mut first = 0;
    let part = |(shape, bias): (Shape, Option<&Tensor>)| {
        let len = shape.elem_count();
        first += len;
        let y = joined.narrow(0, first - len, len)?.reshape(shape)?;
        bias.filter(|_| !on_device).map_or(Ok(y.clone()), |bias| y.broadcast_add(bias))
    };
    shapes.into_iter().zip(biases).map(part).collect()
}

const NAME: &str = "rbe-matmul-all";

/// Its output is every product's, one after another.
struct RbeMatMulAll {
    weights: Vec<RbeTensor>,
    /// On a CUDA device, where no gradient goes through them.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    biases: Vec<Option<Tensor>>,
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
        let x = to_f32(storage, layout, NAME)?;
        let matrices = self.weights.iter().map(RbeTensor::oriented).collect::<crate::Result<Vec<_>>>()?;
        let joined = cpu::matmul_all(&matrices, rows(&x, layout), self.precision, &CandlePool);
        let shape = Shape::from(joined.len());
        Ok((from_f32(joined, dtype_of(storage), NAME)?, shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let len: usize = self.output_shapes(layout)?.iter().map(Shape::elem_count).sum();
        let biases: Vec<_> =
            self.biases.iter().map(|bias| bias.as_ref().map(Tensor::storage_and_layout)).collect();
        let weights = self.weights.iter().zip(&biases).map(|(weight, bias)| {
            let bias = match bias {
                None => None,
                Some((storage, layout)) => match &**storage {
                    Storage::Cuda(storage) => Some((storage, *layout)),
                    _ => bail!("{NAME}: a bias on another device than the input: move it by `to_device`"),
                },
            };
            Ok((&**weight.on_cuda()?, bias))
        });
        let weights: Vec<cuda::Weight<'_>> = weights.collect::<Result<_>>()?;
        let asked = cuda::Asked { x: (storage, layout), transposed: false, op: NAME };
        Ok((cuda::matmul(&weights, &asked)?, Shape::from(len)))
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
