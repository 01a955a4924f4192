//! SmolLM3: LLaMA in which every fourth layer has no rotary embedding (Yang et al., arXiv 2501.18795). `SmolLM3ForCausalLM`.

use super::Family;
use super::shared::{Shared, with_defaults};
use crate::models::Config;
use crate::models::config::{MOST, check_sizes, from_fields};
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};

pub(super) const FAMILY: Family = Family { model_type: "smollm3", tied: true, read };

#[derive(Deserialize)]
struct Own {
    #[serde(default)]
    use_sliding_window: bool,
    /// An entry a layer: 0 where there is no rotary embedding.
    no_rope_layers: Option<Vec<u8>>,
    no_rope_layer_interval: usize,
}

fn read(json: Value) -> Result<Config> {
    let defaults = json!({
        "rms_norm_eps": 1e-6, "tie_word_embeddings": FAMILY.tied, "num_key_value_heads": 4, "rope_theta": 2e6,
        "no_rope_layer_interval": 4,
    });
    let json = with_defaults(json, defaults);
    let (mut shared, own) = (Shared::read(&json)?, from_fields::<Own>(json)?);
    check_sizes(MOST, &[("no_rope_layer_interval", own.no_rope_layer_interval)])?;
    let mut config = shared.decoder(FAMILY.model_type)?;
    let layers = shared.num_hidden_layers;
    let rotated: Vec<bool> = match own.no_rope_layers {
        Some(said) if said.len() != layers => {
            let said = said.len();
            return Err(Error::config(format!(
                "no_rope_layers has {said} entries for num_hidden_layers {layers}"
            )));
        }
        Some(said) => said.iter().map(|&layer| layer != 0).collect(),
        None => (0..layers).map(|layer| !(layer + 1).is_multiple_of(own.no_rope_layer_interval)).collect(),
    };
    shared.sliding_window = shared.sliding_window.filter(|_| own.use_sliding_window);
    let switch = shared.sliding_window.is_some();
    let windows = shared.windows(|layer| switch && !rotated[layer])?;
    for ((layer, window), rotated) in config.layers.iter_mut().zip(windows).zip(&rotated) {
        layer.attention.window = window;
        layer.attention.rope.take_if(|_| !rotated);
    }
    Ok(config)
}
