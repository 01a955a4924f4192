//! Qwen 3's mixtures of experts (arXiv 2505.09388). `Qwen3MoeForCausalLM`.

use super::Family;
use super::shared::{Shared, with_defaults};
use crate::Result;
use crate::models::Config;
use crate::models::config::{MOST, check_sizes, from_fields};
use crate::models::decoder::{ExpertsConfig, FeedForwardConfig, MlpConfig, NormOver};
use serde::Deserialize;
use serde_json::{Value, json};

pub(super) const FAMILY: Family = Family { model_type: "qwen3_moe", tied: false, read };

#[derive(Deserialize)]
struct Own {
    #[serde(default)]
    use_sliding_window: bool,
    decoder_sparse_step: usize,
    moe_intermediate_size: usize,
    num_experts_per_tok: usize,
    num_experts: usize,
    #[serde(default)]
    norm_topk_prob: bool,
    mlp_only_layers: Option<Vec<usize>>,
}

fn read(json: Value) -> Result<Config> {
    let defaults = json!({
        "rms_norm_eps": 1e-6, "tie_word_embeddings": FAMILY.tied, "num_key_value_heads": 4,
        "sliding_window": 4096, "decoder_sparse_step": 1, "moe_intermediate_size": 768, "num_experts_per_tok": 8,
        "num_experts": 128,
    });
    let json = with_defaults(json, defaults);
    let (shared, own) = (Shared::read(&json)?, from_fields::<Own>(json)?);
    check_sizes(MOST, &[("decoder_sparse_step", own.decoder_sparse_step)])?;
    let mut config = shared.decoder(FAMILY.model_type)?;
    let dense_layers = own.mlp_only_layers.unwrap_or_default();
    for (index, layer) in config.layers.iter_mut().enumerate() {
        layer.attention.norm = Some(NormOver::Head);
        layer.attention.window = shared.sliding_window.filter(|_| own.use_sliding_window);
        let routed = (index + 1).is_multiple_of(own.decoder_sparse_step) && !dense_layers.contains(&index);
        match &layer.feed_forward {
            FeedForwardConfig::Dense(mlp) if routed && own.num_experts > 0 => {
                layer.feed_forward = FeedForwardConfig::Experts(ExpertsConfig {
                    router: "mlp.gate",
                    count: own.num_experts,
                    chosen: own.num_experts_per_tok,
                    normalized: own.norm_topk_prob,
                    stacked: None,
                    expert: MlpConfig {
                        name: "mlp.experts",
                        intermediate_size: own.moe_intermediate_size,
                        ..mlp.clone()
                    },
                });
            }
            _ => {}
        }
    }
    config.check()?;
    Ok(config)
}
