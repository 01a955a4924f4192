//! LLaMA 1 to 3 (Touvron et al., arXiv 2302.13971) and the models of its shape, such as SmolLM2: `LlamaForCausalLM`.

use super::Family;
use super::shared::{Shared, with_defaults};
use crate::Result;
use crate::models::Config;
use serde_json::{Value, json};

pub(super) const FAMILY: Family = Family { model_type: "llama", tied: false, read };

fn read(json: Value) -> Result<Config> {
    let json = with_defaults(json, json!({"rms_norm_eps": 1e-6, "tie_word_embeddings": FAMILY.tied}));
    Shared::read(&json)?.decoder(FAMILY.model_type)
}
