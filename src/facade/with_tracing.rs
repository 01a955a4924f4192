//! The layers of `candle_transformers::models::with_tracing`, dense or compressed per tensor.
//!
//! ```
//! use candle_core::{Result, Tensor};
//! use candle_nn::{Module, VarBuilder};
//! use candle_rbe::with_tracing::{Linear, linear_no_bias}; // was: use candle_transformers::models::with_tracing::{..};
//!
//! struct Head(Linear);
//!
//! impl Head {
//!     fn new(width: usize, vocab: usize, vb: VarBuilder) -> Result<Self> {
//!         Ok(Self(linear_no_bias(width, vocab, vb.pp("lm_head"))?))
//!     }
//!     fn forward(&self, x: &Tensor) -> Result<Tensor> {
//!         x.apply(&self.0)
//!     }
//! }
//! # fn main() {}
//! ```
//!
//! The names and signatures are that module's, `QMatMul` apart, which is for weights quantised otherwise; of the spans that it
//! opens for `tracing` there are none: [`layer_counts`](crate::nn::layer_counts) has the time of every compressed layer. Where
//! they have the same constructors the types are those of [`candle_nn`](crate::candle_nn).

use crate::nn::{self, Weight};
use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

pub use crate::nn::{Conv2d, Linear, conv2d, linear, linear_b, linear_no_bias};
pub use candle_nn::{LayerNorm, layer_norm};

/// An [`Embedding`](nn::Embedding) with the constructors of `with_tracing`.
#[derive(Clone, Debug)]
pub struct Embedding(nn::Embedding);

impl Embedding {
    /// As [`embedding`](nn::embedding()).
    ///
    /// # Errors
    /// As there.
    pub fn new(in_size: usize, out_size: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self(nn::embedding(in_size, out_size, vb)?))
    }

    /// An embedding from a table `(vocabulary, hidden_size)`: a `Tensor` or another layer's [`Weight`].
    ///
    /// # Errors
    /// When the table is no matrix.
    pub fn from_weights(table: impl Into<Weight>) -> Result<Self> {
        let table = table.into();
        let (_, hidden_size) = table.dims2()?;
        Ok(Self(nn::Embedding::new(table, hidden_size)))
    }

    /// The table, `(vocabulary, hidden_size)`.
    pub fn embeddings(&self) -> &Weight {
        self.0.embeddings()
    }
}

impl Module for Embedding {
    /// Ids of any shape to rows: `(..)` to `(.., hidden_size)`.
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        self.0.forward(ids)
    }
}

/// A [`candle_nn::RmsNorm`] with the constructor of `with_tracing`.
#[derive(Clone, Debug)]
pub struct RmsNorm(candle_nn::RmsNorm);

impl RmsNorm {
    /// As [`candle_nn::rms_norm`].
    ///
    /// # Errors
    /// As there.
    pub fn new(size: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        Ok(Self(candle_nn::rms_norm(size, eps, vb)?))
    }

    /// The norm by operations that have gradients.
    ///
    /// # Errors
    /// Candle's.
    pub fn forward_diff(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward_diff(x)
    }
}

impl Module for RmsNorm {
    /// The norm over the last side.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x)
    }
}
