//! What most families' configurations have in common, and the LLaMA-shaped decoder that it describes.

use crate::models::config::{TokenIds, from_fields};
use crate::models::decoder::{
    AttentionConfig, AttentionInputs, Config, FeedForwardConfig, LayerConfig, MlpConfig, MlpInputs, Names,
    Norm, NormNames, Stored, check_layers,
};
use crate::nn::{Activation, Rope, RopeContext, RopeParameters};
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::Value;

/// The fields, as transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`) writes them.
#[derive(Deserialize)]
pub(super) struct Shared {
    vocab_size: usize,
    pub(super) hidden_size: usize,
    intermediate_size: usize,
    pub(super) num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    pub(super) rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeParameters>,
    rope_parameters: Option<RopeParameters>,
    partial_rotary_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    #[serde(alias = "hidden_activation")]
    hidden_act: Option<Activation>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    tie_word_embeddings: bool,
    #[serde(default)]
    eos_token_id: TokenIds,
    pub(super) sliding_window: Option<usize>,
    layer_types: Option<Vec<LayerType>>,
}

/// What a layer may look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum LayerType {
    #[serde(rename = "full_attention")]
    Full,
    #[serde(rename = "sliding_attention")]
    Sliding,
}

/// `json` with the fields of `defaults` that it does not have.
pub(super) fn with_defaults(mut json: Value, defaults: Value) -> Value {
    if let (Value::Object(said), Value::Object(defaults)) = (&mut json, defaults) {
        for (name, value) in defaults {
            said.entry(name).or_insert(value);
        }
    }
    json
}

/// LLaMA's names.
pub(super) const NAMES: Names = Names {
    bodies: &["model"],
    tokens: "embed_tokens",
    positions: None,
    layers: "layers",
    norm: "norm",
    head: "lm_head",
};

impl Shared {
    /// The fields of a configuration that has all a family's defaults.
    pub(super) fn read(json: &Value) -> Result<Self> {
        from_fields(json.clone())
    }

    /// The width of a head.
    pub(super) fn head_dim(&self) -> Result<usize> {
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        match self.head_dim {
            Some(head_dim) => Ok(head_dim),
            None if heads > 0 && hidden.is_multiple_of(heads) => Ok(hidden / heads),
            None => Err(Error::config(format!(
                "hidden_size {hidden} is not a multiple of num_attention_heads {heads} and there is no head_dim"
            ))),
        }
    }

    /// The same with rope types that a family took for another.
    pub(super) fn with_rope_type(mut self, old: &[&str], new: &str) -> Self {
        for said in [&mut self.rope_scaling, &mut self.rope_parameters] {
            *said = said.take().map(|said| said.renamed(old, new));
        }
        self
    }

    fn rope(&self) -> Result<Rope> {
        let beside = RopeContext {
            theta: self.rope_theta,
            partial_rotary_factor: self.partial_rotary_factor,
            original_max_position_embeddings: self.original_max_position_embeddings,
            max_position_embeddings: self.max_position_embeddings,
            head_dim: self.head_dim()?,
        };
        let rope = |said: &RopeParameters| said.clone().resolve(beside);
        match (&self.rope_parameters, &self.rope_scaling) {
            (None, None) => rope(&RopeParameters::default()),
            (Some(said), None) | (None, Some(said)) => rope(said),
            (Some(one), Some(other)) => {
                let (one, other) = (rope(one)?, rope(other)?);
                if one == other {
                    return Ok(one);
                }
                Err(Error::config(format!(
                    "rope_parameters and rope_scaling say different things: {one:?} and {other:?}"
                )))
            }
        }
    }

    /// Which layers have the window, where `layer_types` does not say: those that `sliding` is true of.
    pub(super) fn windows(&self, sliding: impl Fn(usize) -> bool) -> Result<Vec<Option<usize>>> {
        let layers = self.num_hidden_layers;
        let types = match &self.layer_types {
            Some(types) if types.len() != layers => {
                let said = types.len();
                return Err(Error::config(format!(
                    "layer_types has {said} entries for num_hidden_layers {layers}"
                )));
            }
            Some(types) => types.clone(),
            None => {
                let of = |layer| if sliding(layer) { LayerType::Sliding } else { LayerType::Full };
                (0..layers).map(of).collect()
            }
        };
        let window = |kind| match (kind, self.sliding_window) {
            (LayerType::Full, _) => Ok(None),
            (LayerType::Sliding, Some(window)) => Ok(Some(window)),
            (LayerType::Sliding, None) => {
                Err(Error::config("layer_types has sliding_attention and there is no sliding_window"))
            }
        };
        types.into_iter().map(window).collect()
    }

    /// The decoder that LLaMA would be with these fields.
    pub(super) fn decoder(&self, model_type: &'static str) -> Result<Config> {
        check_layers("num_hidden_layers", self.num_hidden_layers)?;
        let heads = self.num_attention_heads;
        let head_dim = self.head_dim()?;
        let attention = AttentionConfig {
            heads,
            kv_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim,
            inputs: AttentionInputs::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            output: "self_attn.o_proj",
            stored: Stored::OutIn,
            input_bias: self.attention_bias,
            output_bias: self.attention_bias,
            norm: None,
            scale: 1. / (head_dim as f64).sqrt(),
            softcap: None,
            window: None,
            rope: Some(self.rope()?),
        };
        let mlp = MlpConfig {
            name: "mlp",
            inputs: MlpInputs::Gated { gate: "gate_proj", up: "up_proj" },
            output: "down_proj",
            stored: Stored::OutIn,
            bias: self.mlp_bias,
            intermediate_size: self.intermediate_size,
            activation: self.hidden_act.unwrap_or(Activation::Silu),
        };
        let norms = NormNames {
            before_attention: Some("input_layernorm"),
            after_attention: None,
            before_feed_forward: Some("post_attention_layernorm"),
            after_feed_forward: None,
        };
        let layer = LayerConfig { norms, attention, feed_forward: FeedForwardConfig::Dense(mlp) };
        let config = Config {
            model_type,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            max_position_embeddings: self.max_position_embeddings,
            norm: Norm::Rms(self.rms_norm_eps),
            layers: vec![layer; self.num_hidden_layers],
            embedding_multiplier: None,
            residual_multiplier: None,
            logits_divisor: None,
            logits_softcap: None,
            tie_word_embeddings: self.tie_word_embeddings,
            eos_token_ids: self.eos_token_id.clone().into(),
            names: NAMES,
        };
        config.check()?;
        Ok(config)
    }
}
