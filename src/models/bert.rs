//! BERT (Devlin et al., arXiv 1810.04805) as Hugging Face's `BertModel` computes it: an encoder, and the sentence
//! embeddings that are made of its states.

use super::config::{MOST, MOST_TOKENS, check_sizes, from_fields};
use super::pass::check_ids;
use crate::nn::{
    Activation, AttentionPass, Embedding, Linear, Projections, RbeAttention, RbeLayerNorm, RbeMlp, embedding,
    layer_norm, linear,
};
use crate::{Error, Result, file};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::{Module, VarBuilder};
use serde::Deserialize;
use std::path::Path;

/// What `config.json` says, with every default filled in. The names are Hugging Face's.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "File")]
pub struct Config {
    /// Number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of the states.
    pub hidden_size: usize,
    /// Width inside the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of heads, a divisor of `hidden_size`.
    pub num_attention_heads: usize,
    /// The largest number of positions; each has a learned vector.
    pub max_position_embeddings: usize,
    /// Number of token types; each has a learned vector.
    pub type_vocab_size: usize,
    /// Added to the variance in the norms.
    pub layer_norm_eps: f64,
    /// The feed-forward layer's nonlinearity.
    pub hidden_act: Activation,
}

/// The file itself. The defaults are those of `BertConfig`.
#[derive(Deserialize)]
struct File {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    #[serde(default = "default_type_vocab_size")]
    type_vocab_size: usize,
    #[serde(default = "default_layer_norm_eps")]
    layer_norm_eps: f64,
    hidden_act: Option<Activation>,
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
}

fn default_type_vocab_size() -> usize {
    2
}

fn default_layer_norm_eps() -> f64 {
    1e-12
}

impl TryFrom<File> for Config {
    type Error = Error;

    fn try_from(file: File) -> Result<Self> {
        if let Some(kind) = file.position_embedding_type.filter(|kind| kind != "absolute") {
            return Err(Error::unsupported(format!("position_embedding_type {kind:?}; it is absolute")));
        }
        if file.is_decoder {
            return Err(Error::unsupported("is_decoder; this BERT is an encoder"));
        }
        let config = Self {
            vocab_size: file.vocab_size,
            hidden_size: file.hidden_size,
            intermediate_size: file.intermediate_size,
            num_hidden_layers: file.num_hidden_layers,
            num_attention_heads: file.num_attention_heads,
            max_position_embeddings: file.max_position_embeddings,
            type_vocab_size: file.type_vocab_size,
            layer_norm_eps: file.layer_norm_eps,
            hidden_act: file.hidden_act.unwrap_or(Activation::Gelu),
        };
        config.check()?;
        Ok(config)
    }
}

impl Config {
    fn check(&self) -> Result<()> {
        let tokens =
            [("vocab_size", self.vocab_size), ("max_position_embeddings", self.max_position_embeddings)];
        check_sizes(MOST_TOKENS, &tokens)?;
        check_sizes(
            MOST,
            &[
                ("hidden_size", self.hidden_size),
                ("intermediate_size", self.intermediate_size),
                ("num_attention_heads", self.num_attention_heads),
                ("type_vocab_size", self.type_vocab_size),
                // A model of no layers has none to count.
                ("num_hidden_layers", self.num_hidden_layers.max(1)),
            ],
        )?;
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(Error::config(format!(
                "hidden_size {} is not a multiple of num_attention_heads {}",
                self.hidden_size, self.num_attention_heads
            )));
        }
        Ok(())
    }

    /// Reads the file at `path`, or `config.json` in the directory at `path`.
    ///
    /// # Errors
    /// The file cannot be read, is no BERT's, contradicts itself, or asks for something the model here does not have.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let path = if path.is_dir() { &path.join("config.json") } else { path };
        let json = file::read_text(path)?;
        let json = serde_json::from_str(&json).map_err(|e| Error::file(path, e))?;
        from_fields(json).map_err(|e| Error::file(path, e))
    }
}

/// `h = norm(h + attention(h)); h = norm(h + mlp(h))` for each layer, after a norm of the summed embeddings.
#[derive(Clone, Debug)]
pub struct Bert {
    words: Embedding,
    positions: Embedding,
    token_types: Embedding,
    norm: RbeLayerNorm,
    layers: Vec<Layer>,
    config: Config,
    device: Device,
    /// What stands before the weights' names.
    prefix: &'static str,
}

