//! Mixtral (Jiang et al., arXiv 2401.04088): Mistral with a mixture of experts. `MixtralForCausalLM`.

use super::Family;
use super::shared::{Shared, with_defaults};
use crate::Result;
use crate::models::Config;
use crate::models::config::from_fields;
use crate::models::decoder::{ExpertsConfig, FeedForwardConfig, MlpConfig, MlpInputs};
use serde::Deserialize;
use serde_json::{Value, json};

pub(super) const FAMILY: Family = Family { model_type: "mixtral", tied: false, read };

#[derive(Deserialize)]
struct Own {
    num_experts_per_tok: usize,
    num_local_experts: usize,
}

fn read(json: Value) -> Result<Config> {
    let defaults = json!({
        "rms_norm_eps": 1e-5, "tie_word_embeddings": FAMILY.tied, "num_key_value_heads": 8, "rope_theta": 1e6,
        "num_experts_per_tok": 2, "num_local_experts": 8,
    });
    let json = with_defaults(json, defaults);
    let (shared, own) = (Shared::read(&json)?, from_fields::<Own>(json)?);
    let mut config = shared.decoder(FAMILY.model_type)?;
    for layer in &mut config.layers {
        layer.attention.window = shared.sliding_window;
        if let FeedForwardConfig::Dense(mlp) = &layer.feed_forward {
            layer.feed_forward = FeedForwardConfig::Experts(ExpertsConfig {
                router: "block_sparse_moe.gate",
                count: own.num_local_experts,
                chosen: own.num_experts_per_tok,
                normalized: true,
                stacked: None,
                expert: MlpConfig {
                    name: "block_sparse_moe.experts",
                    inputs: MlpInputs::Gated { gate: "w1", up: "w3" },
                    output: "w2",
                    ..mlp.clone()
                },
            });
        }
    }
    config.check()?;
    Ok(config)
}
