//! OLMo 2 (arXiv 2501.00656): LLaMA with norms of outputs in place of inputs, and of all queries and keys together.
//! `Olmo2ForCausalLM`.

use super::Family;
use super::shared::{Shared, with_defaults};
use crate::Result;
use crate::models::Config;
use crate::models::decoder::{NormNames, NormOver};
use serde_json::{Value, json};

pub(super) const FAMILY: Family = Family { model_type: "olmo2", tied: false, read };

fn read(json: Value) -> Result<Config> {
    let json = with_defaults(json, json!({"rms_norm_eps": 1e-5, "tie_word_embeddings": FAMILY.tied}));
    let mut config = Shared::read(&json)?.decoder(FAMILY.model_type)?;
    for layer in &mut config.layers {
        layer.attention.norm = Some(NormOver::Heads);
        layer.norms = NormNames {
            before_attention: None,
            after_attention: Some("post_attention_layernorm"),
            before_feed_forward: None,
            after_feed_forward: Some("post_feedforward_layernorm"),
        };
    }
    Ok(config)
}
