//! One decoder, described by its configuration: what LLaMA, GPT-2, Gemma and the others differ in are fields of a [`Config`],
//! not code.

mod config;
mod experts;
mod layer;
mod names;
mod projections;
mod step;
mod steps;
mod streamed;
mod token;
mod walk;

pub(super) use config::check_layers;
pub use config::{
    AttentionConfig, AttentionInputs, Config, ExpertsConfig, FeedForwardConfig, LayerConfig, MlpConfig,
    MlpInputs, Names, Norm, NormNames, NormOver, Stored,
};
pub use step::OnDevice;
pub use streamed::StreamedModel;
pub use walk::{Seen, Walk};

use super::{CausalLm, KvCache, pass};
use crate::Result;
use crate::nn::{AttentionPass, Calibrate, Embedding, Linear, Recorder, Rope, embedding, linear_no_bias};
use candle_core::{DType, Device, Tensor};
use candle_nn::{Module, VarBuilder};
use layer::{AnyNorm, Layer};
use names::dotted;
use std::path::Path;
use steps::Steps;

/// A language model of any supported family. Clones share the weights.
#[derive(Clone, Debug)]
pub struct Model {
    tokens: Embedding,
    positions: Option<Embedding>,
    layers: Vec<Layer>,
    norm: AnyNorm,
    head: Linear,
    /// The ropes of all layers, with the width of the heads that they turn.
    ropes: Vec<(Rope, usize)>,
    config: Config,
    device: Device,
    /// What stands before the names of all weights but the head's.
    body: &'static str,
    /// What takes one token through the model, once one was asked for; of all clones, until a layer may have become another.
    steps: Steps,
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

    /// A model of this configuration with the weights in `vb`: `model.layers.0.self_attn.q_proj.weight`, ..., and
    /// `lm_head.weight` unless the head is tied.
    ///
    /// # Errors
    /// The configuration contradicts itself; a tensor is missing or has another shape than it says.
    pub fn new(config: Config, vb: VarBuilder) -> Result<Self> {
        let mut model = Self::without_layers(config, &vb)?;
        let (_, inside) = body(&model.config.names, &vb);
        let layer = |index| load_layer(&model.config, index, &model.ropes, &inside);
        model.layers = (0..model.config.layers.len()).map(layer).collect::<candle_core::Result<_>>()?;
        Ok(model)
    }

    /// What a model has beside its layers.
    fn without_layers(config: Config, vb: &VarBuilder) -> Result<Self> {
        config.check()?;
        let (body, inside) = body(&config.names, vb);
        let config = config.stored_in(&inside);
        let names = &config.names;
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let tokens = embedding(vocab, hidden, inside.pp(names.tokens))?;
        let head = match config.tie_word_embeddings {
            true => tokens.as_linear(),
            false => linear_no_bias(hidden, vocab, vb.pp(names.head))?,
        };
        let positions = |name| embedding(config.max_position_embeddings, hidden, inside.pp(name));
        Ok(Self {
            positions: names.positions.map(positions).transpose()?,
            norm: AnyNorm::new(config.norm, hidden, inside.pp(names.norm))?,
            tokens,
            layers: Vec::new(),
            head,
            ropes: config.ropes(),
            device: vb.device().clone(),
            config,
            body,
            steps: Steps::default(),
        })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Every linear layer with the name that its weight has in the file, to look at or to replace: by a
    /// [`SpectralAdapter`](crate::SpectralAdapter), a [`TrainableLinear`](crate::TrainableLinear), a merged layer.
    /// A tied head is the table's and not among them. A layer is `(out, in)`, also where the file holds the transpose.
    pub fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        self.steps = Steps::default();
        let Names { head, .. } = self.config.names;
        let mut linears = Vec::new();
        for (index, layer) in self.layers.iter_mut().enumerate() {
            linears.extend(self.config.linears_of(index, self.body).into_iter().zip(layer.linears_mut()));
        }
        if !self.config.tie_word_embeddings {
            linears.push((format!("{head}.weight"), &mut self.head));
        }
        linears
    }

    /// The name that the token table has in the file, where it is the head too.
    pub fn tied_table(&self) -> Option<String> {
        let Names { tokens, .. } = self.config.names;
        self.config.tie_word_embeddings.then(|| format!("{}{tokens}.weight", dotted(self.body)))
    }
}

