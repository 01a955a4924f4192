//! Compressed weight tensors for Candle.
#![warn(clippy::all)]

pub mod archive;
pub mod codec;
pub mod cpu;
pub mod encode;
mod error;
pub mod models;
pub mod nn;
pub mod ops;
mod tensor;

pub use codec::Transform;
pub use cpu::Precision;
pub use encode::{Encoder, EncoderConfig, Quality, Rate, TermChoice};
pub use error::{Error, Result};
pub use nn::{
    Embedding, Linear, RbeEmbedding, RbeLinear, embedding, linear, linear_b, linear_conv1d, linear_no_bias,
};
pub use tensor::RbeTensor;
