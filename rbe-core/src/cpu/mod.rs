//! The fast products on the CPU: what `codec` defines, for many vectors at once and on all cores.
//!
//! [`matmul`] is the door. It follows three steps:
//!
//! 1. every input row goes into the coefficient domain once (`axis`: sixteen blocks in the lanes of a
//!    register), in the forms that the terms read: F32, int8 slices (`activations`), lanes (`spmm`);
//! 2. each term adds its share (`packed`, one file a term), in the layout that was made for that when the matrix was packed;
//! 3. each result comes back from the coefficient domain once.
//!
//! The inner loops are `kernels::Kernels`, a table chosen for the running processor. They take a range of work
//! and know no threads; a [`Pool`] runs them.

// Instructions beyond the target's own, and disjoint writes from several threads: each place says why it is sound.
#![allow(unsafe_code)]

mod activations;
mod attention;
mod axis;
mod dense;
mod exec;
mod features;
mod gate;
mod gemm;
mod kernels;
mod layout;
mod matrix;
mod norm;
mod packed;
mod pool;
mod product;
mod rows;
mod spmm;
mod viterbi;

pub use attention::{Attention, Heads, attention, attention_gradients};
pub use dense::dense_matmul;
pub use features::{Level, level, levels, requested_level};
pub use gate::{gate_by, silu_mul};
pub use layout::Precision;
pub use matrix::PackedMatrix;
pub use norm::{Norm, norm, norm_gradients};
pub use pool::{Pool, Rayon, Serial, zeros};
pub use product::{
    Gradients, Oriented, matmul, matmul_all, matmul_all_into, parametric_gradients, parametric_matmul,
};
pub use rows::Rows;
pub(crate) use viterbi::{Codebook, Search};

#[cfg(test)]
mod tests;
