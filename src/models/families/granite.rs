//! Granite 3: LLaMA with multipliers of embeddings, residuals, scores and logits. `GraniteForCausalLM`.

use super::Family;
use super::shared::{Shared, with_defaults};
use crate::Result;
use crate::models::Config;
use crate::models::config::from_fields;
use serde::Deserialize;
use serde_json::{Value, json};

pub(super) const FAMILY: Family = Family { model_type: "granite", tied: false, read };

#[derive(Deserialize)]
struct Own {
    embedding_multiplier: f64,
    logits_scaling: f64,
    residual_multiplier: f64,
    attention_multiplier: f64,
}

fn read(json: Value) -> Result<Config> {
    let defaults = json!({
        "rms_norm_eps": 1e-6, "tie_word_embeddings": FAMILY.tied, "embedding_multiplier": 1.0, "logits_scaling": 1.0,
        "residual_multiplier": 1.0, "attention_multiplier": 1.0,
    });
    let json = with_defaults(json, defaults);
    let mut config = Shared::read(&json)?.decoder(FAMILY.model_type)?;
    let own = from_fields::<Own>(json)?;
    config.embedding_multiplier = Some(own.embedding_multiplier);
    config.residual_multiplier = Some(own.residual_multiplier);
    config.logits_divisor = Some(own.logits_scaling);
    for layer in &mut config.layers {
        layer.attention.scale = own.attention_multiplier;
    }
    config.check()?;
    Ok(config)
}
