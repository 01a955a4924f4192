//! Phi-3 (arXiv 2404.14219) and Phi-4-mini: LLaMA with joined projections, which may rotate a part of each head.
//! `Phi3ForCausalLM`.

use super::Family;
use super::shared::{Shared, with_defaults};
use crate::Result;
use crate::models::Config;
use crate::models::decoder::{AttentionInputs, FeedForwardConfig, MlpInputs};
use serde_json::{Value, json};

pub(super) const FAMILY: Family = Family { model_type: "phi3", tied: false, read };

fn read(json: Value) -> Result<Config> {
    let defaults = json!({
        "rms_norm_eps": 1e-5, "tie_word_embeddings": FAMILY.tied, "original_max_position_embeddings": 4096,
    });
    // The first files called longrope by these.
    let shared = Shared::read(&with_defaults(json, defaults))?.with_rope_type(&["su", "yarn"], "longrope");
    let mut config = shared.decoder(FAMILY.model_type)?;
    for layer in &mut config.layers {
        let attention = &mut layer.attention;
        attention.inputs = AttentionInputs::Joined("self_attn.qkv_proj");
        attention.window = shared.sliding_window;
        (attention.input_bias, attention.output_bias) = (false, false);
        if let FeedForwardConfig::Dense(mlp) = &mut layer.feed_forward {
            mlp.inputs = MlpInputs::Joined("gate_up_proj");
            mlp.bias = false;
        }
    }
    Ok(config)
}
