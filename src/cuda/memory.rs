//! A CUDA device's memory: what is freed with its owner, what is kept for products, and the pool that it comes from.

use super::kept::Kept;
use super::machine::exhausted;
use crate::error::Result;
use candle_core::CudaDevice;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};
use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};
use sys::CUmemPool_attribute as Attribute;

/// Memory of this crate's own, or the address of what somebody else keeps alive.
#[derive(Debug)]
pub(crate) enum CudaMemory {
    Owned(Owned),
    Address(u64),
}

impl CudaMemory {
    pub(super) fn address(&self) -> u64 {
        match self {
            CudaMemory::Owned(owned) => owned.address,
            CudaMemory::Address(address) => *address,
        }
    }
}

/// An allocation, or why there is none.
pub(super) fn made<T>(device: &CudaDevice, bytes: usize, made: Result<T, DriverError>) -> Result<T> {
    match made {
        Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
            Err(exhausted(bytes, free_bytes(device.cuda_stream().context())?))
        }
        made => Ok(made.w()?),
    }
}

/// Memory that one stream uses and, in its order, frees. No event says what becomes of it, so none is recorded or waited for.
#[derive(Debug)]
pub(crate) struct Owned {
    address: u64,
    bytes: usize,
    stream: Arc<CudaStream>,
}

impl Owned {
    /// Takes over an allocation of so many bytes.
    ///
    /// # Safety
    /// It was made on this stream, nobody else frees it, and no other stream uses it but after a synchronisation.
    pub(super) unsafe fn new(address: u64, bytes: usize, stream: Arc<CudaStream>) -> Self {
        Self { address, bytes, stream }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: see `new`.
        drop(unsafe { self.stream.upgrade_device_ptr::<u8>(self.address, self.bytes) });
    }
}

/// What a thread's products keep on a stream.
#[derive(Default)]
struct Workspace {
    scratch: Kept<CudaMemory>,
    counters: Kept<CudaMemory>,
    /// Kept too: else another stream might get its address, and this memory while products of the old one still run.
    _stream: Option<Arc<CudaStream>>,
}

/// The workspaces of a thread, by device and stream. (Candle's stream is a name for each thread's own.)
#[derive(Default)]
struct OfThread(HashMap<(usize, usize), Workspace>);

/// The workspaces of threads that have ended, with their devices.
static SPARE: Mutex<Vec<(usize, Workspace)>> = Mutex::new(Vec::new());

thread_local! {
    static OF_THREAD: RefCell<OfThread> = RefCell::default();
}

impl Drop for OfThread {
    fn drop(&mut self) {
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        spare.extend(self.0.drain().map(|((ordinal, _), workspace)| (ordinal, workspace)));
    }
}

/// Which of a workspace's memories.
#[derive(Clone, Copy)]
pub(super) enum Use {
    Scratch,
    Counters,
}

/// Memory of this thread on the device's stream, of `bytes` at least, that is never freed; counters are zero when it is made.
pub(super) fn kept(device: &CudaDevice, usage: Use, bytes: usize) -> Result<Arc<CudaMemory>> {
    let stream = device.cuda_stream();
    let context = stream.context();
    let key = (context.ordinal(), stream.cu_stream().addr());
    OF_THREAD.with_borrow_mut(|OfThread(workspaces)| {
        let workspace = match workspaces.entry(key) {
            Entry::Occupied(workspace) => workspace.into_mut(),
            Entry::Vacant(place) => {
                place.insert(Workspace { _stream: Some(stream.clone()), ..spare(context)? })
            }
        };
        match usage {
            Use::Scratch => workspace.scratch.get(bytes, |bytes| {
                // SAFETY: whatever the memory holds, it is read only by kernels and after they wrote it.
                let scratch = unsafe { stream.alloc::<u8>(bytes) };
                Ok(CudaMemory::Address(made(device, bytes, scratch)?.leak()))
            }),
            Use::Counters => workspace.counters.get(bytes, |bytes| {
                let counters = stream.alloc_zeros::<u8>(bytes);
                Ok(CudaMemory::Address(made(device, bytes, counters)?.leak()))
            }),
        }
    })
}

/// A workspace that a thread on this device has left, or a new one.
fn spare(context: &CudaContext) -> Result<Workspace> {
    let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(index) = spare.iter().position(|(ordinal, _)| *ordinal == context.ordinal()) else {
        return Ok(Workspace::default());
    };
    // The products of the thread that left it may not have run yet.
    context.synchronize().w()?;
    Ok(spare.swap_remove(index).1)
}

/// The pool that a device's allocations come from.
struct Pool(sys::CUmemoryPool);

impl Pool {
    /// `None` where the device has none.
    fn of(context: &CudaContext) -> Option<Self> {
        if !context.has_async_alloc() {
            return None;
        }
        // SAFETY: the context has the device.
        unsafe { result::device::get_mem_pool(context.cu_device()) }.ok().map(Self)
    }

    fn get(&self, attribute: Attribute) -> Result<u64> {
        let mut value = 0u64;
        // SAFETY: each attribute that is asked for here is 64 bits wide.
        unsafe { result::mem_pool::get_attribute(self.0, attribute, (&raw mut value).cast::<c_void>()) }
            .w()?;
        Ok(value)
    }

    fn set(&self, attribute: Attribute, mut value: u64) -> Result<()> {
        // SAFETY: as in `get`.
        unsafe { result::mem_pool::set_attribute(self.0, attribute, (&raw mut value).cast::<c_void>()) }
            .w()?;
        Ok(())
    }
}

/// Lets the device's pool keep what is freed, where nobody has said how much it keeps: by default it gives all of it back to the driver
/// whenever somebody waits for the device, that is, with every token.
///
/// # Errors
/// When the driver refuses.
pub(super) fn keep_pool(context: &CudaContext) -> Result<()> {
    let Some(pool) = Pool::of(context) else { return Ok(()) };
    if pool.get(Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD)? == 0 {
        pool.set(Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX)?;
    }
    Ok(())
}

/// Bytes of the device that can be had: those nobody has, and those that the pool keeps and nobody uses.
///
/// # Errors
/// When the driver does not say.
pub(super) fn free_bytes(context: &CudaContext) -> Result<usize> {
    let (mut free, _) = context.mem_get_info().w()?;
    if let Some(pool) = Pool::of(context) {
        let reserved = pool.get(Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
        let used = pool.get(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
        free += usize::try_from(reserved.saturating_sub(used)).unwrap_or(0);
    }
    Ok(free)
}
