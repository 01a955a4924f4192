//! Hugging Face's `config.json`.

use super::Config;
use super::families::FAMILIES;
use crate::{Error, Result, file};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::Path;

/// What works for a model of another architecture.
const OTHERWISE: &str = "a model of another kind is compressed all the same; run it by its own code in Candle with \
     `use candle_rbe::candle_nn;`, or make dense weights of it by `rbe decode`";

/// What the fields of a configuration say; an error begins with the field that it is about.
pub(super) fn from_fields<T: DeserializeOwned>(json: Value) -> Result<T> {
    serde_path_to_error::deserialize(json).map_err(|e| {
        let field = e.path().to_string();
        // What several fields contradict each other in is an error of the whole, and names them itself.
        let reason = if field == "." { e.inner().to_string() } else { format!("{field}: {}", e.inner()) };
        Error::config(reason)
    })
}

impl Config {
    /// Reads the file at `path`, or `config.json` in the directory at `path`. Where a `generation_config.json` beside it names
    /// tokens that end a text, those count, as for Hugging Face's `generate`.
    ///
    /// # Errors
    /// A file cannot be read, or [`from_json`](Self::from_json) refuses what it says.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let path = if path.is_dir() { &path.join("config.json") } else { path };
        let json = file::read_text(path)?;
        let mut config = Self::from_json(&json).map_err(|e| Error::file(path, e))?;
        let beside = path.with_file_name("generation_config.json");
        if beside.is_file() {
            let json = file::read_text(&beside)?;
            let json: Value = serde_json::from_str(&json).map_err(|e| Error::file(&beside, e))?;
            let file: GenerationFile = from_fields(json).map_err(|e| Error::file(&beside, e))?;
            let ids = Vec::from(file.eos_token_id);
            if !ids.is_empty() {
                config.eos_token_ids = ids;
            }
        }
        Ok(config)
    }

    /// Reads a configuration as transformers 4 or 5 writes it.
    ///
    /// # Errors
    /// It is not JSON, its `model_type` is not supported, a size is missing or contradicts another, or it
    /// asks for something the model here does not have.
    pub fn from_json(json: &str) -> Result<Self> {
        let json: Value = serde_json::from_str(json).map_err(|e| Error::config(e.to_string()))?;
        let supported = || FAMILIES.map(|family| family.model_type).join(", ");
        let Some(model_type) = json.get("model_type").and_then(Value::as_str) else {
            return Err(Error::config(format!("there is no \"model_type\"; supported are {}", supported())));
        };
        let Some(family) = FAMILIES.iter().find(|family| family.model_type == model_type) else {
            let what = format!("model_type {model_type:?}; supported are {}; {OTHERWISE}", supported());
            return Err(Error::unsupported(what));
        };
        (family.read)(json)
    }
}

/// Whether the models of a `model_type` tie their head to the token table where their configuration does not say.
pub(crate) fn ties_by_default(model_type: &str) -> bool {
    FAMILIES.iter().any(|family| family.tied && family.model_type == model_type)
}

/// What is taken of `generation_config.json`.
#[derive(Deserialize)]
struct GenerationFile {
    #[serde(default)]
    eos_token_id: TokenIds,
}

/// `eos_token_id`: one id, several or `null`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(untagged, expecting = "expected a token id, a list of them, or null")]
pub(super) enum TokenIds {
    #[default]
    None,
    One(u32),
    Several(Vec<u32>),
}

impl From<TokenIds> for Vec<u32> {
    fn from(ids: TokenIds) -> Self {
        match ids {
            TokenIds::None => vec![],
            TokenIds::One(id) => vec![id],
            TokenIds::Several(ids) => ids,
        }
    }
}

/// What a width, a number of heads or of layers may be: a hundred times what any model has, and products of two fit.
pub(super) const MOST: usize = 1 << 24;

/// What a number of tokens or positions may be: they are counted in 32 bits.
pub(super) const MOST_TOKENS: usize = 1 << 31;