/// What stands before the names of all weights but the head's, and the builder there.
fn body<'v>(names: &Names, vb: &VarBuilder<'v>) -> (&'static str, VarBuilder<'v>) {
    // A norm's weight tells, since it is never compressed and so has the same name in every file.
    let has = |body: &&&str| vb.contains_tensor(&format!("{}{}.weight", dotted(body), names.norm));
    let body = names.bodies.iter().find(has).or(names.bodies.first()).copied().unwrap_or_default();
    (body, if body.is_empty() { vb.clone() } else { vb.pp(body) })
}

impl Config {
    /// The model as a file has it, whose body is `inside`.
    fn stored_in(mut self, inside: &VarBuilder) -> Self {
        for (index, layer) in self.layers.iter_mut().enumerate() {
            if let FeedForwardConfig::Experts(experts) = &mut layer.feed_forward {
                *experts = experts.stored_in(&inside.pp(self.names.layers).pp(index));
            }
        }
        self
    }
}

/// A layer from the builder of a model's body; `ropes` are those of [`Config::ropes`].
fn load_layer(
    config: &Config,
    index: usize,
    ropes: &[(Rope, usize)],
    inside: &VarBuilder,
) -> candle_core::Result<Layer> {
    let layer = &config.layers[index];
    let AttentionConfig { rope, head_dim, .. } = &layer.attention;
    let rotation = ropes.iter().position(|(known, width)| Some(known) == rope.as_ref() && width == head_dim);
    Layer::new(config, layer, rotation, &inside.pp(config.names.layers).pp(index))
}

/// The beginning of the residual stream: the vectors of tokens and positions.
fn embed(
    config: &Config,
    tokens: &Embedding,
    positions: Option<&Embedding>,
    input_ids: &Tensor,
    pass: &AttentionPass,
) -> candle_core::Result<Tensor> {
    let mut h = tokens.forward(input_ids)?;
    if let Some(by) = config.embedding_multiplier {
        h = (h * by)?;
    }
    if let Some(table) = positions {
        let positions = pass.positions();
        let positions = Tensor::arange(positions.start as u32, positions.end as u32, input_ids.device())?;
        h = h.broadcast_add(&table.forward(&positions)?)?;
    }
    Ok(h)
}

impl Model {
    /// The states after the final norm, where `layer` does what each layer does to the residual stream.
    fn through(
        &self,
        input_ids: &Tensor,
        cache: Option<&mut KvCache>,
        mut layer: impl FnMut(usize, &Tensor, &mut AttentionPass) -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<Tensor> {
        let layers = self.config.layers.len();
        let mut pass = pass::begin(input_ids, cache, layers, self.context_length())?;
        let mut h = embed(&self.config, &self.tokens, self.positions.as_ref(), input_ids, &pass)?;
        for (rope, head_dim) in &self.ropes {
            pass = pass.rotated(rope, *head_dim, h.dtype(), &self.device)?;
        }
        for index in 0..layers {
            h = layer(index, &h, &mut pass)?;
        }
        pass.finish();
        self.norm.forward(&h)
    }
}

impl CausalLm for Model {
    fn hidden_states(&self, input_ids: &Tensor, cache: Option<&mut KvCache>) -> candle_core::Result<Tensor> {
        let mut cache = cache;
        if let Some(cache) = cache.as_deref_mut()
            && let Some(state) = self.take_token(input_ids, cache)?
        {
            return Ok(state);
        }
        self.through(input_ids, cache, |index, h, pass| self.layers[index].forward(h, index, pass))
    }

    fn head(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        let logits = self.head.forward(hidden)?.to_dtype(DType::F32)?;
        let logits = match self.config.logits_divisor {
            Some(by) => (logits / by)?,
            None => logits,
        };
        match self.config.logits_softcap {
            Some(cap) => (logits / cap)?.tanh()? * cap,
            None => Ok(logits),
        }
    }

    fn new_cache(&self) -> KvCache {
        KvCache::new(self.layers.len(), self.context_length())
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn context_length(&self) -> usize {
        self.config.max_position_embeddings
    }

    fn eos_token_ids(&self) -> &[u32] {
        &self.config.eos_token_ids
    }

    fn device(&self) -> &Device {
        &self.device
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
