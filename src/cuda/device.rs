//! Candle's CUDA device as a [`Machine`].

use super::machine::{Arg, Dense, Element, Launch, Machine, Module, exhausted, expect_capability};
use super::memory::{self, CudaMemory, Owned, Use};
use crate::error::{Error, Result};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaFunction, CudaGraph, CudaModule, CudaSlice, sys};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::{CudaDevice, CudaStorage, Layout};
use rbe_core::codec::sizes;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use sys::CUdevice_attribute as Attribute;
use sys::CUfunction_attribute_enum as FunctionAttribute;

/// What is loaded on each device, by its number: once in a process, whatever tensors and Candle devices there are.
static LOADED: LazyLock<Mutex<HashMap<usize, Loaded>>> = LazyLock::new(Mutex::default);

/// Modules and kernels of a device, by name.
#[derive(Default)]
struct Loaded {
    modules: HashMap<&'static str, Arc<CudaModule>>,
    functions: HashMap<String, Kernel>,
}

/// A kernel, and whether its code waits for the launch before it, as that of compute capability 9.0 does.
#[derive(Clone)]
struct Kernel {
    function: CudaFunction,
    waits: bool,
}

/// A Candle device, and what launches need to know of it.
#[derive(Clone, Debug)]
pub(crate) struct CudaMachine {
    device: CudaDevice,
    multiprocessors: usize,
    shared_bytes_limit: usize,
}

/// The first driver, 12.3, that takes launches into a graph which may begin before the ones before them have ended.
const CAPTURES_OVERLAPS: i32 = 12_030;

fn driver_version() -> Result<i32> {
    let mut version = 0;
    // SAFETY: the driver writes an int.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().w()?;
    Ok(version)
}

/// A value as `cuLaunchKernelEx` takes it.
enum Value {
    Address(u64),
    Int(i32),
    Float(f32),
}

impl Value {
    fn address(&mut self) -> *mut c_void {
        match self {
            Value::Address(address) => (&raw mut *address).cast(),
            Value::Int(int) => (&raw mut *int).cast(),
            Value::Float(float) => (&raw mut *float).cast(),
        }
    }
}

impl CudaMachine {
    /// Looks the device over, and lets its pool keep what is freed.
    ///
    /// # Errors
    /// When it is too old for the kernels.
    pub(crate) fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        let context = stream.context();
        let attribute = |attribute| -> Result<usize> {
            let value = context.attribute(attribute).w()?;
            Ok(usize::try_from(value).unwrap_or(0))
        };
        expect_capability(&context.name().w()?, context.compute_capability().w()?)?;
        memory::keep_pool(context)?;
        Ok(Self {
            device: device.clone(),
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes_limit: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        })
    }

    /// A kernel, looked up once; it may have as much shared memory as the device gives.
    fn kernel(&self, module: Module, kernel: &str) -> Result<Kernel> {
        let stream = self.device.cuda_stream();
        let context = stream.context();
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let Loaded { modules, functions } = loaded.entry(context.ordinal()).or_default();
        if let Some(kernel) = functions.get(kernel) {
            return Ok(kernel.clone());
        }
        let module = match modules.entry(module.name()) {
            Entry::Occupied(module) => module.into_mut(),
            Entry::Vacant(place) => {
                place.insert(context.load_module(Ptx::from_binary(fatbin(module).to_vec())).w()?)
            }
        };
        let function = module.load_function(kernel).w()?;
        let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let bytes = i32::try_from(self.shared_bytes_limit).unwrap_or(i32::MAX);
        function.set_attribute(attribute, bytes).w()?;
        // What the driver made of PTX for older cards has that PTX's version.
        let compiled_for = function.get_attribute(FunctionAttribute::CU_FUNC_ATTRIBUTE_PTX_VERSION).w()?;
        let found = Kernel { function, waits: compiled_for >= 90 && driver_version()? >= CAPTURES_OVERLAPS };
        functions.insert(kernel.to_owned(), found.clone());
        Ok(found)
    }

    pub(crate) fn device(&self) -> &CudaDevice {
        &self.device
    }

    /// Refuses so many bytes where the device has not as many left.
    pub(crate) fn expect_room(&self, bytes: usize) -> Result<()> {
        let free = memory::free_bytes(self.device.cuda_stream().context())?;
        if bytes > free { Err(exhausted(bytes, free)) } else { Ok(()) }
    }

    /// The owner of an allocation that this device's stream was asked for.
    fn own(&self, slice: CudaSlice<u8>) -> CudaMemory {
        let bytes = slice.num_bytes();
        // SAFETY: the slice does not free it any more; all launches are on this stream.
        CudaMemory::Owned(unsafe { Owned::new(slice.leak(), bytes, self.device.cuda_stream()) })
    }

    /// The memory as a storage of Candle's, of `len` elements.
    fn alias(&self, memory: &CudaMemory, element: Element, len: usize) -> Alias {
        let (stream, address) = (self.device.cuda_stream(), memory.address());
        // SAFETY: the memory has so many elements (both come from one layout), is used on this stream alone, and outlives
        // the alias, which never frees it.
        let slice = unsafe {
            match element {
                Element::F32 => CudaStorageSlice::F32(stream.upgrade_device_ptr(address, len)),
                Element::F16 => CudaStorageSlice::F16(stream.upgrade_device_ptr(address, len)),
                Element::BF16 => CudaStorageSlice::BF16(stream.upgrade_device_ptr(address, len)),
            }
        };
        Alias(Some(CudaStorage { slice, device: self.device.clone() }))
    }
}

