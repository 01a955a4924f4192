//! A token's step on Candle's tensors.

use super::device::CudaMachine;
use super::forward::filled;
use super::machine::Element;
use super::memory::CudaMemory;
use super::step::{Cache, CapturedStep, TokenStep};
use crate::Result;
use candle_core::cuda_backend::cudarc::driver::{CudaStream, DevicePtr, result};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{DType, Storage, Tensor};
use half::{bf16, f16};

/// The state after the last norm, `(1, 1, hidden)`, of the token at `position`, whose keys and values go to it in `caches`, `(1, kv_heads,
/// capacity, head_dim)` a layer. `embedding` `(1, 1, hidden)` is its own; `turns` are the rotations there. `None` where a tensor is of
/// another type, shape or batch.
pub(crate) fn token(
    captured: &mut CapturedStep<CudaMachine>,
    embedding: &Tensor,
    position: usize,
    turns: &[f32],
    caches: &[(Tensor, Tensor)],
) -> candle_core::Result<Option<Tensor>> {
    let decoder = captured.step().device().clone();
    let (element, hidden) = (decoder.element(), decoder.decoder().hidden);
    let Some(embedding_at) = address(embedding, element, &[1, 1, hidden])? else { return Ok(None) };
    let Some((first, _)) = caches.first() else { return Ok(None) };
    let capacity = first.dim(2)?;
    let mut memories = Vec::with_capacity(caches.len());
    for ((keys, values), layer) in caches.iter().zip(&decoder.decoder().layers) {
        let shape = [1, layer.heads.kv_heads, capacity, layer.heads.width];
        let at =
            |tensor| Ok::<_, candle_core::Error>(address(tensor, element, &shape)?.map(CudaMemory::Address));
        let (Some(keys), Some(values)) = (at(keys)?, at(values)?) else { return Ok(None) };
        memories.push(Cache { keys, values });
    }
    let device = decoder.machine().device();
    let stream = device.cuda_stream();
    let now = TokenStep::<CudaMachine>::now_bytes(u32::try_from(position)?, turns);
    let bytes = hidden * element.bytes();
    let bring = |step: &TokenStep<CudaMachine>| {
        copy(&stream, &CudaMemory::Address(embedding_at), step.embedding(), bytes)?;
        // SAFETY: the memory is of as many bytes, and is used on this stream.
        unsafe { result::memcpy_htod_async(step.now().address(), &now, stream.cu_stream()).w()? };
        Ok(())
    };
    captured.run(bring, &memories, capacity)?;
    let out = captured.step().out();
    let storage = match element {
        Element::F32 => filled::<f32>(device, hidden, |to| copy(&stream, out, to, bytes))?,
        Element::F16 => filled::<f16>(device, hidden, |to| copy(&stream, out, to, bytes))?,
        Element::BF16 => filled::<bf16>(device, hidden, |to| copy(&stream, out, to, bytes))?,
    };
    Ok(Some(Tensor::from_storage(Storage::Cuda(storage), (1, 1, hidden), BackpropOp::none(), false)))
}

/// So many bytes, which both memories have.
fn copy(stream: &CudaStream, from: &CudaMemory, to: &CudaMemory, bytes: usize) -> Result<()> {
    // SAFETY: both memories are of so many bytes (`address` has checked a tensor's), and are used on this stream.
    unsafe { result::memcpy_dtod_async(to.address(), from.address(), bytes, stream.cu_stream()).w()? };
    Ok(())
}

impl Element {
    /// That of a type of Candle's, if it is one.
    pub(crate) fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::F32),
            DType::F16 => Some(Self::F16),
            DType::BF16 => Some(Self::BF16),
            _ => None,
        }
    }
}

/// Where a contiguous tensor on the card lies; `None` where it is of another type or shape, or elsewhere.
fn address(tensor: &Tensor, element: Element, shape: &[usize]) -> candle_core::Result<Option<u64>> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { return Ok(None) };
    if !layout.is_contiguous() || tensor.dims() != shape {
        return Ok(None);
    }
    let stream = storage.device.cuda_stream();
    let address = match (&storage.slice, element) {
        (CudaStorageSlice::F32(slice), Element::F32) => slice.device_ptr(&stream).0,
        (CudaStorageSlice::F16(slice), Element::F16) => slice.device_ptr(&stream).0,
        (CudaStorageSlice::BF16(slice), Element::BF16) => slice.device_ptr(&stream).0,
        _ => return Ok(None),
    };
    Ok(Some(address + (layout.start_offset() * element.bytes()) as u64))
}
