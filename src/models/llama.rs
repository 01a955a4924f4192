//! LLaMA (Touvron et al., arXiv 2302.13971) as Hugging Face's `LlamaForCausalLM` computes it: versions 1 to 3,
//! and the models that share their shape.

use super::config::{MOST, MOST_TOKENS, TokenIds, check_sizes};
use super::{CausalLm, KvCache, pass};
use crate::nn::{
    Activation, AttentionPass, Embedding, Linear, Projections, RbeAttention, RbeMlp, RbeRmsNorm, Rope,
    RopeParameters, embedding, linear_b, linear_no_bias, rms_norm,
};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::{Module, VarBuilder};
use serde::Deserialize;

/// What `config.json` says, with every default filled in. The names are Hugging Face's.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "File")]
pub struct Config {
    /// Number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads, a divisor of the query heads.
    pub num_key_value_heads: usize,
    /// Width of a head; `hidden_size / num_attention_heads` where the file does not say.
    pub head_dim: usize,
    /// The largest number of positions.
    pub max_position_embeddings: usize,
    /// Added to the mean square in the norms.
    pub rms_norm_eps: f64,
    /// Rotary position embedding.
    pub rope: Rope,
    /// The gate's nonlinearity.
    pub hidden_act: Activation,
    /// Whether the four projections of attention have a bias.
    pub attention_bias: bool,
    /// Whether the three projections of the feed-forward layer have a bias.
    pub mlp_bias: bool,
    /// Whether the output head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
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
                ("num_key_value_heads", self.num_key_value_heads),
                ("head_dim", self.head_dim),
                // A model of no layers has none to count.
                ("num_hidden_layers", self.num_hidden_layers.max(1)),
            ],
        )?;
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(Error::config(format!(
                "num_attention_heads {} is not a multiple of num_key_value_heads {}",
                self.num_attention_heads, self.num_key_value_heads
            )));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(Error::config(format!(
                "head_dim {} is odd; heads are rotated in pairs",
                self.head_dim
            )));
        }
        Ok(())
    }
}

/// The file as transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`) writes it. The defaults
/// are those of `LlamaConfig`.
#[derive(Deserialize)]
struct File {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    #[serde(default = "default_rms_norm_eps")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeParameters>,
    rope_parameters: Option<RopeParameters>,
    hidden_act: Option<Activation>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    eos_token_id: TokenIds,
}

fn default_rms_norm_eps() -> f64 {
    1e-6
}

impl TryFrom<File> for Config {
    type Error = Error;

    fn try_from(file: File) -> Result<Self> {
        let heads = file.num_attention_heads;
        let head_dim = match file.head_dim {
            Some(head_dim) => head_dim,
            None if heads > 0 && file.hidden_size.is_multiple_of(heads) => file.hidden_size / heads,
            None => {
                return Err(Error::config(format!(
                    "hidden_size {} is not a multiple of num_attention_heads {heads} and there is no head_dim",
                    file.hidden_size
                )));
            }
        };
        let rope = |said: RopeParameters| said.resolve(file.rope_theta);
        let rope = match (file.rope_parameters, file.rope_scaling) {
            (None, None) => rope(RopeParameters::default())?,
            (Some(said), None) | (None, Some(said)) => rope(said)?,
            (Some(one), Some(other)) => {
                let (one, other) = (rope(one)?, rope(other)?);
                if one != other {
                    return Err(Error::config(format!(
                        "rope_parameters and rope_scaling say different things: {one:?} and {other:?}"
                    )));
                }
                one
            }
        };
        let config = Self {
            vocab_size: file.vocab_size,
            hidden_size: file.hidden_size,
            intermediate_size: file.intermediate_size,
            num_hidden_layers: file.num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: file.num_key_value_heads.unwrap_or(heads),
            head_dim,
            max_position_embeddings: file.max_position_embeddings,
            rms_norm_eps: file.rms_norm_eps,
            rope,
            hidden_act: file.hidden_act.unwrap_or(Activation::Silu),
            attention_bias: file.attention_bias,
            mlp_bias: file.mlp_bias,
            tie_word_embeddings: file.tie_word_embeddings,
            eos_token_ids: file.eos_token_id.into(),
        };
        config.check()?;
        Ok(config)
    }
}

/// `h += attention(norm(h)); h += mlp(norm(h))` for each layer, then a norm and the head.
#[derive(Clone, Debug)]
pub struct Llama {
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: RbeRmsNorm,
    lm_head: Linear,
    /// Radians per position, `head_dim / 2` of them.
    frequencies: Vec<f32>,
    config: Config,
    device: Device,
}

