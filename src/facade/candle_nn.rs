//! `candle_nn` as it is, but for layers that are dense or compressed per tensor.
//!
//! One line at the top of a file makes a model of it that runs on compressed weights, whatever way it names its layers
//! (`use candle_nn::{linear, Linear}`, `candle_nn::Linear` in place, `use candle_nn as nn`):
//!
//! ```
//! use candle_rbe::candle_nn; // the swap; all below is as it was
//!
//! use candle_core::{Result, Tensor};
//! use candle_nn::{Module, VarBuilder};
//!
//! struct Model { table: candle_nn::Embedding, norm: candle_nn::LayerNorm, head: candle_nn::Linear }
//!
//! impl Model {
//!     fn new(vocab: usize, width: usize, vb: VarBuilder) -> Result<Self> {
//!         let table = candle_nn::embedding(vocab, width, vb.pp("embed_tokens"))?;
//!         let norm = candle_nn::layer_norm(width, 1e-5, vb.pp("norm"))?;
//!         let head = candle_nn::Linear::new(table.embeddings().clone(), None); // tied
//!         Ok(Self { table, norm, head })
//!     }
//!     fn forward(&self, ids: &Tensor) -> Result<Tensor> {
//!         self.head.forward(&self.norm.forward(&self.table.forward(ids)?)?)
//!     }
//! }
//!
//! # fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
//! use candle_core::{DType, Device};
//! use candle_rbe::archive::{self, CompressOptions};
//! use candle_rbe::{Encoder, EncoderConfig, Rate, nn};
//!
//! let room = tempfile::tempdir()?;
//! let (dense, compressed) = (room.path().join("dense.safetensors"), room.path().join("rbe.safetensors"));
//! let tensors = std::collections::HashMap::from([
//!     ("embed_tokens.weight", Tensor::randn(0f32, 1.0, (96, 64), &Device::Cpu)?),
//!     ("norm.weight", Tensor::ones(64, DType::F32, &Device::Cpu)?),
//!     ("norm.bias", Tensor::zeros(64, DType::F32, &Device::Cpu)?),
//! ]);
//! candle_core::safetensors::save(&tensors, &dense)?;
//! let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(4.2)))?;
//! let options = CompressOptions::default();
//! archive::compress(&dense, &compressed, &encoder, &options, &mut |_| std::ops::ControlFlow::Continue(()))?;
//!
//! let model = Model::new(96, 64, archive::open(&compressed, DType::F32, &Device::Cpu)?)?;
//! let logits = model.forward(&Tensor::new(&[3u32, 95], &Device::Cpu)?)?;
//! assert_eq!(logits.dims(), [2, 96]);
//! assert!(model.head.weight().rbe().is_some()); // the table's own payload
//! assert!(nn::decoded_weights().is_empty()); // nothing was forgotten
//! # Ok(()) }
//! ```
//!
//! | in place of | stands |
//! |---|---|
//! | [`Linear`], [`linear()`], [`linear_no_bias`], [`linear_b`] | this crate's |
//! | [`Embedding`], [`embedding()`] | this crate's |
//! | [`Conv1d`], [`Conv2d`], [`conv1d`], [`conv1d_no_bias`], [`conv2d`], [`conv2d_no_bias`] | this crate's: products where patches do not overlap (a kernel of one position, a patch embedding), else Candle's on the decoded weight |
//! | everything else | Candle's own: what asks its `VarBuilder` for a compressed tensor gets it decoded |
//!
//! `weight` of a layer and `Embedding::embeddings` return a [`Weight`](crate::nn::Weight) where Candle has a `Tensor`. It
//! dereferences to one and clones into the constructors; where a type is written out, write `Weight` or dereference.
//!
//! A file that takes its layers from `candle_transformers::models::with_tracing` swaps that too:
//! [`with_tracing`](crate::with_tracing).

pub use ::candle_nn::*;

pub use crate::nn::{
    Conv1d, Conv2d, Embedding, Linear, conv1d, conv1d_no_bias, conv2d, conv2d_no_bias, embedding, linear,
    linear_b, linear_no_bias,
};

/// Candle's module of convolutions, with this crate's.
pub mod conv {
    pub use crate::nn::{Conv1d, Conv2d, conv1d, conv1d_no_bias, conv2d, conv2d_no_bias};
    pub use ::candle_nn::conv::*;
}

/// Candle's module of linear layers, with this crate's.
pub mod linear {
    pub use crate::nn::{Linear, linear, linear_b, linear_no_bias};
}

/// Candle's module of embeddings, with this crate's.
pub mod embedding {
    pub use crate::nn::{Embedding, embedding};
}
