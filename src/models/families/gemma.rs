//! Gemma (arXiv 2403.08295): LLaMA with norms around one, wide heads and embeddings scaled by the root of their width.
//! `GemmaForCausalLM`.

use super::Family;
use super::shared::{Shared, with_defaults};
use crate::models::Config;
use crate::models::config::from_fields;
use crate::models::decoder::Norm;
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};

pub(super) const FAMILY: Family = Family { model_type: "gemma", tied: true, read };

#[derive(Deserialize)]
struct Own {
    use_bidirectional_attention: Option<bool>,
}

fn read(json: Value) -> Result<Config> {
    // What the first files call hidden_act is not what the models were trained with.
    let defaults = json!({
        "rms_norm_eps": 1e-6, "tie_word_embeddings": FAMILY.tied, "num_attention_heads": 16, "num_key_value_heads": 16,
        "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192,
    });
    let (_, config) = first_gemma(&with_defaults(json, defaults), FAMILY.model_type)?;
    Ok(config)
}

/// What all generations share; this one has no more.
pub(super) fn first_gemma(json: &Value, model_type: &'static str) -> Result<(Shared, Config)> {
    let mut json = json.clone();
    // Both names may stand in a file, and this one counts.
    if let Some(fields) = json.as_object_mut().filter(|fields| fields.contains_key("hidden_activation")) {
        fields.remove("hidden_act");
        // Null in the first files, for what is the default.
        if fields["hidden_activation"].is_null() {
            fields.insert("hidden_activation".into(), "gelu_pytorch_tanh".into());
        }
    }
    let (shared, own) = (Shared::read(&json)?, from_fields::<Own>(json)?);
    if own.use_bidirectional_attention == Some(true) {
        return Err(Error::unsupported(
            "use_bidirectional_attention; this decoder sees what is before a token",
        ));
    }
    let mut config = shared.decoder(model_type)?;
    config.norm = Norm::RmsAroundOne(shared.rms_norm_eps);
    config.embedding_multiplier = Some((shared.hidden_size as f64).sqrt());
    Ok((shared, config))
}
