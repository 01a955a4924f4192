//! Gemma 3 (arXiv 2503.19786), its text: Gemma 2 with norms of queries and keys in place of capped scores, a window in five
//! layers of six, and another base of the rotary embedding in those. `Gemma3ForCausalLM`, and the text of
//! `Gemma3ForConditionalGeneration`.

use super::Family;
use super::gemma2::gemma;
use super::shared::with_defaults;
use crate::models::Config;
use crate::models::config::{MOST, check_sizes, from_fields};
use crate::models::decoder::NormOver;
use crate::nn::{RopeContext, RopeParameters};
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};

pub(super) const FAMILY: Family = Family { model_type: "gemma3_text", tied: true, read };

pub(super) const WITH_IMAGES: Family = Family { model_type: "gemma3", tied: true, read: read_text };

#[derive(Deserialize)]
struct Own {
    rope_local_base_freq: f64,
    sliding_window_pattern: usize,
    local_rope: Option<RopeParameters>,
}

fn read(json: Value) -> Result<Config> {
    describe(json, FAMILY.model_type)
}

/// The part of a model of texts and images that reads and writes text.
fn read_text(json: Value) -> Result<Config> {
    let Some(text) = json.get("text_config").filter(|text| text.is_object()) else {
        return Err(Error::config("model_type \"gemma3\" needs text_config"));
    };
    // What ends a text may stand outside.
    let outside = json!({"eos_token_id": json.get("eos_token_id").cloned().unwrap_or_default()});
    let mut config = describe(with_defaults(text.clone(), outside), WITH_IMAGES.model_type)?;
    config.names.bodies = &["language_model.model", "model.language_model"];
    Ok(config)
}

fn describe(json: Value, model_type: &'static str) -> Result<Config> {
    let defaults = json!({
        "vocab_size": 262_208, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": FAMILY.tied, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "sliding_window": 4096,
        "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6,
    });
    let json = parted_ropes(with_defaults(json, defaults));
    let (shared, mut config) = gemma(&json, model_type)?;
    let own = from_fields::<Own>(json)?;
    check_sizes(MOST, &[("sliding_window_pattern", own.sliding_window_pattern)])?;
    let local = own.local_rope.unwrap_or_default().resolve(RopeContext {
        theta: Some(own.rope_local_base_freq),
        partial_rotary_factor: None,
        original_max_position_embeddings: None,
        max_position_embeddings: config.max_position_embeddings,
        head_dim: shared.head_dim()?,
    })?;
    let windows = shared.windows(|layer| !(layer + 1).is_multiple_of(own.sliding_window_pattern))?;
    for (layer, window) in config.layers.iter_mut().zip(windows) {
        layer.attention.norm = Some(NormOver::Head);
        layer.attention.window = window;
        if window.is_some() {
            layer.attention.rope = Some(local.clone());
        }
    }
    config.check()?;
    Ok(config)
}

/// Version 5 writes one object of ropes for each type of layers: that of the layers without a window takes the place of all.
fn parted_ropes(mut json: Value) -> Value {
    let Some(fields) = json.as_object_mut() else { return json };
    let Some(Value::Object(mut ropes)) = fields.get("rope_parameters").cloned() else { return json };
    let local = ropes.remove("sliding_attention");
    if let Some(full) = ropes.remove("full_attention") {
        fields.insert("rope_parameters".into(), full);
        fields.insert("local_rope".into(), local.unwrap_or_default());
    }
    json
}
