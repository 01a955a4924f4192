//! GPT-2 (Radford et al., 2019) as Hugging Face's `GPT2LMHeadModel` computes it.

use super::activation::Activation;
use super::attention::{Pass, split_heads};
use super::config::{TokenIds, check_positive};
use super::{CausalLm, KvCache, fused};
use crate::nn::{Embedding, Linear, embedding, linear_conv1d, linear_no_bias};
use crate::{Error, Result};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::{LayerNorm, Module, VarBuilder, layer_norm};
use serde::Deserialize;

/// What `config.json` says, with every default filled in. The names are Hugging Face's.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "File")]
pub struct Config {
    /// Number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// The largest number of positions; each has a learned vector.
    pub n_positions: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Number of layers.
    pub n_layer: usize,
    /// Number of heads, a divisor of `n_embd`.
    pub n_head: usize,
    /// Width inside the feed-forward layer; `4 * n_embd` where the file says `null`.
    pub n_inner: usize,
    /// The feed-forward layer's nonlinearity.
    pub activation_function: Activation,
    /// Added to the variance in the norms.
    pub layer_norm_epsilon: f64,
    /// Whether attention scores are divided by `sqrt(n_embd / n_head)`.
    pub scale_attn_weights: bool,
    /// Whether the scores of layer `i`, counted from 0, are also divided by `i + 1`.
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Whether the output head is the token table.
    pub tie_word_embeddings: bool,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

impl Config {
    fn check(&self) -> Result<()> {
        check_positive(&[
            ("vocab_size", self.vocab_size),
            ("n_positions", self.n_positions),
            ("n_embd", self.n_embd),
            ("n_head", self.n_head),
            ("n_inner", self.n_inner),
        ])?;
        if !self.n_embd.is_multiple_of(self.n_head) {
            let reason = format!("n_embd {} is not a multiple of n_head {}", self.n_embd, self.n_head);
            return Err(Error::config(reason));
        }
        Ok(())
    }
}

/// The file itself. The defaults are those of `GPT2Config`.
#[derive(Deserialize)]
struct File {
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: Option<usize>,
    activation_function: Option<Activation>,
    #[serde(default = "default_layer_norm_epsilon")]
    layer_norm_epsilon: f64,
    #[serde(default = "yes")]
    scale_attn_weights: bool,
    #[serde(default)]
    scale_attn_by_inverse_layer_idx: bool,
    #[serde(default)]
    add_cross_attention: bool,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    #[serde(default)]
    eos_token_id: TokenIds,
}

fn default_layer_norm_epsilon() -> f64 {
    1e-5
}

fn yes() -> bool {
    true
}

impl TryFrom<File> for Config {
    type Error = Error;

    fn try_from(file: File) -> Result<Self> {
        if file.add_cross_attention {
            let what = "add_cross_attention; this GPT-2 is a decoder without an encoder".into();
            return Err(Error::Unsupported { what });
        }
        let config = Self {
            vocab_size: file.vocab_size,
            n_positions: file.n_positions,
            n_embd: file.n_embd,
            n_layer: file.n_layer,
            n_head: file.n_head,
            n_inner: file.n_inner.unwrap_or(4 * file.n_embd),
            activation_function: file.activation_function.unwrap_or(Activation::GeluTanh),
            layer_norm_epsilon: file.layer_norm_epsilon,
            scale_attn_weights: file.scale_attn_weights,
            scale_attn_by_inverse_layer_idx: file.scale_attn_by_inverse_layer_idx,
            tie_word_embeddings: file.tie_word_embeddings,
            eos_token_ids: file.eos_token_id.into(),
        };
        config.check()?;
        Ok(config)
    }
}

/// `h += attention(norm(h)); h += mlp(norm(h))` for each layer, then a norm and the head.
#[derive(Clone, Debug)]
pub struct Gpt2 {
    wte: Embedding,
    wpe: Embedding,
    h: Vec<Block>,
    ln_f: LayerNorm,
    lm_head: Linear,
    config: Config,
    device: Device,
    /// What stands before the names of the body's weights.
    prefix: &'static str,
}

impl Gpt2 {
    /// Takes the weights under Hugging Face's names, with `transformer.` before them or, as the first
    /// published checkpoints have it, without.
    ///
    /// # Errors
    /// The configuration contradicts itself; a tensor is missing or has another shape.
    pub fn new(config: Config, vb: VarBuilder) -> Result<Self> {
        config.check()?;
        // A norm's weight tells, since it is never compressed and so has the same name in every file.
        let bare = vb.contains_tensor("ln_f.weight") && !vb.contains_tensor("transformer.ln_f.weight");
        let body = if bare { vb.clone() } else { vb.pp("transformer") };
        let (vocab, width) = (config.vocab_size, config.n_embd);
        let wte = embedding(vocab, width, body.pp("wte"))?;
        let lm_head = if config.tie_word_embeddings {
            wte.as_linear()
        } else {
            linear_no_bias(width, vocab, vb.pp("lm_head"))?
        };
        let h = (0..config.n_layer)
            .map(|index| Block::new(index, &config, body.pp("h").pp(index)))
            .collect::<candle_core::Result<_>>()?;
        Ok(Self {
            wte,
            wpe: embedding(config.n_positions, width, body.pp("wpe"))?,
            h,
            ln_f: layer_norm(width, config.layer_norm_epsilon, body.pp("ln_f"))?,
            lm_head,
            config,
            device: vb.device().clone(),
            prefix: if bare { "" } else { "transformer." },
        })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Every linear layer with the name that its weight has in the file; a tied head is the table's and not among them.
    /// A layer is `(out, in)`, the transpose of what GPT-2's files hold.
    pub fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        let mut linears = Vec::new();
        for (index, block) in self.h.iter_mut().enumerate() {
            let (attn, mlp) = (&mut block.attn, &mut block.mlp);
            for (name, linear) in [
                ("attn.c_attn", &mut attn.c_attn),
                ("attn.c_proj", &mut attn.c_proj),
                ("mlp.c_fc", &mut mlp.c_fc),
                ("mlp.c_proj", &mut mlp.c_proj),
            ] {
                linears.push((format!("{}h.{index}.{name}.weight", self.prefix), linear));
            }
        }
        if !self.config.tie_word_embeddings {
            linears.push(("lm_head.weight".into(), &mut self.lm_head));
        }
        linears
    }
}

impl CausalLm for Gpt2 {
    fn hidden_states(&self, input_ids: &Tensor, cache: Option<&mut KvCache>) -> candle_core::Result<Tensor> {
        let mut pass = Pass::begin(input_ids, cache, self.h.len(), self.context_length())?;
        let positions = pass.positions();
        let positions = Tensor::arange(positions.start as u32, positions.end as u32, &self.device)?;
        let mut h = self.wte.forward(input_ids)?.broadcast_add(&self.wpe.forward(&positions)?)?;
        for block in &self.h {
            h = block.forward(&h, &mut pass)?;
        }
        pass.finish();
        fused::layer_norm(&self.ln_f, &h)
    }

