//! `config.json`, from a GGUF file's metadata and tensors.

use super::source::Source;
use super::tensors::{HEAD, TABLE, repeats_table};
use crate::models::Config;
use crate::{Error, Result};
use candle_core::Device;
use candle_core::quantized::GgmlDType;
use serde_json::{Map, Value, json};

/// The configuration, which one of this crate's families reads.
pub(super) fn config(source: &Source) -> Result<Value> {
    let mut json = match source.architecture.model_type {
        "gpt2" => gpt2(source)?,
        _ => shared(source)?,
    };
    for (name, value) in own(source)?.into_iter().chain(tokens(source)?) {
        json[name] = value;
    }
    Config::from_json(&json.to_string()).map_err(|e| Error::file(&source.path, e))?;
    Ok(json)
}

fn shared(source: &Source) -> Result<Value> {
    let metadata = &source.metadata;
    let heads = metadata.need_size(".attention.head_count")?;
    let hidden = metadata.need_size(".embedding_length")?;
    let head_dim = match metadata.size(".attention.key_length")? {
        Some(width) => width,
        None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(
                metadata.error(".attention.key_length", "is missing, and heads do not divide the width")
            );
        }
    };
    if metadata.size(".attention.value_length")?.is_some_and(|width| width != head_dim) {
        return Err(metadata.error(".attention.value_length", "is not that of keys, as these models have it"));
    }
    let eps = ".attention.layer_norm_rms_epsilon";
    let mut json = json!({
        "architectures": [source.architecture.class],
        "model_type": source.architecture.model_type,
        "vocab_size": vocabulary(source)?,
        "hidden_size": hidden,
        "num_hidden_layers": metadata.need_size(".block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.size(".attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        "intermediate_size": metadata.need_size(".feed_forward_length")?,
        "hidden_act": "silu",
        "max_position_embeddings": metadata.need_size(".context_length")?,
        "rms_norm_eps": metadata.need(metadata.float(eps)?, eps)?,
        "rope_theta": metadata.float(".rope.freq_base")?.unwrap_or(10_000.),
        "rope_scaling": rope_scaling(source, head_dim)?,
        "tie_word_embeddings": tied(source)?,
        "torch_dtype": torch_dtype(source),
    });
    let rotated = metadata.size(".rope.dimension_count")?.filter(|&rotated| rotated != head_dim);
    if let Some(rotated) = rotated {
        json["partial_rotary_factor"] = json!(rotated as f64 / head_dim as f64);
    }
    if source.architecture.says_biases() {
        json["attention_bias"] = has_biases(source, &["attn_q", "attn_k", "attn_v", "attn_output"])?.into();
        json["mlp_bias"] = has_biases(source, &["ffn_gate", "ffn_up", "ffn_down"])?.into();
    }
    Ok(json)
}

fn gpt2(source: &Source) -> Result<Value> {
    let metadata = &source.metadata;
    let eps = ".attention.layer_norm_epsilon";
    Ok(json!({
        "architectures": [source.architecture.class],
        "model_type": source.architecture.model_type,
        "vocab_size": vocabulary(source)?,
        "n_embd": metadata.need_size(".embedding_length")?,
        "n_layer": metadata.need_size(".block_count")?,
        "n_head": metadata.need_size(".attention.head_count")?,
        "n_inner": metadata.need_size(".feed_forward_length")?,
        "n_positions": metadata.need_size(".context_length")?,
        "layer_norm_epsilon": metadata.need(metadata.float(eps)?, eps)?,
        "activation_function": "gelu_new",
        "tie_word_embeddings": tied(source)?,
        "torch_dtype": torch_dtype(source),
    }))
}

