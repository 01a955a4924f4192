//! Mistral (Jiang et al., arXiv 2310.06825): LLaMA with a window. `MistralForCausalLM`.

use super::Family;
use super::shared::{Shared, with_defaults};
use crate::Result;
use crate::models::Config;
use serde_json::{Value, json};

pub(super) const FAMILY: Family = Family { model_type: "mistral", tied: false, read };

fn read(json: Value) -> Result<Config> {
    let defaults = json!({
        "rms_norm_eps": 1e-6, "tie_word_embeddings": FAMILY.tied, "num_key_value_heads": 8, "sliding_window": 4096,
    });
    let shared = Shared::read(&with_defaults(json, defaults))?;
    let mut config = shared.decoder(FAMILY.model_type)?;
    for layer in &mut config.layers {
        layer.attention.window = shared.sliding_window;
    }
    Ok(config)
}