impl Llama {
    /// Takes the weights under Hugging Face's names: `model.layers.0.self_attn.q_proj.weight`, ...,
    /// `lm_head.weight` unless the head is tied.
    ///
    /// # Errors
    /// The configuration contradicts itself; a tensor is missing or has another shape.
    pub fn new(config: Config, vb: VarBuilder) -> Result<Self> {
        config.check()?;
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let model = vb.pp("model");
        let embed_tokens = embedding(vocab, hidden, model.pp("embed_tokens"))?;
        let lm_head = if config.tie_word_embeddings {
            embed_tokens.as_linear()
        } else {
            linear_no_bias(hidden, vocab, vb.pp("lm_head"))?
        };
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::new(&config, model.pp("layers").pp(index)))
            .collect::<candle_core::Result<_>>()?;
        Ok(Self {
            embed_tokens,
            layers,
            norm: rms_norm(hidden, config.rms_norm_eps, model.pp("norm"))?,
            lm_head,
            frequencies: config.rope.frequencies(config.head_dim),
            config,
            device: vb.device().clone(),
        })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The name that the token table has in the file, where it is the head too.
    pub fn tied_table(&self) -> Option<String> {
        self.config.tie_word_embeddings.then(|| "model.embed_tokens.weight".into())
    }

    /// Every linear layer with the name that its weight has in the file; a tied head is the table's and not among them.
    pub fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        let mut linears = Vec::new();
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let names = ["q_proj", "k_proj", "v_proj", "o_proj"].map(|name| format!("self_attn.{name}"));
            let names = names
                .into_iter()
                .chain(["gate_proj", "up_proj", "down_proj"].map(|name| format!("mlp.{name}")));
            let own = layer.self_attn.linears_mut().into_iter().chain(layer.mlp.linears_mut());
            linears.extend(
                names.zip(own).map(|(name, linear)| (format!("model.layers.{index}.{name}.weight"), linear)),
            );
        }
        if !self.config.tie_word_embeddings {
            linears.push(("lm_head.weight".into(), &mut self.lm_head));
        }
        linears
    }
}

impl CausalLm for Llama {
    fn hidden_states(&self, input_ids: &Tensor, cache: Option<&mut KvCache>) -> candle_core::Result<Tensor> {
        let pass = pass::begin(input_ids, cache, self.layers.len(), self.context_length())?;
        let mut h = self.embed_tokens.forward(input_ids)?;
        let mut pass = pass.rotated(&self.frequencies, h.dtype(), &self.device)?;
        for (index, layer) in self.layers.iter().enumerate() {
            h = layer.forward(&h, index, &mut pass)?;
        }
        pass.finish();
        self.norm.forward(&h)
    }

    fn head(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        self.lm_head.forward(hidden)?.to_dtype(DType::F32)
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

#[derive(Clone, Debug)]
struct Layer {
    input_layernorm: RbeRmsNorm,
    self_attn: RbeAttention,
    post_attention_layernorm: RbeRmsNorm,
    mlp: RbeMlp,
}

impl Layer {
    fn new(config: &Config, vb: VarBuilder) -> candle_core::Result<Self> {
        let norm = |name| rms_norm(config.hidden_size, config.rms_norm_eps, vb.pp(name));
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn: attention(config, vb.pp("self_attn"))?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: mlp(config, vb.pp("mlp"))?,
        })
    }

    fn forward(&self, h: &Tensor, index: usize, pass: &mut AttentionPass) -> candle_core::Result<Tensor> {
        let h = (h + self.self_attn.forward(&self.input_layernorm.forward(h)?, index, pass)?)?;
        &h + self.mlp.forward(&self.post_attention_layernorm.forward(&h)?)?
    }
}

/// Grouped-query attention.
fn attention(config: &Config, vb: VarBuilder) -> candle_core::Result<RbeAttention> {
    let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
    let (hidden, bias) = (config.hidden_size, config.attention_bias);
    let projections = Projections::Separate {
        q: linear_b(hidden, heads * config.head_dim, bias, vb.pp("q_proj"))?,
        k: linear_b(hidden, kv_heads * config.head_dim, bias, vb.pp("k_proj"))?,
        v: linear_b(hidden, kv_heads * config.head_dim, bias, vb.pp("v_proj"))?,
    };
    let out = linear_b(heads * config.head_dim, hidden, bias, vb.pp("o_proj"))?;
    Ok(RbeAttention::new(projections, out, heads, kv_heads, 1. / (config.head_dim as f64).sqrt()))
}

fn mlp(config: &Config, vb: VarBuilder) -> candle_core::Result<RbeMlp> {
    let (hidden, inner, bias) = (config.hidden_size, config.intermediate_size, config.mlp_bias);
    Ok(RbeMlp::gated(
        linear_b(hidden, inner, bias, vb.pp("gate_proj"))?,
        linear_b(hidden, inner, bias, vb.pp("up_proj"))?,
        linear_b(inner, hidden, bias, vb.pp("down_proj"))?,
        config.hidden_act,
    ))
}
