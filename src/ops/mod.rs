//! Candle custom ops on compressed tensors.

mod attention;
mod dense;
mod gate;
mod gather;
mod matmul;
mod matmul_all;
mod matmul_into;
mod norm;
mod parametric;
mod pool;

pub use attention::{AttentionMask, attention};
pub(crate) use dense::dense_forward;
pub use gate::silu_mul;
pub use gather::gather;
pub(crate) use matmul::matmul_with_gradient;
pub use matmul::{matmul, matmul_with_bias};
pub use matmul_all::matmul_all;
pub(crate) use matmul_all::matmul_all_with_biases;
pub use matmul_into::matmul_into;
pub use norm::{layer_norm, rms_norm};
pub use parametric::parametric_matmul;

use crate::RbeTensor;
use candle_core::{CpuStorage, DType, DeviceLocation, Layout, Result, Storage, Tensor, bail};
pub(crate) use pool::CandlePool;
use rbe_core::cpu::{Precision, Rows};
use std::borrow::Cow;

/// The precision of a product with `x`: where a gradient is to go through it, that whose gradient it will be.
fn precision_for(x: &Tensor, precision: Precision) -> Precision {
    if precision == Precision::Auto && x.track_op() { Precision::Exact } else { precision }
}

/// All but the last dimension of an input as a batch.
fn rows<'a>(values: &'a [f32], layout: &Layout) -> Rows<'a> {
    let len = layout.dims().last().copied().unwrap_or(1);
    Rows::new(values, values.len() / len.max(1), len)
}

/// The elements of a tensor on the CPU in row-major order as F32.
fn values_of(tensor: &Tensor, op: &str) -> Result<Vec<f32>> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(to_f32(storage, layout, op)?.into_owned()),
        _ => bail!("{op} takes tensors on the CPU, not on {:?}", tensor.device().location()),
    }
}

/// Refuses an input on another device than the weight's.
fn expect_device(input: &Tensor, weight: &RbeTensor, op: &str) -> Result<()> {
    if input.device().same_device(weight.device()) {
        return Ok(());
    }
    bail!("{op}: {}", apart(input.device().location(), weight.device().location()));
}

/// What is wrong where an input is on another device than the weight, and what to do.
fn apart(input: DeviceLocation, weight: DeviceLocation) -> String {
    if input == weight {
        return format!(
            "the input and the compressed tensor are on two `Device`s that were made for {input:?} one after the other: make one, \
             and give each a clone of it"
        );
    }
    format!(
        "the input is on {input:?} and the compressed tensor on {weight:?}: move one of them by `to_device`"
    )
}

/// The elements of a CPU tensor in row-major order as F32, whatever its strides, offset and float type; those of a
/// contiguous F32 tensor where they lie.
fn to_f32<'a>(storage: &'a CpuStorage, layout: &Layout, op: &str) -> Result<Cow<'a, [f32]>> {
    match storage {
        CpuStorage::F32(values) => Ok(match layout.contiguous_offsets() {
            Some((start, end)) => Cow::Borrowed(&values[start..end]),
            None => elements(values, layout, |value| value).into(),
        }),
        CpuStorage::F16(values) => Ok(elements(values, layout, half::f16::to_f32).into()),
        CpuStorage::BF16(values) => Ok(elements(values, layout, half::bf16::to_f32).into()),
        other => bail!("{op} takes F32, F16 or BF16, not {:?}", dtype_of(other)),
    }
}

/// `f` of the elements that `layout` sees in `values`, in row-major order.
fn elements<T: Copy, U>(values: &[T], layout: &Layout, f: impl Fn(T) -> U) -> Vec<U> {
    if let Some((start, end)) = layout.contiguous_offsets() {
        return values[start..end].iter().map(|value| f(*value)).collect();
    }
    // Offsets of all positions, one dimension after another: the first varies slowest.
    let mut offsets = vec![layout.start_offset()];
    for (&len, &stride) in layout.dims().iter().zip(layout.stride()) {
        offsets = offsets.iter().flat_map(|offset| (0..len).map(move |n| offset + n * stride)).collect();
    }
    offsets.into_iter().map(|offset| f(values[offset])).collect()
}

/// F32 values as a CPU tensor of one of the float types that [`to_f32`] takes.
fn from_f32(values: Vec<f32>, dtype: DType, op: &str) -> Result<CpuStorage> {
    match dtype {
        DType::F32 => Ok(CpuStorage::F32(values)),
        DType::F16 => Ok(CpuStorage::F16(values.into_iter().map(half::f16::from_f32).collect())),
        DType::BF16 => Ok(CpuStorage::BF16(values.into_iter().map(half::bf16::from_f32).collect())),
        other => bail!("{op} gives F32, F16 or BF16, not {other:?}"),
    }
}

fn dtype_of(storage: &CpuStorage) -> DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_on_another_device_is_refused_with_what_to_do() {
        let (first, second) = (DeviceLocation::Cuda { gpu_id: 0 }, DeviceLocation::Cuda { gpu_id: 1 });
        let said = apart(first, second);
        assert!(
            said.contains("gpu_id: 0") && said.contains("gpu_id: 1") && said.contains("to_device"),
            "{said}"
        );
        assert!(apart(first, DeviceLocation::Cpu).contains("Cpu"));
        // Each `Device::new_cuda` makes a device of its own, also of one card.
        assert!(apart(first, first).contains("a clone of it"));
    }
}
