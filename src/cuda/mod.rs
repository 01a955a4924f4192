//! Products on a CUDA device: what `codec` defines, in kernels that are compiled to PTX with the feature `cuda`.
//!
//! A matrix is laid out for the kernels once ([`DeviceMatrix::new`]) and stays on the device compressed. A product is
//!
//! 1. every input row into the coefficient domain (`transform.cu`);
//! 2. for up to [`GEMV_MAX_BATCH`] rows the product with the stored coefficients (`planes.cu`, `trellis.cu`, `sparse.cu`), on
//!    tensor cores where blocks have 128 rows or more (`tiles.cuh`), and there for up to 64 in F16 and BF16, 32 in F32 (half as many with
//!    blocks of 128); for more, the coefficients reconstructed as a dense panel, part by part, and a GEMM;
//! 3. every result back (`transform.cu`), the parts of its sum, the basis term's share (`basis.cu`) and a bias added in F32.
//!
//! The product with the stored planes or trellis takes the last step with it, and for one row, or two with blocks of 256, the first
//! (`ends.cuh`): one launch. Of more rows each block row would transform as many inputs again as its own weights take time for; they
//! are transformed once, by a launch of their own. So layers of one input have nothing to share where there is one row. A block row that
//! is too short for tensor cores takes a launch of its own, and single coefficients and the basis term always three and two.
//!
//! What a product needs for a while lies in memory that a thread keeps for its stream, which grows with the largest product and is never
//! freed: products of as many rows as are multiplied with stored coefficients allocate nothing, and can be captured in a graph once one of them has run. (Their
//! results are Candle's to allocate.) A graph is to be run in order with the products of the thread that captured it.
//!
//! All of it is queued on one stream; nothing waits for the device, and nothing is copied to the host. Sums run in one
//! order, so a product gives the same bits each time.
//!
//! What a device must do is the trait [`Machine`]. Candle's CUDA device is one; the tests have another that runs the
//! same kernels on the CPU, so layouts, launches and kernels are compared with `codec` where there is no card.

// Launches and raw device memory: each place says why it is sound.
#![allow(unsafe_code)]

mod axis;
mod basis;
mod ends;
mod groups;
mod kept;
mod machine;
mod matrix;
mod operands;
mod planes;
mod sparse;
mod term;
mod trellis;
mod upload;

#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod forward;
#[cfg(feature = "cuda")]
mod memory;

pub use kept::Kept;
pub use machine::{Arg, Dense, Element, Launch, MODULES, Machine, Module};
pub use matrix::DeviceMatrix;
pub use operands::Operand;
pub use term::GEMV_MAX_BATCH;

#[cfg(feature = "cuda")]
pub(crate) use device::CudaMachine;
#[cfg(feature = "cuda")]
pub(crate) use forward::{Asked, decode, gather, matmul};
