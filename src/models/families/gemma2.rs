//! Gemma 2 (arXiv 2408.00118): norms around one on both sides, a window in every second layer, capped scores and logits.
//! `Gemma2ForCausalLM`.

use super::Family;
use super::gemma::first_gemma;
use super::shared::{Shared, with_defaults};
use crate::Result;
use crate::models::Config;
use crate::models::config::from_fields;
use crate::models::decoder::NormNames;
use serde::Deserialize;
use serde_json::{Value, json};

pub(super) const FAMILY: Family = Family { model_type: "gemma2", tied: true, read };

/// What both generations say beside the fields of others.
#[derive(Deserialize)]
struct Own {
    query_pre_attn_scalar: f64,
    attn_logit_softcapping: Option<f64>,
    final_logit_softcapping: Option<f64>,
}

fn read(json: Value) -> Result<Config> {
    let defaults = json!({
        "rms_norm_eps": 1e-6, "tie_word_embeddings": FAMILY.tied, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256,
        "sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    });
    let json = with_defaults(json, defaults);
    let (shared, mut config) = gemma(&json, FAMILY.model_type)?;
    let windows = shared.windows(|layer| layer.is_multiple_of(2))?;
    for (layer, window) in config.layers.iter_mut().zip(windows) {
        layer.attention.window = window;
    }
    config.check()?;
    Ok(config)
}

/// What the second and the third generation share: all but windows and ropes.
pub(super) fn gemma(json: &Value, model_type: &'static str) -> Result<(Shared, Config)> {
    let own = from_fields::<Own>(json.clone())?;
    let (shared, mut config) = first_gemma(json, model_type)?;
    config.logits_softcap = own.final_logit_softcapping;
    for layer in &mut config.layers {
        layer.norms = NormNames {
            before_attention: Some("input_layernorm"),
            after_attention: Some("post_attention_layernorm"),
            before_feed_forward: Some("pre_feedforward_layernorm"),
            after_feed_forward: Some("post_feedforward_layernorm"),
        };
        layer.attention.scale = own.query_pre_attn_scalar.powf(-0.5);
        layer.attention.softcap = own.attn_logit_softcapping;
    }
    Ok((shared, config))
}