/// Refuses a size of zero or beyond `most`, by name.
pub(super) fn check_sizes(most: usize, sizes: &[(&str, usize)]) -> Result<()> {
    let wrong = |size: usize| match size {
        0 => Some("is 0".to_owned()),
        size if size > most => Some(format!("is {size}, and {most} is the most that a model here can have")),
        _ => None,
    };
    match sizes.iter().find_map(|(name, size)| Some((name, wrong(*size)?))) {
        Some((name, wrong)) => Err(Error::config(format!("{name} {wrong}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::decoder::{AttentionConfig, FeedForwardConfig, MlpConfig, Norm};
    use crate::models::{Activation, Rope, RopeScaling};

    /// Llama 3.1 8B's file as transformers 4 writes it.
    const LLAMA_3: &str = r#"{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_cache": true,
        "transformers_version": "4.43.0", "vocab_size": 128256}"#;

    fn attention(config: &Config) -> &AttentionConfig {
        &config.layers[0].attention
    }

    fn mlp(config: &Config) -> &MlpConfig {
        match &config.layers[0].feed_forward {
            FeedForwardConfig::Dense(mlp) => mlp,
            other => panic!("{other:?}"),
        }
    }

    /// As transformers 5 writes it.
    fn in_version_5(json: &str) -> String {
        json.replace("\"rope_theta\": 500000.0, ", "")
            .replace("\"rope_scaling\": {", "\"rope_parameters\": {\"rope_theta\": 500000.0, ")
            .replace("torch_dtype", "dtype")
    }

    #[test]
    fn llama_3_as_both_versions_write_it() -> Result<()> {
        let config = Config::from_json(LLAMA_3)?;
        let scaling = RopeScaling::Llama3 {
            factor: 8.,
            low_freq_factor: 1.,
            high_freq_factor: 4.,
            original_max_position_embeddings: 8192,
        };
        let rope = Rope { theta: 500_000., part: 1., scaling };
        assert_eq!(attention(&config).rope, Some(rope));
        assert_eq!(config.layers.len(), 32);
        assert_eq!(config.eos_token_ids, [128_001, 128_008, 128_009]);
        assert_eq!((attention(&config).head_dim, attention(&config).kv_heads), (128, 8));
        assert_eq!(Config::from_json(&in_version_5(LLAMA_3))?, config);
        assert_eq!(Config::from_json(&LLAMA_3.replace("rope_type", "type"))?, config, "an old name");
        assert_eq!(
            Config::from_json(&LLAMA_3.replace("\"rope_type\"", "\"type\": \"llama3\", \"rope_type\""))?,
            config
        );
        Ok(())
    }

    #[test]
    fn tokens_that_end_a_text_may_stand_in_the_other_file() -> Result<()> {
        let room = tempfile::tempdir().map_err(|e| Error::io("a temporary directory", e))?;
        let write = |name: &str, text: &str| {
            let path = room.path().join(name);
            std::fs::write(&path, text).map_err(|e| Error::io(&path, e))
        };
        let ends = || -> Result<Vec<u32>> {
            let config = Config::read(room.path())?;
            assert_eq!(Config::read(room.path().join("config.json"))?, config);
            Ok(config.eos_token_ids)
        };
        write("config.json", LLAMA_3)?;
        assert_eq!(ends()?, [128_001, 128_008, 128_009]);
        for (said, expected) in [
            ("128009", &[128_009][..]),
            ("[128001, 7]", &[128_001, 7]),
            ("null", &[128_001, 128_008, 128_009]),
            ("[]", &[128_001, 128_008, 128_009]),
        ] {
            write("generation_config.json", &format!(r#"{{"eos_token_id": {said}, "temperature": 0.6}}"#))?;
            assert_eq!(ends()?, expected, "{said}");
        }
        write("generation_config.json", "{}")?;
        assert_eq!(ends()?, [128_001, 128_008, 128_009]);
        let silent = LLAMA_3.replace("\"eos_token_id\": [128001, 128008, 128009],", "");
        write("config.json", &silent)?;
        assert!(ends()?.is_empty());
        write("generation_config.json", r#"{"eos_token_id": 5}"#)?;
        assert_eq!(ends()?, [5]);
        let gpt2 = r#"{"model_type": "gpt2", "vocab_size": 10, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}"#;
        write("config.json", gpt2)?;
        assert_eq!(ends()?, [5]);
        write("generation_config.json", r#"{"eos_token_id": "</s>"}"#)?;
        let error = ends().expect_err("no id").to_string();
        assert!(
            error.contains("generation_config.json: invalid setting: eos_token_id: expected a token id"),
            "{error}"
        );
        Ok(())
    }

    #[test]
    fn what_a_file_may_leave_out() -> Result<()> {
        let least = r#"{"model_type": "llama", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}"#;
        let config = Config::from_json(least)?;
        assert_eq!(attention(&config).rope, Some(Rope::new(10_000.)));
        assert_eq!((attention(&config).head_dim, attention(&config).kv_heads), (4, 2));
        assert_eq!((config.norm, mlp(&config).activation), (Norm::Rms(1e-6), Activation::Silu));
        assert!(!attention(&config).input_bias && !attention(&config).output_bias && !mlp(&config).bias);
        assert!(config.eos_token_ids.is_empty() && !config.tie_word_embeddings);
        let explicit = least.replace(
            "\"vocab_size\"",
            "\"head_dim\": null, \"num_key_value_heads\": null, \"rope_scaling\": null, \"eos_token_id\": null, \"vocab_size\"",
        );
        assert_eq!(Config::from_json(&explicit)?, config);
        assert_eq!(
            Config::from_json(&explicit.replace("\"eos_token_id\": null", "\"eos_token_id\": 2"))?
                .eos_token_ids,
            [2]
        );

        let gpt2 = r#"{"model_type": "gpt2", "vocab_size": 10, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}"#;
        let config = Config::from_json(gpt2)?;
        assert_eq!((mlp(&config).intermediate_size, mlp(&config).activation), (32, Activation::GeluTanh));
        assert!(config.tie_word_embeddings);
        assert_eq!(attention(&config).scale, 0.5, "by the root of the head's width, not by the layer");
        Ok(())
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let gpt2 = r#"{"model_type": "gpt2", "vocab_size": 10, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 3}"#;
        let edits = [
            (
                "\"model_type\": \"llama\"",
                "\"model_type\": \"bert\"",
                "model_type \"bert\"; supported are gemma, gemma2, gemma3_text, gemma3, gpt2",
            ),
            ("\"model_type\": \"llama\",", "", "there is no \"model_type\""),
            ("\"llama3\"", "\"ntk\"", "rope_type \"ntk\"; supported are default, linear, dynamic, llama3"),
            ("\"factor\": 8.0,", "", "needs factor"),
            (", \"rope_type\": \"llama3\"}", "}", "rope_scaling has factor, low_freq_factor"),
            (
                "\"rope_type\": \"llama3\"}",
                "\"rope_type\": null}",
                "and no rope_type; supported are default, linear",
            ),
            (
                "\"rope_theta\": 500000.0,",
                "\"rope_theta\": 500000.0, \"rope_parameters\": {\"rope_type\": \"default\"},",
                "rope_parameters and rope_scaling say different things",
            ),
            ("[128001, 128008, 128009]", "\"</s>\"", "eos_token_id: expected a token id"),
            ("\"factor\": 8.0,", "\"factor\": -8.0,", "factor is -8"),
            (
                "\"factor\": 8.0,",
                "\"factor\": 8.0, \"partial_rotary_factor\": 1.5,",
                "partial_rotary_factor is 1.5, it must be above 0, at most 1",
            ),
            ("\"high_freq_factor\": 4.0", "\"high_freq_factor\": 1.0", "must exceed low_freq_factor"),
            (
                "\"original_max_position_embeddings\": 8192,",
                "",
                "needs a positive original_max_position_embeddings",
            ),
            ("\"rope_theta\": 500000.0", "\"rope_theta\": 0", "rope_theta is 0"),
            ("\"silu\"", "\"mish\"", "activation function \"mish\"; supported are silu"),
            (
                "\"num_key_value_heads\": 8",
                "\"num_key_value_heads\": 5",
                "not a multiple of num_key_value_heads 5",
            ),
            ("\"hidden_size\": 4096", "\"hidden_size\": 4095", "hidden_size 4095 is not a multiple"),
            ("\"hidden_size\": 4096", "\"hidden_size\": 4096, \"head_dim\": 7", "head_dim 7 is odd"),
            ("\"num_attention_heads\": 32", "\"num_attention_heads\": 0", "num_attention_heads 0"),
            ("\"vocab_size\": 128256", "\"vocab_size\": 0", "vocab_size is 0"),
            ("\"vocab_size\": 128256", "\"vocab_size\": -1", "-1"),
            ("\"hidden_size\": 4096,", "", "hidden_size"),
            (
                "\"hidden_size\": 4096",
                "\"hidden_size\": \"4096\"",
                "hidden_size: invalid type: string \"4096\"",
            ),
            ("\"hidden_size\": 4096", "\"hidden_size\": 4096.5", "hidden_size: invalid type: floating point"),
            ("\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": null", "rms_norm_eps: invalid type: null"),
            ("\"factor\": 8.0", "\"factor\": \"8\"", "rope_scaling.factor: invalid type: string \"8\""),
            ("\"silu\"", "\"mish\"", "hidden_act: unsupported: activation function"),
            (
                "[128001, 128008, 128009]",
                "[128001, -1]",
                "eos_token_id: expected a token id, a list of them, or null",
            ),
            (
                "\"num_attention_heads\": 32",
                "\"num_attention_heads\": 32, \"head_dim\": 4611686018427387904",
                "head_dim is 4611686018427387904",
            ),
            (
                "\"num_hidden_layers\": 32",
                "\"num_hidden_layers\": 4611686018427387904",
                "num_hidden_layers is 46",
            ),
            (
                "\"intermediate_size\": 14336",
                "\"intermediate_size\": 18446744073709551615",
                "intermediate_size is 18",
            ),
            (
                "\"intermediate_size\": 14336",
                "\"intermediate_size\": 18446744073709551616",
                "intermediate_size: invalid type",
            ),
            (
                "\"num_key_value_heads\": 8",
                "\"num_key_value_heads\": 9223372036854775808",
                "num_key_value_heads is 92",
            ),
            (
                "\"max_position_embeddings\": 131072",
                "\"max_position_embeddings\": 4294967296",
                "max_position_embeddings is 42",
            ),
            ("\"vocab_size\": 128256", "\"vocab_size\": 4294967296", "vocab_size is 42"),
        ];
        let edited = edits.map(|(from, to, words)| (LLAMA_3.replace(from, to), words));
        let others = [
            (gpt2.to_owned(), "n_embd 8 is not a multiple of n_head 3"),
            (gpt2.replace("8", "9").replace("{", "{\"add_cross_attention\": true, "), "add_cross_attention"),
            ("{".to_owned(), "EOF"),
            (gpt2.replace("\"n_embd\": 8", "\"n_embd\": 4611686018427387904"), "n_embd is 46"),
            (
                gpt2.replace("8", "9")
                    .replace("\"n_head\": 3", "\"n_head\": 3, \"n_inner\": 4611686018427387904"),
                "n_inner is 46",
            ),
            (
                gpt2.replace("8", "9").replace("\"n_layer\": 1", "\"n_layer\": 4611686018427387904"),
                "n_layer is 46",
            ),
        ];
        for (json, words) in edited.into_iter().chain(others) {
            let message = Config::from_json(&json).expect_err(words).to_string();
            assert!(message.contains(words), "{message:?} does not say {words:?}");
        }
    }
}
