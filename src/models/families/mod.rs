//! The families of models that [`Config::read`] knows: a file and a line of [`FAMILIES`] each.
//!
//! A file says what Hugging Face's configuration class defaults to, and in what the family differs from LLaMA. Its defaults
//! and meanings are those of transformers 5, which reads the files of version 4 too.

mod gemma;
mod gemma2;
mod gemma3;
pub(crate) mod gpt2;
mod granite;
mod llama;
mod mistral;
mod mixtral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod shared;
mod smollm3;

use super::Config;
use crate::Result;
use serde_json::Value;

/// A family of models.
pub(super) struct Family {
    /// `model_type` in the configuration.
    pub(super) model_type: &'static str,
    /// Whether the head is the token table where the configuration does not say.
    pub(super) tied: bool,
    /// Describes the model of a configuration.
    pub(super) read: fn(Value) -> Result<Config>,
}

/// Every supported family.
pub(super) const FAMILIES: [Family; 15] = [
    gemma::FAMILY,
    gemma2::FAMILY,
    gemma3::FAMILY,
    gemma3::WITH_IMAGES,
    gpt2::FAMILY,
    granite::FAMILY,
    llama::FAMILY,
    mistral::FAMILY,
    mixtral::FAMILY,
    olmo2::FAMILY,
    phi3::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    qwen3_moe::FAMILY,
    smollm3::FAMILY,
];
