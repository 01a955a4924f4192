//! Qwen 2 and 2.5 (arXiv 2407.10671): LLaMA with biases of queries, keys and values. `Qwen2ForCausalLM`.

use super::Family;
use super::shared::{Shared, with_defaults};
use crate::Result;
use crate::models::Config;
use crate::models::config::from_fields;
use serde::Deserialize;
use serde_json::{Value, json};

pub(super) const FAMILY: Family = Family { model_type: "qwen2", tied: false, read };

/// Qwen's switch of the window, which is off where nothing is said.
#[derive(Deserialize)]
struct Own {
    #[serde(default)]
    use_sliding_window: bool,
    max_window_layers: usize,
}

fn read(json: Value) -> Result<Config> {
    let defaults =
        json!({"rms_norm_eps": 1e-6, "tie_word_embeddings": FAMILY.tied, "num_key_value_heads": 32});
    let json = with_defaults(json, defaults);
    let mut config = with_windows(&json, FAMILY.model_type)?;
    for layer in &mut config.layers {
        layer.attention.input_bias = true;
        layer.attention.output_bias = false;
    }
    Ok(config)
}

/// The decoder with Qwen's windows: of the layers from `max_window_layers` on, where they are switched on.
pub(super) fn with_windows(json: &Value, model_type: &'static str) -> Result<Config> {
    let json = with_defaults(json.clone(), json!({"max_window_layers": 28, "sliding_window": 4096}));
    let (mut shared, own) = (Shared::read(&json)?, from_fields::<Own>(json)?);
    if !own.use_sliding_window {
        shared.sliding_window = None;
    }
    let mut config = shared.decoder(model_type)?;
    let (switch, first) = (shared.sliding_window.is_some(), own.max_window_layers);
    for (layer, window) in config.layers.iter_mut().zip(shared.windows(|layer| switch && layer >= first)?) {
        layer.attention.window = window;
    }
    Ok(config)
}