/// What the family has beside the others.
fn own(source: &Source) -> Result<Map<String, Value>> {
    let metadata = &source.metadata;
    let window = || metadata.size(".attention.sliding_window");
    let float = |key: &str| metadata.need(metadata.float(key)?, key);
    let own = match source.architecture.model_type {
        "mistral" => json!({"sliding_window": window()?}),
        "mixtral" => json!({
            "sliding_window": window()?,
            "num_local_experts": metadata.need_size(".expert_count")?,
            "num_experts_per_tok": metadata.need_size(".expert_used_count")?,
        }),
        "qwen3_moe" => json!({
            "num_experts": metadata.need_size(".expert_count")?,
            "num_experts_per_tok": metadata.need_size(".expert_used_count")?,
            "moe_intermediate_size": metadata.need_size(".expert_feed_forward_length")?,
            "norm_topk_prob": true,
            "decoder_sparse_step": 1,
        }),
        "phi3" => json!({
            "sliding_window": window()?,
            "original_max_position_embeddings": original_context(source)?,
        }),
        "gemma" => json!({"hidden_activation": "gelu_pytorch_tanh"}),
        "gemma2" | "gemma3_text" => json!({
            "sliding_window": match source.architecture.model_type {
                "gemma2" => window()?.unwrap_or(4096),
                _ => metadata.need_size(".attention.sliding_window")?,
            },
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": score_divisor(source)?,
            "attn_logit_softcapping": metadata.float(".attn_logit_softcapping")?,
            "final_logit_softcapping": metadata.float(".final_logit_softcapping")?,
        }),
        "granite" => json!({
            "attention_multiplier": float(".attention.scale")?,
            "embedding_multiplier": float(".embedding_scale")?,
            "residual_multiplier": float(".residual_scale")?,
            "logits_scaling": float(".logit_scale")?,
        }),
        "olmo2" if window()?.is_some() => {
            return Err(metadata
                .error(".attention.sliding_window", "is OLMo 3's; of this architecture OLMo 2 is read"));
        }
        _ => json!({}),
    };
    let mut own = own.as_object().cloned().unwrap_or_default();
    if let Some(base) = metadata.float(".rope.freq_base_swa")? {
        own.insert("rope_local_base_freq".into(), base.into());
    }
    Ok(own)
}

/// What Gemma divides scores by the root of, which is in no field: the width of a head, but in the largest models, known by
/// their layers, what each head has of the whole width.
fn score_divisor(source: &Source) -> Result<usize> {
    let metadata = &source.metadata;
    let largest = if source.architecture.model_type == "gemma2" { 46 } else { 62 };
    let heads = metadata.need_size(".attention.head_count")?.max(1);
    let share = metadata.need_size(".embedding_length")? / heads;
    match metadata.need_size(".block_count")? == largest {
        true => Ok(share),
        false => Ok(metadata.size(".attention.key_length")?.unwrap_or(share)),
    }
}

/// The tokens that begin and end a text.
fn tokens(source: &Source) -> Result<Map<String, Value>> {
    let mut tokens = Map::new();
    for (name, key) in [
        ("bos_token_id", "tokenizer.ggml.bos_token_id"),
        ("eos_token_id", "tokenizer.ggml.eos_token_id"),
        ("pad_token_id", "tokenizer.ggml.padding_token_id"),
    ] {
        tokens.insert(name.into(), source.metadata.token(key)?.into());
    }
    Ok(tokens)
}

/// Rows of the token table, of which the last may be no tokens.
fn vocabulary(source: &Source) -> Result<usize> {
    let table = source.info(TABLE);
    let rows = table.and_then(|table| table.shape.dims().first().copied());
    rows.ok_or_else(|| {
        Error::file(&source.path, format!("there is no tensor {TABLE:?}; the file holds no language model"))
    })
}

fn tied(source: &Source) -> Result<bool> {
    Ok(!source.has(HEAD) || repeats_table(source)?)
}

/// Whether the linear layers of every layer have biases: all of these, or none.
fn has_biases(source: &Source, stems: &[&str]) -> Result<bool> {
    let layers = source.metadata.need_size(".block_count")?;
    let has = |layer: usize, stem: &str| source.has(&format!("blk.{layer}.{stem}.bias"));
    let first = stems.iter().any(|stem| has(0, stem));
    for (layer, stem) in (0..layers).flat_map(|layer| stems.iter().map(move |stem| (layer, stem))) {
        if has(layer, stem) != first {
            let reason =
                "is there or not there alone: these models have biases in all such layers or in none";
            return Err(source.about(&format!("blk.{layer}.{stem}.bias"), reason));
        }
    }
    Ok(first)
}

