//! RBE, a compressed form of weight matrices: its definition, the encoder, and products on the CPU that run on the compressed
//! form. It knows nothing of any framework and builds for every target, `wasm32-unknown-unknown` included; the crate
//! `candle-rbe` makes tensors, layers and model files of it for Candle.
//!
//! ```
//! use rbe_core::codec::{Matrix, matrix::Orientation};
//! use rbe_core::cpu::{PackedMatrix, Precision, Rayon, Rows, matmul};
//! use rbe_core::encode::{EncoderConfig, MatrixEncoder, MatrixRef, Rate};
//!
//! # fn main() -> rbe_core::Result<()> {
//! let (rows, cols) = (96, 64);
//! let weights: Vec<f32> = (0..rows * cols).map(|n| ((n * n) as f32 * 0.37).sin()).collect();
//! let encoder = MatrixEncoder::new(EncoderConfig::from(Rate::BitsPerWeight(4.1)))?;
//! let bytes = encoder.encode_matrix(MatrixRef::new(&weights, rows, cols))?.to_bytes(Orientation::Matrix);
//!
//! let (matrix, _) = Matrix::from_bytes(&bytes)?;
//! let (x, mut y) = (vec![1.0; cols], vec![0.0; rows]);
//! matmul(&PackedMatrix::new(&matrix), Rows::new(&x, 1, cols), &mut y, Precision::Exact, &Rayon);
//! # Ok(()) }
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`codec`] | the definition, in plain Rust, and the bytes; FORMAT.md states them byte by byte |
//! | [`encode`] | from a matrix to terms |
//! | [`cpu`] | the products, on the best instructions of the running processor |
//!
//! A file imports only from modules to the right: `encode -> cpu -> codec -> error`.
#![warn(clippy::all)]

pub mod codec;
pub mod cpu;
pub mod encode;
mod error;

pub use error::{Error, Result};