/// A view of a memory as Candle's own, which must not free it.
struct Alias(Option<CudaStorage>);

impl Alias {
    fn storage(&self) -> Result<&CudaStorage> {
        self.0.as_ref().ok_or_else(|| Error::config("an alias of no memory"))
    }
}

impl Drop for Alias {
    fn drop(&mut self) {
        self.0.take().map(release);
    }
}

/// The address and bytes of a storage that frees its memory no more.
fn release(storage: CudaStorage) -> (u64, usize) {
    fn parts<T>(slice: CudaSlice<T>) -> (u64, usize) {
        let bytes = slice.num_bytes();
        (slice.leak(), bytes)
    }
    match storage.slice {
        CudaStorageSlice::F32(slice) => parts(slice),
        CudaStorageSlice::F16(slice) => parts(slice),
        CudaStorageSlice::BF16(slice) => parts(slice),
        // No alias and no product is of another type.
        _ => (0, 0),
    }
}

/// A module's kernels: machine code for some cards, and PTX for those that came later.
fn fatbin(module: Module) -> &'static [u8] {
    macro_rules! fatbin {
        ($name:literal) => {
            include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".fatbin"))
        };
    }
    match module {
        Module::Transform => fatbin!("transform"),
        Module::Basis => fatbin!("basis"),
        Module::Sparse => fatbin!("sparse"),
        Module::Planes => fatbin!("planes"),
        Module::Trellis => fatbin!("trellis"),
        Module::Step => fatbin!("step"),
    }
}

/// Launches that a thread has captured.
pub(crate) struct Graph(CudaGraph);

// SAFETY: a graph is no thread's own; the driver wants calls with one not to be made at once. Who has it launches it from one thread after
// another (`CapturedStep` is `&mut` then).
unsafe impl Send for Graph {}
// SAFETY: it is launched by the thread alone that captured it.
unsafe impl Sync for Graph {}

impl Machine for CudaMachine {
    type Memory = CudaMemory;
    type Graph = Graph;

    fn allocate(&self, bytes: usize) -> Result<CudaMemory> {
        // SAFETY: whatever the memory holds, its bytes are read only by kernels and after they were written.
        let made = unsafe { self.device.cuda_stream().alloc::<u8>(bytes.max(1)) };
        Ok(self.own(memory::made(&self.device, bytes, made)?))
    }

    fn allocate_zeroed(&self, bytes: usize) -> Result<CudaMemory> {
        let made = self.device.cuda_stream().alloc_zeros::<u8>(bytes.max(1));
        Ok(self.own(memory::made(&self.device, bytes, made)?))
    }

    fn upload(&self, bytes: &[u8]) -> Result<CudaMemory> {
        // A memory has an address even where nothing is in it.
        let bytes = if bytes.is_empty() { &[0][..] } else { bytes };
        let made = self.device.cuda_stream().clone_htod(bytes);
        Ok(self.own(memory::made(&self.device, bytes.len(), made)?))
    }

    fn scratch(&self, bytes: usize) -> Result<Arc<CudaMemory>> {
        memory::kept(&self.device, Use::Scratch, bytes)
    }

