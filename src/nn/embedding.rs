//! The embedding layer: rows of a table by id.

use super::{Linear, Weight};
use crate::ops;
use candle_core::{DType, Result, Tensor};
use candle_nn::Module;

/// An embedding with all that `candle_nn::Embedding` has, over a table that is dense or compressed. Of a compressed one only
/// the rows asked for are decoded.
#[doc(alias = "RBEEmbedding")]
#[derive(Clone, Debug)]
pub struct Embedding {
    table: Weight,
    hidden_size: usize,
}

impl Embedding {
    /// An embedding from a table `(vocabulary, hidden_size)`, a `Tensor`, an [`RbeTensor`](crate::RbeTensor) or another layer's
    /// [`Weight`], as `candle_nn::Embedding::new`. Rows are of the [`Weight`]'s type.
    pub fn new(table: impl Into<Weight>, hidden_size: usize) -> Self {
        Self { table: table.into(), hidden_size }
    }

    /// The table, `(vocabulary, hidden_size)`.
    pub fn embeddings(&self) -> &Weight {
        &self.table
    }

    /// Elements of a row.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// The output head that shares this table (tied embeddings): `logits = h table'`.
    pub fn as_linear(&self) -> Linear {
        Linear::new(&self.table, None)
    }
}

impl Module for Embedding {
    /// Ids of any shape to rows: `(..)` to `(.., hidden_size)`.
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        match self.table.rbe() {
            Some(table) => {
                let rows = match self.table.dtype() {
                    DType::F64 => ops::gather(table, ids, DType::F32)?.to_dtype(DType::F64)?,
                    dtype => ops::gather(table, ids, dtype)?,
                };
                rows.reshape([ids.dims(), &[self.hidden_size]].concat())
            }
            None => candle_nn::Embedding::new(self.table.clone().into(), self.hidden_size).forward(ids),
        }
    }
}

impl From<candle_nn::Embedding> for Embedding {
    fn from(embedding: candle_nn::Embedding) -> Self {
        Self::new(embedding.embeddings().clone(), embedding.hidden_size())
    }
}
