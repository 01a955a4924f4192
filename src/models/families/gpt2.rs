//! GPT-2 (Radford et al., 2019): learned positions, layer norms with biases, weights stored `(in, out)`. `GPT2LMHeadModel`.

use super::Family;
use crate::models::Config;
use crate::models::config::{MOST, MOST_TOKENS, TokenIds, check_sizes, from_fields};
use crate::models::decoder::{
    AttentionConfig, AttentionInputs, FeedForwardConfig, LayerConfig, MlpConfig, MlpInputs, Names, Norm,
    NormNames, Stored, check_layers,
};
use crate::nn::Activation;
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::Value;

pub(super) const FAMILY: Family = Family { model_type: "gpt2", tied: true, read };

/// The layers whose weights are `Conv1D`s, `(in, out)`, in models with cross-attention too.
const CONV1D: [&str; 4] = [".c_attn.weight", ".q_attn.weight", ".c_proj.weight", ".c_fc.weight"];

/// Whether a tensor of a GPT-2 file belongs to one of its `Conv1D` layers, which keep their weights as `(in, out)`.
pub(crate) fn is_conv1d(name: &str) -> bool {
    CONV1D.iter().any(|end| name.ends_with(end))
}

/// The file. The defaults are those of `GPT2Config`.
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

impl File {
    fn n_inner(&self) -> usize {
        self.n_inner.unwrap_or(self.n_embd.saturating_mul(4))
    }

    fn check(&self) -> Result<()> {
        if self.add_cross_attention {
            let what = "add_cross_attention; this GPT-2 is a decoder without an encoder";
            return Err(Error::unsupported(what));
        }
        check_sizes(MOST_TOKENS, &[("vocab_size", self.vocab_size), ("n_positions", self.n_positions)])?;
        check_sizes(MOST, &[("n_embd", self.n_embd), ("n_head", self.n_head), ("n_inner", self.n_inner())])?;
        check_layers("n_layer", self.n_layer)?;
        if !self.n_embd.is_multiple_of(self.n_head) {
            let reason = format!("n_embd {} is not a multiple of n_head {}", self.n_embd, self.n_head);
            return Err(Error::config(reason));
        }
        Ok(())
    }

    /// A layer, counted from 0.
    fn layer(&self, index: usize) -> LayerConfig {
        let head_dim = self.n_embd / self.n_head;
        let mut scale = 1.;
        if self.scale_attn_weights {
            scale /= (head_dim as f64).sqrt();
        }
        if self.scale_attn_by_inverse_layer_idx {
            scale /= (index + 1) as f64;
        }
        let attention = AttentionConfig {
            heads: self.n_head,
            kv_heads: self.n_head,
            head_dim,
            inputs: AttentionInputs::Joined("attn.c_attn"),
            output: "attn.c_proj",
            stored: Stored::InOut,
            input_bias: true,
            output_bias: true,
            norm: None,
            scale,
            softcap: None,
            window: None,
            rope: None,
        };
        let mlp = MlpConfig {
            name: "mlp",
            inputs: MlpInputs::Plain("c_fc"),
            output: "c_proj",
            stored: Stored::InOut,
            bias: true,
            intermediate_size: self.n_inner(),
            activation: self.activation_function.unwrap_or(Activation::GeluTanh),
        };
        let norms = NormNames {
            before_attention: Some("ln_1"),
            after_attention: None,
            before_feed_forward: Some("ln_2"),
            after_feed_forward: None,
        };
        LayerConfig { norms, attention, feed_forward: FeedForwardConfig::Dense(mlp) }
    }
}

fn read(json: Value) -> Result<Config> {
    let file: File = from_fields(json)?;
    file.check()?;
    Ok(Config {
        model_type: FAMILY.model_type,
        vocab_size: file.vocab_size,
        hidden_size: file.n_embd,
        max_position_embeddings: file.n_positions,
        norm: Norm::Layer(file.layer_norm_epsilon),
        layers: (0..file.n_layer).map(|index| file.layer(index)).collect(),
        embedding_multiplier: None,
        residual_multiplier: None,
        logits_divisor: None,
        logits_softcap: None,
        tie_word_embeddings: file.tie_word_embeddings,
        eos_token_ids: file.eos_token_id.into(),
        names: Names {
            // The first published checkpoints have no prefix.
            bodies: &["transformer", ""],
            tokens: "wte",
            positions: Some("wpe"),
            layers: "h",
            norm: "ln_f",
            head: "lm_head",
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conv1d_weights_are_known_by_their_names() {
        for name in ["h.0.attn.c_attn.weight", "transformer.h.11.mlp.c_proj.weight", "h.3.mlp.c_fc.weight"] {
            assert!(is_conv1d(name), "{name}");
        }
        for name in ["wte.weight", "transformer.wpe.weight", "h.0.attn.c_attn.bias", "lm_head.weight"] {
            assert!(!is_conv1d(name), "{name}");
        }
    }
}
