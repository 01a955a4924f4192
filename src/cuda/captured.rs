//! A token's step on Candle's device, as a CUDA graph from the second token on.

use super::device::CudaMachine;
use super::forward::filled;
use super::machine::{Element, Machine};
use super::memory::CudaMemory;
use super::step::{Cache, DeviceDecoder, TokenStep};
use crate::Result;
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, CudaStream, DevicePtr, result, sys};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{DType, Storage, Tensor};
use half::{bf16, f16};
use std::sync::Arc;
use std::thread::{self, ThreadId};

/// A token's step, and the graph of its launches.
pub(crate) struct CapturedStep {
    step: TokenStep<CudaMachine>,
    /// The thread whose stream had the last token. All that a product keeps for a while has been there since.
    ran: Option<ThreadId>,
    graph: Option<Captured>,
}

/// Launches of one thread's stream, with the keys and values that they read and write.
struct Captured {
    graph: CudaGraph,
    addresses: Vec<u64>,
    capacity: usize,
}

// SAFETY: a graph is no thread's own. It is launched through `&mut`, by the thread that captured it: another one captures its own.
unsafe impl Send for Captured {}
// SAFETY: nothing is to be had of it through `&`.
unsafe impl Sync for Captured {}

impl std::fmt::Debug for CapturedStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let launches = if self.graph.is_some() { "as a graph" } else { "one by one" };
        write!(f, "CapturedStep({:?}, {launches})", self.step)
    }
}

impl Drop for CapturedStep {
    fn drop(&mut self) {
        // Launches of another thread's stream may not have run yet.
        let _ = self.step.device().machine().wait_for_all();
    }
}

impl CapturedStep {
    pub(crate) fn new(decoder: Arc<DeviceDecoder<CudaMachine>>) -> Result<Self> {
        Ok(Self { step: TokenStep::new(decoder)?, ran: None, graph: None })
    }

    /// Whether it is of this decoder.
    pub(crate) fn is_of(&self, decoder: &Arc<DeviceDecoder<CudaMachine>>) -> bool {
        Arc::ptr_eq(self.step.device(), decoder)
    }

    /// The state after the last norm, `(1, 1, hidden)`, of the token at `position`, whose keys and values go to it in `caches`, `(1, kv_heads,
    /// capacity, head_dim)` a layer. `embedding` `(1, 1, hidden)` is its own; `turns` are the rotations there. `None` where a tensor is of
    /// another type, shape or batch.
    pub(crate) fn token(
        &mut self,
        embedding: &Tensor,
        position: usize,
        turns: &[f32],
        caches: &[(Tensor, Tensor)],
    ) -> candle_core::Result<Option<Tensor>> {
        let (element, hidden) = (self.step.device().element(), self.step.device().decoder().hidden);
        let Some(embedding_at) = address(embedding, element, &[1, 1, hidden])? else { return Ok(None) };
        let Some((first, _)) = caches.first() else { return Ok(None) };
        let capacity = first.dim(2)?;
        let mut addresses = Vec::with_capacity(2 * caches.len());
        for ((keys, values), layer) in caches.iter().zip(&self.step.device().decoder().layers) {
            for tensor in [keys, values] {
                let shape = [1, layer.heads.kv_heads, capacity, layer.heads.width];
                let Some(address) = address(tensor, element, &shape)? else { return Ok(None) };
                addresses.push(address);
            }
        }
        let device = self.step.device().machine().device().clone();
        let stream = device.cuda_stream();
        let now = TokenStep::<CudaMachine>::now_bytes(u32::try_from(position)?, turns);
        let bytes = hidden * element.bytes();
        // SAFETY: both memories are of so many bytes (`address` has checked the tensor's), and are used on this stream.
        unsafe {
            result::memcpy_dtod_async(
                self.step.embedding().address(),
                embedding_at,
                bytes,
                stream.cu_stream(),
            )
            .w()?;
            result::memcpy_htod_async(self.step.now().address(), &now, stream.cu_stream()).w()?;
        }
        self.launch(&stream, addresses, capacity)?;
        let storage = match element {
            Element::F32 => filled::<f32>(&device, hidden, |out| self.copy_out(&stream, out, bytes))?,
            Element::F16 => filled::<f16>(&device, hidden, |out| self.copy_out(&stream, out, bytes))?,
            Element::BF16 => filled::<bf16>(&device, hidden, |out| self.copy_out(&stream, out, bytes))?,
        };
        Ok(Some(Tensor::from_storage(Storage::Cuda(storage), (1, 1, hidden), BackpropOp::none(), false)))
    }

    fn copy_out(&self, stream: &CudaStream, out: &CudaMemory, bytes: usize) -> Result<()> {
        // SAFETY: both memories are of so many bytes, and are used on this stream.
        unsafe {
            result::memcpy_dtod_async(out.address(), self.step.out().address(), bytes, stream.cu_stream())
                .w()?;
        }
        Ok(())
    }

    /// The launches of a token: one by one for a thread's first one, else as a graph.
    fn launch(&mut self, stream: &Arc<CudaStream>, addresses: Vec<u64>, capacity: usize) -> Result<()> {
        let thread = thread::current().id();
        if self.ran.is_some_and(|ran| ran != thread) {
            // Nothing orders what the last thread asked for before what this one does.
            self.step.device().machine().wait_for_all()?;
        }
        let has_run_here = self.ran.replace(thread) == Some(thread);
        let is_same = |graph: &Captured| graph.capacity == capacity && graph.addresses == addresses;
        if !has_run_here || !self.graph.as_ref().is_some_and(is_same) {
            self.graph = None;
        }
        if let Some(captured) = &self.graph {
            return Ok(captured.graph.launch().w()?);
        }
        let caches: Vec<_> = addresses
            .chunks_exact(2)
            .map(|pair| Cache { keys: CudaMemory::Address(pair[0]), values: CudaMemory::Address(pair[1]) })
            .collect();
        if has_run_here && let Some(graph) = self.capture(stream, &caches, capacity) {
            graph.launch().w()?;
            self.graph = Some(Captured { graph, addresses, capacity });
            return Ok(());
        }
        self.step.run(&caches, capacity)
    }

    /// The graph of a token's launches; `None` where somebody has waited for the device meanwhile, which ends a capture, or whatever else
    /// the driver has against it: the launches themselves say so then.
    fn capture(
        &self,
        stream: &Arc<CudaStream>,
        caches: &[Cache<CudaMemory>],
        capacity: usize,
    ) -> Option<CudaGraph> {
        // Whatever other threads ask for meanwhile is no part of it.
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).ok()?;
        let launched = self.step.run(caches, capacity);
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = stream.end_capture(flags).ok().flatten();
        graph.filter(|_| launched.is_ok())
    }
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
