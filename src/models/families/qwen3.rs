//! Qwen 3 (arXiv 2505.09388): LLaMA with norms of each head's queries and keys. `Qwen3ForCausalLM`.

use super::Family;
use super::qwen2::with_windows;
use super::shared::with_defaults;
use crate::Result;
use crate::models::Config;
use crate::models::decoder::NormOver;
use serde_json::{Value, json};

pub(super) const FAMILY: Family = Family { model_type: "qwen3", tied: false, read };

fn read(json: Value) -> Result<Config> {
    let defaults = json!({
        "rms_norm_eps": 1e-6, "tie_word_embeddings": FAMILY.tied, "num_key_value_heads": 32, "head_dim": 128,
    });
    let mut config = with_windows(&with_defaults(json, defaults), FAMILY.model_type)?;
    for layer in &mut config.layers {
        layer.attention.norm = Some(NormOver::Head);
    }
    Ok(config)
}