    fn counters(&self, count: usize) -> Result<Arc<CudaMemory>> {
        memory::kept(&self.device, Use::Counters, sizes::elements(&[count, size_of::<i32>()]))
    }

    fn address(&self, memory: &CudaMemory) -> u64 {
        memory.address()
    }

    fn wait(&self) -> Result<()> {
        Ok(self.device.cuda_stream().synchronize().w()?)
    }

    fn wait_for_all(&self) -> Result<()> {
        Ok(self.device.cuda_stream().context().synchronize().w()?)
    }

    fn launch(&self, launch: Launch<'_, CudaMemory>) -> Result<()> {
        let Launch { module, kernel, grid, threads, shared_bytes, waits, args } = launch;
        let refuse = |what: String| Err(Error::unsupported(format!("{kernel}: {what}")));
        let [x, y, z] = grid.map(|n| u32::try_from(n).unwrap_or(0));
        if x == 0 || !(1..=65535).contains(&y) || !(1..=65535).contains(&z) || x > i32::MAX.cast_unsigned() {
            return refuse(format!("a grid of {grid:?} blocks; a device takes 2^31 by 65,535 by 65,535"));
        }
        if shared_bytes > self.shared_bytes_limit {
            let limit = self.shared_bytes_limit;
            return refuse(format!("{shared_bytes} bytes of shared memory; this device has {limit} a block"));
        }
        let stream = self.device.cuda_stream();
        let Kernel { function, waits: can_wait } = self.kernel(module, &kernel)?;
        let mut values = Vec::with_capacity(args.len());
        for arg in &args {
            values.push(match arg {
                Arg::Null => Value::Address(0),
                Arg::Memory(memory, offset) => Value::Address(memory.address() + *offset as u64),
                Arg::Int(value) => match i32::try_from(*value) {
                    Ok(value) => Value::Int(value),
                    Err(_) => return refuse(format!("{value} is more than a kernel can count")),
                },
                Arg::Float(value) => Value::Float(*value),
            });
        }
        let mut addresses: Vec<*mut c_void> = values.iter_mut().map(Value::address).collect();
        let mut overlap = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: u32::try_from(threads).unwrap_or(0),
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: u32::try_from(shared_bytes).unwrap_or(u32::MAX),
            hStream: stream.cu_stream(),
            attrs: &raw mut overlap,
            numAttrs: u32::from(waits && can_wait),
        };
        stream.context().bind_to_thread().w()?;
        // SAFETY: the arguments are those of the kernel's signature, in order, and every memory is as large as the kernel
        // reaches: the tests run these launches with every address checked (tests/cuda). The driver has read all of it when it returns.
        // A kernel that may begin before the launch before it has ended waits for that itself.
        unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                function.cu_function(),
                addresses.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
        .w()?;
        Ok(())
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Option<Graph> {
        let stream = self.device.cuda_stream();
        // Whatever other threads ask for meanwhile is no part of it. Where one waits for the device, that ends it.
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).ok()?;
        let launched = work();
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = stream.end_capture(flags).ok().flatten();
        graph.filter(|_| launched.is_ok()).map(Graph)
    }

    fn replay(&self, graph: &Graph) -> Result<()> {
        Ok(graph.0.launch().w()?)
    }

    fn matmul(&self, a: &CudaMemory, b: &CudaMemory, size: Dense) -> Result<CudaMemory> {
        let Dense { element, rows, inner, cols, transposed } = size;
        let a = self.alias(a, element, rows * inner);
        let b = self.alias(b, element, inner * cols);
        let a_layout = Layout::contiguous((rows, inner));
        let b_layout = if transposed {
            Layout::contiguous((cols, inner)).transpose(0, 1)?
        } else {
            Layout::contiguous((inner, cols))
        };
        let product = a.storage()?.matmul(b.storage()?, (1, rows, cols, inner), &a_layout, &b_layout)?;
        let (address, bytes) = release(product);
        // SAFETY: the allocation changes its owner; it was made on this stream and has so many bytes.
        Ok(CudaMemory::Owned(unsafe { Owned::new(address, bytes, self.device.cuda_stream()) }))
    }

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    fn shared_bytes_limit(&self) -> usize {
        self.shared_bytes_limit
    }
}
