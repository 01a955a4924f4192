//! The embedding layer: rows of a table by id.

use super::{Linear, RbeLinear, compressed};
use crate::{RbeTensor, ops};
use candle_core::{DType, Result, Tensor};
use candle_nn::{Module, VarBuilder};

/// Rows of a compressed table; only the rows asked for are decoded.
#[doc(alias = "RBEEmbedding")]
#[derive(Clone, Debug)]
pub struct RbeEmbedding {
    table: RbeTensor,
    dtype: DType,
}

impl RbeEmbedding {
    /// An embedding from a table of shape `(vocabulary, hidden)` that gives rows of `dtype`.
    pub fn new(table: RbeTensor, dtype: DType) -> Self {
        Self { table, dtype }
    }

    /// The compressed table, `(vocabulary, hidden)`.
    pub fn table(&self) -> &RbeTensor {
        &self.table
    }
}

impl Module for RbeEmbedding {
    /// Ids of any shape to rows: `(..)` to `(.., hidden)`.
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        ops::gather(&self.table, ids, self.dtype)
    }
}

/// An embedding whose table is dense or compressed, by what the file held.
#[derive(Clone, Debug)]
pub enum Embedding {
    /// Candle's own layer.
    Dense(candle_nn::Embedding),
    /// The compressed layer.
    Rbe(RbeEmbedding),
}

impl Embedding {
    /// The output head that shares this table (tied embeddings): `logits = h table'`.
    pub fn as_linear(&self) -> Linear {
        match self {
            Embedding::Dense(embedding) => Linear::new(embedding.embeddings().clone(), None),
            Embedding::Rbe(embedding) => RbeLinear::new(embedding.table.clone(), None).into(),
        }
    }
}

impl Module for Embedding {
    /// Ids of any shape to rows: `(..)` to `(.., hidden)`.
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        match self {
            Embedding::Dense(embedding) => embedding.forward(ids),
            Embedding::Rbe(embedding) => embedding.forward(ids),
        }
    }
}

/// An embedding from `weight` (or `weight.rbe`) of shape `(in_size, out_size)`, as `candle_nn::embedding`: `in_size`
/// rows, one for each id, of `out_size` elements. Rows of a compressed table come in the builder's dtype.
///
/// # Errors
/// As [`linear`](super::linear()).
pub fn embedding(in_size: usize, out_size: usize, vb: VarBuilder) -> Result<Embedding> {
    match compressed(&vb, "weight", (in_size, out_size))? {
        Some(table) => Ok(Embedding::Rbe(RbeEmbedding::new(table, vb.dtype()))),
        None => Ok(Embedding::Dense(candle_nn::embedding(in_size, out_size, vb)?)),
    }
}