    fn head(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        self.lm_head.forward(hidden)?.to_dtype(DType::F32)
    }

    fn new_cache(&self) -> KvCache {
        KvCache::new(self.h.len(), self.context_length())
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn context_length(&self) -> usize {
        self.config.n_positions
    }

    fn eos_token_ids(&self) -> &[u32] {
        &self.config.eos_token_ids
    }

    fn device(&self) -> &Device {
        &self.device
    }
}

#[derive(Clone, Debug)]
struct Block {
    ln_1: LayerNorm,
    attn: Attention,
    ln_2: LayerNorm,
    mlp: Mlp,
}

impl Block {
    fn new(index: usize, config: &Config, vb: VarBuilder) -> candle_core::Result<Self> {
        let norm = |name| layer_norm(config.n_embd, config.layer_norm_epsilon, vb.pp(name));
        Ok(Self {
            ln_1: norm("ln_1")?,
            attn: Attention::new(index, config, vb.pp("attn"))?,
            ln_2: norm("ln_2")?,
            mlp: Mlp::new(config, vb.pp("mlp"))?,
        })
    }

    fn forward(&self, h: &Tensor, pass: &mut Pass) -> candle_core::Result<Tensor> {
        let h = (h + self.attn.forward(&fused::layer_norm(&self.ln_1, h)?, pass)?)?;
        &h + self.mlp.forward(&fused::layer_norm(&self.ln_2, &h)?)?
    }
}

#[derive(Clone, Debug)]
struct Attention {
    /// Which layer of the cache is its own.
    index: usize,
    /// Queries, keys and values side by side.
    c_attn: Linear,
    c_proj: Linear,
    heads: usize,
    scale: f64,
}

impl Attention {
    fn new(index: usize, config: &Config, vb: VarBuilder) -> candle_core::Result<Self> {
        let (width, heads) = (config.n_embd, config.n_head);
        let mut scale = 1.;
        if config.scale_attn_weights {
            scale /= ((width / heads) as f64).sqrt();
        }
        if config.scale_attn_by_inverse_layer_idx {
            scale /= (index + 1) as f64;
        }
        Ok(Self {
            index,
            c_attn: linear_conv1d(width, 3 * width, vb.pp("c_attn"))?,
            c_proj: linear_conv1d(width, width, vb.pp("c_proj"))?,
            heads,
            scale,
        })
    }

    fn forward(&self, x: &Tensor, pass: &mut Pass) -> candle_core::Result<Tensor> {
        let qkv = self.c_attn.forward(x)?;
        let width = qkv.dim(D::Minus1)? / 3;
        let part = |n| split_heads(&qkv.narrow(D::Minus1, n * width, width)?, self.heads);
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        self.c_proj.forward(&pass.attend(self.index, &q, &k, &v, self.scale)?)
    }
}

#[derive(Clone, Debug)]
struct Mlp {
    c_fc: Linear,
    c_proj: Linear,
    act: Activation,
}

impl Mlp {
    fn new(config: &Config, vb: VarBuilder) -> candle_core::Result<Self> {
        Ok(Self {
            c_fc: linear_conv1d(config.n_embd, config.n_inner, vb.pp("c_fc"))?,
            c_proj: linear_conv1d(config.n_inner, config.n_embd, vb.pp("c_proj"))?,
            act: config.activation_function,
        })
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.c_proj.forward(&self.act.forward(&self.c_fc.forward(x)?)?)
    }
}
