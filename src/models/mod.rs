//! Language models over [`crate::nn`]: the same code runs dense and compressed weights, the [`VarBuilder`]
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
//! A new architecture is one file here, one variant of [`Model`] and of [`Config`], and one line in the
//! table of [`Config::from_json`].

pub mod bert;
mod config;
pub mod evaluate;
mod generate;
pub mod gpt2;
pub mod llama;
mod own_text;
mod pass;

pub use crate::nn::{Activation, KvCache, Rope, RopeScaling};
pub use config::Config;
pub use evaluate::{Evaluation, Text, Windows, evaluate};
pub use generate::{Generation, generate, greedy};
pub use own_text::own_text;

use crate::Result;
use crate::nn::{Calibrate, Linear, Recorder};
use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use std::path::Path;

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

/// Any of the supported models, chosen by its configuration.
#[derive(Clone, Debug)]
pub enum Model {
    /// GPT-2.
    Gpt2(gpt2::Gpt2),
    /// LLaMA 1 to 3, and models of the same shape.
    Llama(llama::Llama),
}

impl Model {
    /// Reads `config.json` (its path, or that of its directory) and takes the weights from `vb`, under the
    /// names that Hugging Face gives them.
    ///
    /// # Errors
    /// The configuration cannot be read or is not supported ([`Config::read`]); a tensor is missing or has
    /// another shape than the configuration says.
    pub fn load(config: impl AsRef<Path>, vb: VarBuilder) -> Result<Self> {
        Self::new(Config::read(config)?, vb)
    }

    /// A model of this configuration with the weights in `vb`.
    ///
    /// # Errors
    /// The configuration contradicts itself; a tensor is missing or has another shape than it says.
    pub fn new(config: Config, vb: VarBuilder) -> Result<Self> {
        Ok(match config {
            Config::Gpt2(config) => Self::Gpt2(gpt2::Gpt2::new(config, vb)?),
            Config::Llama(config) => Self::Llama(llama::Llama::new(config, vb)?),
        })
    }

    /// Every linear layer with the name that its weight has in the file, to look at or to replace: by a
    /// [`SpectralAdapter`](crate::SpectralAdapter), a [`TrainableLinear`](crate::TrainableLinear), a merged layer.
    pub fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        match self {
            Self::Gpt2(model) => model.linears_mut(),
            Self::Llama(model) => model.linears_mut(),
        }
    }

    /// The name that the token table has in the file, where it is the head too.
    pub fn tied_table(&self) -> Option<String> {
        match self {
            Self::Gpt2(model) => model.tied_table(),
            Self::Llama(model) => model.tied_table(),
        }
    }

    fn inner(&self) -> &dyn CausalLm {
        match self {
            Self::Gpt2(model) => model,
            Self::Llama(model) => model,
        }
    }
}

impl CausalLm for Model {
    fn hidden_states(&self, input_ids: &Tensor, cache: Option<&mut KvCache>) -> candle_core::Result<Tensor> {
        self.inner().hidden_states(input_ids, cache)
    }

    fn head(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        self.inner().head(hidden)
    }

    fn new_cache(&self) -> KvCache {
        self.inner().new_cache()
    }

    fn vocab_size(&self) -> usize {
        self.inner().vocab_size()
    }

    fn context_length(&self) -> usize {
        self.inner().context_length()
    }

    fn eos_token_ids(&self) -> &[u32] {
        self.inner().eos_token_ids()
    }

    fn device(&self) -> &Device {
        self.inner().device()
    }
}

impl Calibrate for Model {
    fn record(&self, input_ids: &Tensor, recorder: &mut Recorder) -> candle_core::Result<Tensor> {
        // Clones share the weights.
        let mut watched = self.clone();
        for (name, linear) in watched.linears_mut() {
            recorder.watch(&name, linear);
        }
        let hidden = watched.hidden_states(input_ids, None)?;
        let logits = watched.head(&hidden)?;
        // A tied head is a layer with the table's weight.
        match watched.tied_table() {
            Some(name) => recorder.layer(&name, &hidden, logits),
            None => Ok(logits),
        }
    }
}
