//! Layers: dense or compressed per tensor, by what the file holds.
mod embedding;
mod linear;
pub use embedding::{Embedding, RbeEmbedding, embedding};
pub use linear::{Linear, RbeLinear, linear, linear_b, linear_conv1d, linear_no_bias};
