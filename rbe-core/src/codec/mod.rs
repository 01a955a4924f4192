//! The definition of RBE: what a compressed matrix is, how it is decoded, how its bytes lie.
//!
//! A matrix `W` of shape `(rows, cols)` is cut into blocks of edge `b` ([`Layout`]). Along each axis
//! one orthonormal operator `A` (random signs, then a transform per block: [`axis::Axis`]) takes a
//! vector into the coefficient domain. The matrix is a short sum of terms ([`term::Term`]):
//!
//! ```text
//!     W  =  sum_k theta_k phi_k  +  A_rows' S A_cols
//! ```
//!
//! with the basis functions `phi` in the weight domain and `S`, the sum of the spectral terms, in the
//! coefficient domain. `A` is orthonormal, so the Frobenius error of `W` is that of `S` (Parseval), and
//! `W x = A_rows' (S (A_cols x))` needs no decompression.
//!
//! Everything here is safe scalar Rust over slices, written to be read; `cpu` and `cuda` hold the fast
//! versions of the same steps, tested against these.
#![doc = include_str!("glossary.md")]

pub mod axis;
mod bits;
mod bytes;
mod entropy;
pub mod errors;
pub mod layout;
pub mod matrix;
mod parameters;
pub mod payload;
pub mod scales;
mod sides;
pub mod signs;
pub mod sizes;
pub mod stack;
pub mod term;
pub mod transform;
pub(crate) mod units;

pub use errors::Errors;
pub use layout::{BLOCK_EDGES, Block, Cut, Layout};
pub use matrix::Matrix;
pub use parameters::ParameterGroup;
pub use scales::AxisScales;
pub use sides::Sides;
pub use term::ParameterKind;
pub use transform::Transform;