impl Bert {
    /// Takes the weights under Hugging Face's names, with `bert.` before them or, as sentence encoders have them, without.
    ///
    /// # Errors
    /// The configuration contradicts itself; a tensor is missing or has another shape.
    pub fn new(config: Config, vb: VarBuilder) -> Result<Self> {
        config.check()?;
        // A norm's weight tells, since it is never compressed and so has the same name in every file.
        let inside = vb.contains_tensor("bert.embeddings.LayerNorm.weight");
        let (vb, prefix) = if inside { (vb.pp("bert"), "bert.") } else { (vb, "") };
        let (tables, hidden) = (vb.pp("embeddings"), config.hidden_size);
        Ok(Self {
            words: embedding(config.vocab_size, hidden, tables.pp("word_embeddings"))?,
            positions: embedding(config.max_position_embeddings, hidden, tables.pp("position_embeddings"))?,
            token_types: embedding(config.type_vocab_size, hidden, tables.pp("token_type_embeddings"))?,
            norm: layer_norm(hidden, config.layer_norm_eps, tables.pp("LayerNorm"))?,
            layers: (0..config.num_hidden_layers)
                .map(|index| Layer::new(&config, vb.pp("encoder.layer").pp(index)))
                .collect::<candle_core::Result<_>>()?,
            device: vb.device().clone(),
            config,
            prefix,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The state of every position: `(batch, seq, hidden)` in the weights' type.
    ///
    /// `ids` are `(batch, seq)` in U32, I64 or U8; `token_types`, of that shape, are 0 where there are none; positions whose entry
    /// in `mask` is 0 are seen by no other.
    ///
    /// # Errors
    /// When a shape or type does not fit, or there are more positions than the model has.
    pub fn forward(
        &self,
        ids: &Tensor,
        token_types: Option<&Tensor>,
        mask: Option<&Tensor>,
    ) -> candle_core::Result<Tensor> {
        let (_, seq) = check_ids(ids)?;
        if seq > self.config.max_position_embeddings {
            let context = self.config.max_position_embeddings;
            return Err(Error::Context { context, past: 0, new: seq }.into());
        }
        let positions = self.positions.forward(&Tensor::arange(0, seq as u32, &self.device)?)?;
        let zeros;
        let token_types = match token_types {
            Some(token_types) => token_types,
            None => {
                zeros = ids.zeros_like()?;
                &zeros
            }
        };
        let embedded = (self.words.forward(ids)? + self.token_types.forward(token_types)?)?;
        let mut h = self.norm.forward(&embedded.broadcast_add(&positions)?)?;
        let mut pass = AttentionPass::full(seq, mask.cloned());
        for layer in &self.layers {
            h = layer.forward(&h, &mut pass)?;
        }
        Ok(h)
    }

    /// One vector of length 1 for each sequence, `(batch, hidden)` in F32: the mean of the states that `mask` `(batch, seq)` counts
    /// (Reimers and Gurevych, arXiv 1908.10084). The product of two is their cosine.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn sentence_embeddings(&self, ids: &Tensor, mask: &Tensor) -> candle_core::Result<Tensor> {
        let states = self.forward(ids, None, Some(mask))?.to_dtype(DType::F32)?;
        let counted = mask.to_dtype(DType::F32)?.unsqueeze(D::Minus1)?;
        // The mean's divisor is a length's, which goes with the norm.
        let sums = states.broadcast_mul(&counted)?.sum(1)?;
        sums.broadcast_div(&sums.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)
    }

    /// Every linear layer with the name that its weight has in the file.
    pub fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        const NAMES: [&str; 6] = [
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        ];
        let mut linears = Vec::new();
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let own = layer.attention.linears_mut().into_iter().chain(layer.mlp.linears_mut());
            linears.extend(NAMES.into_iter().zip(own).map(|(name, linear)| {
                (format!("{}encoder.layer.{index}.{name}.weight", self.prefix), linear)
            }));
        }
        linears
    }
}

#[derive(Clone, Debug)]
struct Layer {
    attention: RbeAttention,
    attention_norm: RbeLayerNorm,
    mlp: RbeMlp,
    norm: RbeLayerNorm,
}

impl Layer {
    fn new(config: &Config, vb: VarBuilder) -> candle_core::Result<Self> {
        let (hidden, heads) = (config.hidden_size, config.num_attention_heads);
        let norm = |vb: VarBuilder| layer_norm(hidden, config.layer_norm_eps, vb.pp("LayerNorm"));
        let part = |name: &str| linear(hidden, hidden, vb.pp("attention.self").pp(name));
        let projections = Projections::Separate { q: part("query")?, k: part("key")?, v: part("value")? };
        let out = linear(hidden, hidden, vb.pp("attention.output.dense"))?;
        let scale = 1. / ((hidden / heads) as f64).sqrt();
        let inner = config.intermediate_size;
        Ok(Self {
            attention: RbeAttention::new(projections, out, heads, heads, scale),
            attention_norm: norm(vb.pp("attention.output"))?,
            mlp: RbeMlp::new(
                linear(hidden, inner, vb.pp("intermediate.dense"))?,
                linear(inner, hidden, vb.pp("output.dense"))?,
                config.hidden_act,
            ),
            norm: norm(vb.pp("output"))?,
        })
    }

    fn forward(&self, h: &Tensor, pass: &mut AttentionPass) -> candle_core::Result<Tensor> {
        // Without a cache the layer's number has no meaning.
        let h = self.attention_norm.forward(&(h + self.attention.forward(h, 0, pass)?)?)?;
        self.norm.forward(&(&h + self.mlp.forward(&h)?)?)
    }
}