/// The type of most weights.
fn torch_dtype(source: &Source) -> &'static str {
    let weights = |stored: fn(GgmlDType) -> bool| -> usize {
        let infos = source.tensors.values().map(|(info, _)| info);
        let all = infos.filter(|info| stored(info.ggml_dtype));
        all.map(|info| info.shape.elem_count()).sum()
    };
    let [half, brain] = [weights(|t| t == GgmlDType::F16), weights(|t| t == GgmlDType::BF16)];
    let full = weights(|t| t != GgmlDType::F16 && t != GgmlDType::BF16);
    match () {
        () if half > full.max(brain) => "float16",
        () if brain > full.max(half) => "bfloat16",
        () => "float32",
    }
}

fn original_context(source: &Source) -> Result<usize> {
    match source.metadata.size(".rope.scaling.original_context_length")? {
        Some(length) => Ok(length),
        None => source.metadata.need_size(".context_length"),
    }
}

/// How rotary embedding is stretched beyond the context that the model was first trained on.
fn rope_scaling(source: &Source, head_dim: usize) -> Result<Value> {
    let metadata = &source.metadata;
    if source.has("rope_factors_long.weight") {
        return Ok(json!({
            "type": "longrope",
            "short_factor": table(source, "rope_factors_short.weight")?,
            "long_factor": table(source, "rope_factors_long.weight")?,
        }));
    }
    if source.has("rope_freqs.weight") {
        return llama3(source, head_dim);
    }
    let kind = metadata.text(".rope.scaling.type")?.unwrap_or("none");
    let factor = || metadata.need(metadata.float(".rope.scaling.factor")?, ".rope.scaling.factor");
    match kind {
        "none" => Ok(Value::Null),
        "linear" => Ok(json!({"rope_type": "linear", "factor": factor()?})),
        "yarn" => {
            let factor = factor()?;
            let mut json = json!({
                "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original_context(source)?,
            });
            if let Some(scale) = metadata.float(".rope.scaling.attn_factor")?.filter(|scale| *scale != 1.) {
                json["attention_factor"] = json!(scale * (1. + 0.1 * factor.ln()));
            }
            Ok(json)
        }
        other => {
            Err(metadata
                .error(".rope.scaling.type", format!("is {other:?}; those read are none, linear, yarn")))
        }
    }
}

/// The numbers of a small tensor.
fn table(source: &Source, tensor: &str) -> Result<Vec<f64>> {
    let read = || -> candle_core::Result<Vec<f32>> {
        let info = source.info(tensor).ok_or_else(|| candle_core::Error::msg("is missing"))?;
        source.read(tensor, info)?.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()
    };
    let numbers = read().map_err(|e| source.about(tensor, e))?;
    // With as few digits as tell them.
    Ok(numbers.iter().filter_map(|number| number.to_string().parse().ok()).collect())
}

/// LLaMA 3.1's rule, of which the file holds what it makes of each frequency. All models with it have the same three numbers
/// beside the factor, and whether these are meant the table shows.
fn llama3(source: &Source, head_dim: usize) -> Result<Value> {
    const TENSOR: &str = "rope_freqs.weight";
    let (low, high, original) = (1., 4., 8192.);
    let found = table(source, TENSOR)?;
    let factor = found.iter().copied().fold(1., f64::max);
    let theta = source.metadata.float(".rope.freq_base")?.unwrap_or(10_000.);
    let divisor = |pair: usize| {
        let wavelength = 2. * std::f64::consts::PI * theta.powf(2. * pair as f64 / head_dim as f64);
        let smooth = ((original / wavelength - low) / (high - low)).clamp(0., 1.);
        ((1. - smooth) / factor + smooth).recip()
    };
    let near = |(pair, found): (usize, &f64)| (found - divisor(pair)).abs() <= 1e-3 * found.abs();
    if found.len() != head_dim / 2 || !found.iter().enumerate().all(near) {
        let reason = "divides frequencies by other numbers than LLaMA 3's rule (from 1 to 4 turns in 8192 positions), and no \
                      configuration of these models says so";
        return Err(source.about(TENSOR, reason));
    }
    if factor == 1. {
        return Ok(Value::Null);
    }
    Ok(json!({
        "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": original as usize,
    }))
}
