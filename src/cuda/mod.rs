//! Products on a CUDA device: what `codec` defines, in kernels that are compiled to PTX with the feature `cuda`.
//!
//! A matrix is laid out for the kernels once ([`DeviceMatrix::new`]) and stays on the device compressed. A product is
//!
//! 1. every input row into the coefficient domain (`transform.cu`);
//! 2. for up to [`GEMV_MAX_BATCH`] rows the product with the stored coefficients (`planes.cu`, `trellis.cu`, `sparse.cu`), on
//!    tensor cores where blocks have 128 rows or more (`tiles.cuh`), and there for up to 128 in F16 and BF16 with planes and 64 with a
//!    trellis, 32 in F32 (half as many with blocks of 128); for more, the coefficients reconstructed as a dense panel, part by part, and a GEMM;
//! 3. every result back (`transform.cu`), the parts of its sum, the basis term's share (`basis.cu`) and a bias added in F32.
//!
//! On tensor cores the words of the weights come through shared memory, copied ahead (`ring.cuh`), and so do the coefficients of more than two
//! inputs. On a card of compute capability 9.0 such a launch begins before the one before it has ended (programmatic dependent launch): it sends
//! for its weights, which no launch changes, and then waits for what others have written; of one token or two it has gone through its beginning
//! with zeros by then, so that it does not wait for its own instructions after that.
//!
//! The product with the stored planes or trellis takes the last step with it, and for one row, or two with blocks of 256, the first
//! (`ends.cuh`): one launch. Of more rows each block row would transform as many inputs again as its own weights take time for; they
//! are transformed once, by a launch of their own, for all matrices of one input ([`DeviceMatrix::matmul_all`]: queries, keys and values
//! of several tokens are four launches, not six, and of one token three, not four). A block row that
//! is too short for tensor cores takes a launch of its own, and single coefficients and the basis term always three and two.
//!
//! # Threads
//!
//! Candle's stream is a name for each host thread's own, and nothing orders these. What lays a matrix out waits until it is there, so any
//! thread may multiply with it; what drops one waits until no thread's products use it any more. Activations are Candle's: who
//! hands one to another thread synchronises the device between. (`Device::new_cuda_with_stream` has one stream for all threads.)
//!
//! # Graphs
//!
//! What a product needs for a while lies in memory that a thread keeps for its stream, which grows with the largest product and is never
//! freed. Products of as many rows as are multiplied with stored coefficients so are launches and nothing else: no allocation, no
//! copy, no wait. Once one of them has run they can be captured in a CUDA graph, and run again with other inputs in the same place
//! (the tests do so). Their results are Candle's to allocate, on the same stream. A graph is to be run in order with the products of
//! the thread that captured it, and its matrices must not be dropped, nor others while it is captured: that waits.
//!
//! # One token of a model
//!
//! A model of this crate ([`models::Model`](crate::models::Model)) all of whose layers are compressed takes one token after others that are in a cache by
//! launches of this crate alone ([`TokenStep`]): products, and between them norms and the residual stream, attention and the nonlinearity
//! (`step.cu`), eight launches a layer. Matrices that see one input (queries, keys and values; a gate and what it scales) are
//! one launch where they come from one encoder and their rows are whole blocks ([`DeviceMatrix::stacked`]). Position and rotations are in
//! the device's memory, and blocks share the keys before a token as many as there are; so a graph of one token's
//! launches serves the next ones, until the cache grows and another is captured. A thread's first token is queued launch by launch, and so is one
//! whose capture fails because somebody waits for the device meanwhile. Embedding and head
//! are Candle's operations before and after it. Candle's own kernels could not be captured so: they are told by their launches where a token's keys go
//! and over how many its attention goes.
//!
//! Several tokens at once, layers that are dense, trained or watched, experts, and sides that do not fit the kernels ([`Decoder::fits`]) go through
//! Candle's operations one by one.
//!
//! # Limits
//!
//! A side has 2,097,120 elements at most, a trellis or planes term 16 GiB, a sparse one 2^32 coefficients; a matrix may have more weights
//! than 31 bits count. A longer side, a card older than compute capability 8.0, one without memory left, an input on another
//! device: errors that say what to do.
//!
//! Nothing waits for the device but what was said, and nothing is copied to the host. Sums run in one
//! order, so a product gives the same bits each time.
//!
//! What a device must do is the trait [`Machine`]. Candle's CUDA device is one; the tests have another that runs the
//! same kernels on the CPU, so layouts, launches and kernels are compared with `codec` where there is no card.

// Launches and raw device memory: each place says why it is sound.
#![allow(unsafe_code)]

mod axis;
mod basis;
mod blocks;
mod ends;
mod groups;
mod kept;
mod lay_out;
mod machine;
mod matrix;
mod operands;
mod planes;
mod sparse;
mod step;
mod term;
mod tiles;
mod trellis;
mod upload;

#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod forward;
#[cfg(feature = "cuda")]
mod memory;
#[cfg(feature = "cuda")]
mod token;

pub use kept::Kept;
pub use machine::{Arg, Dense, Element, Launch, MODULES, Machine, Module, exhausted, expect_capability};
pub use matrix::{DeviceMatrix, Output};
pub use operands::Operand;
pub use step::{Cache, CapturedStep, Decoder, DecoderLayer, DeviceDecoder, Projection, TokenStep};
pub use term::GEMV_MAX_BATCH;

#[cfg(feature = "cuda")]
pub(crate) use device::CudaMachine;
#[cfg(feature = "cuda")]
pub(crate) use forward::{Asked, Weight, decode, gather, matmul};
#[cfg(feature = "cuda")]
pub(crate) use token::token;
