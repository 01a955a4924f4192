//! GPT-2 (Radford et al., 2019) as Hugging Face's `GPT2LMHeadModel` computes it.

use super::config::{MOST, MOST_TOKENS, TokenIds, check_sizes};
use super::{CausalLm, KvCache, pass};
use crate::nn::{
    Activation, AttentionPass, Embedding, Linear, Projections, RbeAttention, RbeLayerNorm, RbeMlp, embedding,
    layer_norm, linear_conv1d, linear_no_bias,
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
        check_sizes(MOST_TOKENS, &[("vocab_size", self.vocab_size), ("n_positions", self.n_positions)])?;
        check_sizes(
            MOST,
            &[
                ("n_embd", self.n_embd),
                ("n_head", self.n_head),
                ("n_inner", self.n_inner),
                // A model of no layers has none to count.
                ("n_layer", self.n_layer.max(1)),
            ],
        )?;
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
            n_inner: file.n_inner.unwrap_or(file.n_embd.saturating_mul(4)),
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
    ln_f: RbeLayerNorm,
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

    /// The name that the token table has in the file, where it is the head too.
    pub fn tied_table(&self) -> Option<String> {
        self.config.tie_word_embeddings.then(|| format!("{}wte.weight", self.prefix))
    }

    /// Every linear layer with the name that its weight has in the file; a tied head is the table's and not among them.
    /// A layer is `(out, in)`, the transpose of what GPT-2's files hold.
    pub fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        let mut linears = Vec::new();
        for (index, block) in self.h.iter_mut().enumerate() {
            let names = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"];
            let own = block.attn.linears_mut().into_iter().chain(block.mlp.linears_mut());
            linears.extend(
                names
                    .into_iter()
                    .zip(own)
                    .map(|(name, linear)| (format!("{}h.{index}.{name}.weight", self.prefix), linear)),
            );
        }
        if !self.config.tie_word_embeddings {
            linears.push(("lm_head.weight".into(), &mut self.lm_head));
        }
        linears
    }
}

impl CausalLm for Gpt2 {
    fn hidden_states(&self, input_ids: &Tensor, cache: Option<&mut KvCache>) -> candle_core::Result<Tensor> {
        let mut pass = pass::begin(input_ids, cache, self.h.len(), self.context_length())?;
        let positions = pass.positions();
        let positions = Tensor::arange(positions.start as u32, positions.end as u32, &self.device)?;
        let mut h = self.wte.forward(input_ids)?.broadcast_add(&self.wpe.forward(&positions)?)?;
        for (index, block) in self.h.iter().enumerate() {
            h = block.forward(&h, index, &mut pass)?;
        }
        pass.finish();
        self.ln_f.forward(&h)
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
    ln_1: RbeLayerNorm,
    attn: RbeAttention,
    ln_2: RbeLayerNorm,
    mlp: RbeMlp,
}

impl Block {
    fn new(index: usize, config: &Config, vb: VarBuilder) -> candle_core::Result<Self> {
        let norm = |name| layer_norm(config.n_embd, config.layer_norm_epsilon, vb.pp(name));
        Ok(Self {
            ln_1: norm("ln_1")?,
            attn: attention(index, config, vb.pp("attn"))?,
            ln_2: norm("ln_2")?,
            mlp: RbeMlp::new(
                linear_conv1d(config.n_embd, config.n_inner, vb.pp("mlp").pp("c_fc"))?,
                linear_conv1d(config.n_inner, config.n_embd, vb.pp("mlp").pp("c_proj"))?,
                config.activation_function,
            ),
        })
    }

    fn forward(&self, h: &Tensor, index: usize, pass: &mut AttentionPass) -> candle_core::Result<Tensor> {
        let h = (h + self.attn.forward(&self.ln_1.forward(h)?, index, pass)?)?;
        &h + self.mlp.forward(&self.ln_2.forward(&h)?)?
    }
}

fn attention(index: usize, config: &Config, vb: VarBuilder) -> candle_core::Result<RbeAttention> {
    let (width, heads) = (config.n_embd, config.n_head);
    let mut scale = 1.;
    if config.scale_attn_weights {
        scale /= ((width / heads) as f64).sqrt();
    }
    if config.scale_attn_by_inverse_layer_idx {
        scale /= (index + 1) as f64;
    }
    let joined = Projections::Joined(linear_conv1d(width, 3 * width, vb.pp("c_attn"))?);
    Ok(RbeAttention::new(joined, linear_conv1d(width, width, vb.pp("c_proj"))?, heads, heads, scale))
}
