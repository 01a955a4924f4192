//! Products on a CUDA device: what `codec` defines, in kernels that are compiled to PTX with the feature `cuda`.
//!
//! A matrix is laid out for the kernels once ([`DeviceMatrix::new`]) and stays on the device compressed. A product is
//!
//! 1. every input row into the coefficient domain (`transform.cu`);
//! 2. for up to [`GEMV_MAX_BATCH`] rows the product with the stored coefficients (`planes.cu`, `trellis.cu`, `sparse.cu`), on
//!    tensor cores where blocks have 128 rows or more (`tiles.cuh`); for more, the coefficients reconstructed as a dense panel,
//!    part by part, and a GEMM;
//! 3. every result back (`transform.cu`), the parts of its sum and the basis term's share (`basis.cu`) added in F32.
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
mod groups;
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

pub use machine::{Arg, Dense, Element, Launch, MODULES, Machine, Module};
pub use matrix::{DeviceMatrix, GEMV_MAX_BATCH};
pub use operands::Operand;

#[cfg(feature = "cuda")]
pub(crate) use device::CudaMachine;
#[cfg(feature = "cuda")]
pub(crate) use forward::{decode, gather, matmul};
