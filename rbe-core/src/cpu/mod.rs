//! The fast products on the CPU: what `codec` defines, for many vectors at once and on all cores.
//!
//! [`product`] and [`transposed_product`] are the doors. Both follow the same three steps:
//!
//! 1. every input vector goes into the coefficient domain once (`axis`: sixteen blocks in the
//!    lanes of a register), for a planes term as signed bytes with scales (`activations`);
//! 2. each row tile (or block row) accumulates the terms' shares over all blocks of its row, for all vectors, on
//!    layouts made for that when the matrix was loaded (`tiles`, `strips`, `slices`);
//! 3. each result comes back from the coefficient domain once.
//!
//! The inner loops are `kernels::Kernels`, a table chosen for the running processor. They take a range of work
//! and know no threads; a [`Pool`] runs them.

// Instructions beyond the target's own, and disjoint writes from several threads: each place says why it is sound.
#![allow(unsafe_code)]

mod activations;
mod attention;
mod axis;
mod basis;
mod features;
mod gemm;
mod kernels;
mod layout;
mod loaded;
mod norm;
mod parametric;
mod pool;
mod product;
mod slices;
mod sparse;
mod strips;
mod tiles;
mod viterbi;

pub use attention::{Attention, Heads, attention, attention_gradients};
pub use features::{Level, level, levels, requested_level};
pub use layout::Precision;
pub use loaded::LoadedMatrix;
pub use norm::{Norm, norm, norm_gradients};
pub use parametric::{parametric_gradients, parametric_product};
pub use pool::{Pool, Rayon, Serial};
pub use product::{product, products, transposed_product};
pub(crate) use viterbi::{Codebook, Search};

#[cfg(test)]
mod tests;
