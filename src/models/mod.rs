//! Language models over [`crate::nn`]: the same code runs dense and compressed weights, the `VarBuilder`
//! alone decides which.
//!
//! ```no_run
//! use candle_core::{DType, Device};
//! use candle_nn::VarBuilder;
//! use candle_rbe::models::{Model, generate, greedy};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let weights = candle_core::safetensors::load("models/llama-books/model.safetensors", &Device::Cpu)?;
//! let vb = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
//! let model = Model::load("models/llama-books", vb)?;
//! for token in generate(&model, &[846, 318, 259], 20, greedy) {
//!     println!("{}", token?);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! There is one decoder, which a [`Config`] describes layer by layer. A family of models is a file that reads its
//! configuration, and a line in a table: `families/` has both. They are Gemma 2 and 3 (text), GPT-2, Granite 3, LLaMA 1 to 3 with
//! SmolLM2 and others of its shape, Mistral, Mixtral, OLMo 2, Phi-3 and Phi-4-mini, Qwen 2, 2.5 and 3, Qwen 3's mixtures of
//! experts, SmolLM3.

pub mod bert;
mod config;
pub mod decoder;
pub mod evaluate;
mod families;
mod generate;
mod own_text;
mod pass;

pub use crate::nn::{Activation, KvCache, Rope, RopeScaling};
pub(crate) use config::ties_by_default;
pub use decoder::{Config, Model, OnDevice, Seen, StreamedModel, Walk};
pub use evaluate::{Evaluation, Text, Windows, evaluate};
pub(crate) use families::gpt2::is_conv1d as is_gpt2_conv1d;
pub use generate::{Generation, generate, greedy};
pub use own_text::own_text;

use candle_core::{Device, Tensor};

/// A model that predicts the next token from the tokens before it.
///
/// Token ids are `(batch, seq)` in U32, I64 or U8. Without a cache the tokens stand at positions `0..seq`
/// and gradients flow back to every weight. With one they follow the `cache.len()` tokens it holds, so a
/// prompt may come in one piece or in several; what the cache already holds is a constant to the gradient.
///
/// A forward fails when the ids are not of that shape or type, when the positions exceed
/// [`context_length`](Self::context_length), and when the cache belongs to another model or batch.
pub trait CausalLm {
    /// The state of every position after the final norm: `(batch, seq, hidden)` in the weights' dtype.
    fn hidden_states(&self, input_ids: &Tensor, cache: Option<&mut KvCache>) -> candle_core::Result<Tensor>;

    /// The output head: `(.., hidden)` to logits `(.., vocab)` in F32.
    fn head(&self, hidden: &Tensor) -> candle_core::Result<Tensor>;

    /// An empty cache of this model's shape.
    fn new_cache(&self) -> KvCache;

    /// Number of logits per position.
    fn vocab_size(&self) -> usize;

    /// The largest number of positions that the model can attend to.
    fn context_length(&self) -> usize;

    /// The tokens that end a text, as the configuration names them; often one, possibly none.
    fn eos_token_ids(&self) -> &[u32];

    /// Where the weights are, and where token ids must be.
    fn device(&self) -> &Device;

    /// Logits of every position: `(batch, seq, vocab)` in F32.
    fn forward(&self, input_ids: &Tensor, cache: Option<&mut KvCache>) -> candle_core::Result<Tensor> {
        self.head(&self.hidden_states(input_ids, cache)?)
    }

    /// Logits of the last position alone: `(batch, vocab)` in F32. The head, often the largest matrix of
    /// the model, sees one row per sequence.
    fn forward_last(&self, input_ids: &Tensor, cache: Option<&mut KvCache>) -> candle_core::Result<Tensor> {
        let hidden = self.hidden_states(input_ids, cache)?;
        let last = hidden.dim(1)? - 1;
        self.head(&hidden.narrow(1, last, 1)?.squeeze(1)?.contiguous()?)
    }
}
