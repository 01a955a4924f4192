//! What the layouts and launches need of a device.

use crate::error::{Error, Result};
use half::{bf16, f16};
use std::sync::Arc;

/// The oldest cards that the kernels run on, `(major, minor)`.
const COMPUTE_CAPABILITY: (i32, i32) = (8, 0);

/// The element type of activations, in the order that `kernels/ends.cuh` has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of an F32.
    BF16,
}

impl Element {
    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::F16 | Element::BF16 => 2,
        }
    }

    /// Numbers rounded to it, as devices have them.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Element::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Element::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
            Element::BF16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        }
    }

    /// The kernels' number of it.
    pub(super) fn number(self) -> usize {
        self as usize
    }

    /// What the kernels' names have in its place.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::F16 => "f16",
            Element::BF16 => "bf16",
        }
    }
}

/// One file of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    /// `transform.cu`.
    Transform,
    /// `basis.cu`.
    Basis,
    /// `sparse.cu`.
    Sparse,
    /// `planes.cu`.
    Planes,
    /// `trellis.cu`.
    Trellis,
    /// `step.cu`.
    Step,
}

/// Every module.
pub const MODULES: [Module; 6] =
    [Module::Transform, Module::Basis, Module::Sparse, Module::Planes, Module::Trellis, Module::Step];

impl Module {
    /// The stem of its file.
    pub fn name(self) -> &'static str {
        match self {
            Module::Transform => "transform",
            Module::Basis => "basis",
            Module::Sparse => "sparse",
            Module::Planes => "planes",
            Module::Trellis => "trellis",
            Module::Step => "step",
        }
    }
}

/// An argument of a kernel.
#[derive(Debug)]
pub enum Arg<'a, M> {
    /// The address of a memory, so many bytes from its beginning.
    Memory(&'a M, usize),
    /// No memory.
    Null,
    /// An `int`.
    Int(usize),
    /// A `float`.
    Float(f32),
}

impl<'a, M> Arg<'a, M> {
    /// A memory where there is one.
    pub(super) fn optional(memory: Option<&'a M>, offset: usize) -> Self {
        memory.map_or(Arg::Null, |memory| Arg::Memory(memory, offset))
    }
}

/// One kernel on its way to the device.
#[derive(Debug)]
pub struct Launch<'a, M> {
    /// The file it is in.
    pub module: Module,
    /// Its name.
    pub kernel: String,
    /// Blocks in each dimension.
    pub grid: [usize; 3],
    /// Threads of a block.
    pub threads: usize,
    /// Dynamic shared memory of a block.
    pub shared_bytes: usize,
    /// Whether it waits itself for what launches before it have written, and may begin before they have ended.
    pub waits: bool,
    /// What it is called with, in order.
    pub args: Vec<Arg<'a, M>>,
}

/// `c = a b` of dense matrices: `a` `(rows, inner)`, `b` `(inner, cols)`, all row-major and of one type, summed in F32.
#[derive(Clone, Copy, Debug)]
pub struct Dense {
    /// The type of all three.
    pub element: Element,
    /// Rows of `a` and `c`.
    pub rows: usize,
    /// Columns of `a`, rows of `b`.
    pub inner: usize,
    /// Columns of `b` and `c`.
    pub cols: usize,
    /// `b` lies in memory as `(cols, inner)`.
    pub transposed: bool,
}

/// Refuses a card that is too old for the kernels.
///
/// # Errors
/// When it is; they say what to do.
pub fn expect_capability(name: &str, found: (i32, i32)) -> Result<()> {
    if found >= COMPUTE_CAPABILITY {
        return Ok(());
    }
    let ((major, minor), (least, _)) = (found, COMPUTE_CAPABILITY);
    Err(Error::unsupported(format!(
        "RBE tensors on {name}, compute capability {major}.{minor}, where the kernels need {least}.0: leave them on the CPU"
    )))
}

/// What is said where a card has not as much memory left.
pub fn exhausted(bytes: usize, free: usize) -> Error {
    Error::unsupported(format!(
        "{bytes} bytes more on a CUDA device that has {free} left: multiply fewer tokens at once, compress to fewer bits, or leave \
         some layers on the CPU"
    ))
}

/// A device with a stream for each thread of the host: what a thread asks for happens in the order in which it asks for it, and in no
/// order with what others ask for.
pub trait Machine {
    /// Launches to be run again.
    type Graph;

    /// Memory of the device, free again when it is dropped and all that the thread which drops it has asked for before has run.
    type Memory;

    /// Memory of whatever content.
    ///
    /// # Errors
    /// When the device has not so much left.
    fn allocate(&self, bytes: usize) -> Result<Self::Memory>;

    /// Memory of zeros.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate).
    fn allocate_zeroed(&self, bytes: usize) -> Result<Self::Memory>;

    /// Memory with these bytes, for this thread; for others once it has [waited](Self::wait).
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate).
    fn upload(&self, bytes: &[u8]) -> Result<Self::Memory>;

    /// Memory of whatever content, for one product: the next one may get the same. It is allocated when more is asked for than ever
    /// before, and never freed, so that what was captured in a graph can be run again.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate).
    fn scratch(&self, bytes: usize) -> Result<Arc<Self::Memory>>;

    /// So many counters (`int`) that are zero; whoever counts sets them to zero again. Kept as [`scratch`](Self::scratch) is.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate).
    fn counters(&self, count: usize) -> Result<Arc<Self::Memory>>;

    /// Until all that this thread has asked for is done.
    ///
    /// # Errors
    /// When the device does not do it.
    fn wait(&self) -> Result<()>;

    /// Until all that any thread has asked for is done.
    ///
    /// # Errors
    /// When the device does not do it.
    fn wait_for_all(&self) -> Result<()>;

    /// The number of a memory's first byte among all of the device's.
    fn address(&self, memory: &Self::Memory) -> u64;

    /// Queues a kernel.
    ///
    /// # Errors
    /// When the device refuses it.
    fn launch(&self, launch: Launch<'_, Self::Memory>) -> Result<()>;

    /// What `work` launches on this thread's stream, to be run again: nothing of it runs now. `None` where the device cannot hold it, or `work`
    /// fails.
    fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Option<Self::Graph>;

    /// Queues the launches of a graph, on the stream of the thread that captured it, which asks for it.
    ///
    /// # Errors
    /// When the device refuses it.
    fn replay(&self, graph: &Self::Graph) -> Result<()>;

    /// Queues a dense product.
    ///
    /// # Errors
    /// When the device refuses it.
    fn matmul(&self, a: &Self::Memory, b: &Self::Memory, size: Dense) -> Result<Self::Memory>;

    /// Multiprocessors, to share out work.
    fn multiprocessors(&self) -> usize;

    /// The most shared memory a block can have.
    fn shared_bytes_limit(&self) -> usize;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_card_cannot_do_is_said_with_what_to_do() {
        for found in [(8, 0), (8, 6), (9, 0), (12, 0)] {
            expect_capability("a card", found).unwrap();
        }
        for found in [(7, 5), (6, 1)] {
            let said = expect_capability("Tesla T4", found).unwrap_err().to_string();
            let (major, minor) = found;
            assert!(said.contains("Tesla T4") && said.contains(&format!("{major}.{minor}")), "{said}");
            assert!(said.contains("8.0") && said.contains("on the CPU"), "{said}");
        }
        let said = exhausted(5_000, 77).to_string();
        assert!(said.contains("5000") && said.contains("77") && said.contains("fewer tokens"), "{said}");
    }
}
