//! Embedding layer.
use crate::{Linear, RbeTensor};
use candle_core::{Result, Tensor};
use candle_nn::{Module, VarBuilder};

/// Rows of a compressed table.
#[derive(Clone, Debug)]
pub struct RbeEmbedding { table: RbeTensor }
impl RbeEmbedding {
    /// table (vocabulary, hidden).
    pub fn new(table: RbeTensor) -> Self { Self { table } }
}
impl Module for RbeEmbedding { fn forward(&self, _ids: &Tensor) -> Result<Tensor> { let _ = &self.table; todo!() } }

/// Dense or compressed.
#[derive(Clone, Debug)]
pub enum Embedding {
    /// Candle's own layer.
    Dense(candle_nn::Embedding),
    /// The compressed layer.
    Rbe(RbeEmbedding),
}
impl Embedding {
    /// The output head that shares this table (tied embeddings): logits = h @ table^T.
    pub fn as_linear(&self) -> Linear { match self { Self::Dense(e) => Linear::new(e.embeddings().clone(), None), Self::Rbe(_) => todo!() } }
}
impl Module for Embedding {
    fn forward(&self, ids: &Tensor) -> Result<Tensor> { match self { Self::Dense(l) => l.forward(ids), Self::Rbe(l) => l.forward(ids) } }
}
/// As candle_nn::embedding.
pub fn embedding(vocabulary: usize, hidden: usize, vb: VarBuilder) -> Result<Embedding> { Ok(Embedding::Dense(candle_nn::embedding(vocabulary, hidden, vb)?)) }
