//! Every family of models against `candle_transformers`' implementation of it: the same random weights under Hugging Face's
//! names, a prompt at once and token by token, and what candle-transformers has not, against what must equal it.
//! CI runs this at the best CPU level alone: it compares models, and the products have their own tests.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_rbe::models::{CausalLm, Config, Model};
use candle_transformers::models as theirs;
use serde_json::{Value, json};
use std::collections::HashMap;

const CPU: Device = Device::Cpu;
const TOKENS: usize = 40;

/// Values that look random in -1..1 and are the same in every run.
fn pseudo_random(shape: &[usize], seed: usize) -> Result<Tensor> {
    let value = |i: usize| (((i + 1) as f64 * 12.9898 + seed as f64 * 78.233).sin() * 43758.5453 % 1.) as f32;
    Ok(Tensor::from_vec((0..shape.iter().product()).map(value).collect::<Vec<_>>(), shape, &CPU)?)
}

/// The configuration of a small model: what most families share, and `more`.
fn config(model_type: &str, more: Value) -> Value {
    let mut config = json!({
        "model_type": model_type, "vocab_size": 61, "hidden_size": 48, "intermediate_size": 80,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "hidden_act": "silu", "eos_token_id": null,
    });
    for (name, value) in more.as_object().expect("an object") {
        config[name] = value.clone();
    }
    config
}

/// A model with random weights, and the weights.
fn model(config: &Value) -> Result<(Model, HashMap<String, Tensor>)> {
    let (config, map) = (Config::from_json(&config.to_string())?, VarMap::new());
    Model::new(config.clone(), VarBuilder::from_varmap(&map, DType::F32, &CPU))?;
    let shapes: std::collections::BTreeMap<String, Vec<usize>> =
        map.data().lock().unwrap().iter().map(|(name, var)| (name.clone(), var.dims().to_vec())).collect();
    let mut weights = HashMap::new();
    for (seed, (name, shape)) in shapes.into_iter().enumerate() {
        let mut value = pseudo_random(&shape, seed)?;
        if let &[_, columns] = &shape[..] {
            value = (value * (3. / columns as f64).sqrt())?;
        } else if name.contains("norm") && !name.ends_with("bias") {
            value = ((value * 0.5)? + 1.)?;
        }
        weights.insert(name, value);
    }
    Ok((Model::new(config, builder(&weights))?, weights))
}

fn builder(weights: &HashMap<String, Tensor>) -> VarBuilder<'static> {
    VarBuilder::from_tensors(weights.clone(), DType::F32, &CPU)
}

fn prompt() -> Vec<u32> {
    (0..TOKENS as u32).map(|i| (i * i + 3 * i + 5) % 61).collect()
}

fn ids(tokens: &[u32]) -> candle_core::Result<Tensor> {
    Tensor::new(tokens, &CPU)?.unsqueeze(0)
}

#[track_caller]
fn assert_close(what: &str, ours: &Tensor, expected: &Tensor) {
    let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    let ours = ours.reshape(expected.shape()).unwrap();
    let error = norm(&(ours - expected).unwrap()) / norm(expected);
    println!("{what}: relative error {error:.1e}");
    assert!(error <= 1e-4, "{what}: {error:e}");
}

/// Another implementation: tokens and how many stand before them, to the logits of the last.
type Other<'o> = Box<dyn FnMut(&Tensor, usize) -> candle_core::Result<Tensor> + 'o>;

/// Compares logits of a prompt at once, and of each of its tokens after another.
fn agree(what: &str, ours: &Model, mut at_once: Other, mut one_by_one: Other) -> Result<()> {
    let tokens = prompt();
    let whole = ours.forward(&ids(&tokens)?, None)?;
    let last = ours.forward_last(&ids(&tokens)?, None)?;
    assert_close(&format!("{what}, at once"), &last, &at_once(&ids(&tokens)?, 0)?);
    let mut cache = ours.new_cache();
    for (at, token) in tokens.iter().enumerate() {
        let logits = ours.forward_last(&ids(&[*token])?, Some(&mut cache))?;
        assert_close(&format!("{what}, token {at}"), &logits, &one_by_one(&ids(&[*token])?, at)?);
        assert_close(&format!("{what}, position {at}"), &whole.narrow(1, at, 1)?, &logits);
    }
    Ok(())
}

/// Two models of another implementation, one for each way.
macro_rules! agree {
    ($what:expr, $ours:expr, $make:expr, $forward:expr) => {{
        let (mut one, mut other) = ($make?, $make?);
        let at_once: Other = Box::new(move |tokens, at| $forward(&mut one, tokens, at));
        let one_by_one: Other = Box::new(move |tokens, at| $forward(&mut other, tokens, at));
        agree($what, $ours, at_once, one_by_one)
    }};
}

fn parsed<T: serde::de::DeserializeOwned>(config: &Value) -> Result<T> {
    Ok(serde_json::from_value(config.clone())?)
}

#[test]
fn llama() -> Result<()> {
    let config = config("llama", json!({}));
    let (ours, weights) = model(&config)?;
    let parsed = parsed::<theirs::llama::LlamaConfig>(&config)?.into_config(false);
    assert_eq!(parsed.hidden_size / parsed.num_attention_heads, 8, "candle-transformers has no head_dim");
    let make = || -> candle_core::Result<_> {
        let cache = theirs::llama::Cache::new(true, DType::F32, &parsed, &CPU)?;
        Ok((theirs::llama::Llama::load(builder(&weights), &parsed)?, cache))
    };
    type Both = (theirs::llama::Llama, theirs::llama::Cache);
    agree!("llama", &ours, make(), |both: &mut Both, x: &Tensor, at| both.0.forward(x, at, &mut both.1))
}

/// candle-transformers' windows are one position wider in a prompt, and it has none after it: the cache keeps all.
#[test]
fn mistral() -> Result<()> {
    let plain = config("mistral", json!({"sliding_window": null, "use_flash_attn": false}));
    let (ours, weights) = model(&plain)?;
    let parsed_plain = parsed::<theirs::mistral::Config>(&plain)?;
    type Mistral = theirs::mistral::Model;
    let forward = |model: &mut Mistral, x: &Tensor, at| model.forward(x, at);
    agree!("mistral", &ours, Mistral::new(&parsed_plain, builder(&weights)), forward)?;

    let windowed = config("mistral", json!({"sliding_window": 7, "use_flash_attn": false}));
    let ours = Model::new(Config::from_json(&windowed.to_string())?, builder(&weights))?;
    let narrower = theirs::mistral::Config { sliding_window: Some(6), ..parsed_plain };
    let expected = Mistral::new(&narrower, builder(&weights))?.forward(&ids(&prompt())?, 0)?;
    assert_close("mistral's window", &ours.forward_last(&ids(&prompt())?, None)?, &expected);
    pieces_agree("mistral's window", &ours)
}

/// A prompt in pieces of any length is the prompt at once.
fn pieces_agree(what: &str, model: &Model) -> Result<()> {
    let tokens = prompt();
    let whole = model.forward(&ids(&tokens)?, None)?;
    for pieces in [&[1; TOKENS][..], &[13, 1, 1, 20, 5], &[5, 35]] {
        let (mut cache, mut start) = (model.new_cache(), 0);
        for &piece in pieces {
            let logits = model.forward(&ids(&tokens[start..start + piece])?, Some(&mut cache))?;
            assert_close(&format!("{what}, {piece} from {start}"), &logits, &whole.narrow(1, start, piece)?);
            start += piece;
        }
    }
    Ok(())
}

#[test]
fn qwen2() -> Result<()> {
    let config = config(
        "qwen2",
        json!({
            "sliding_window": 64, "max_window_layers": 3, "use_sliding_window": false, "tie_word_embeddings": true,
        }),
    );
    let (ours, weights) = model(&config)?;
    assert!(weights.contains_key("model.layers.0.self_attn.q_proj.bias"));
    assert!(!weights.contains_key("model.layers.0.self_attn.o_proj.bias"));
    let parsed = parsed::<theirs::qwen2::Config>(&config)?;
    type Qwen = theirs::qwen2::ModelForCausalLM;
    agree!("qwen2", &ours, Qwen::new(&parsed, builder(&weights)), |model: &mut Qwen, x: &Tensor, at| {
        model.forward(x, at)
    })
}

/// The window of the layers from `max_window_layers` on, of all where that is 0, and none where it is switched off.
#[test]
fn qwen2s_windows() -> Result<()> {
    let windows = |more: Value| -> Result<Vec<Option<usize>>> {
        let config = Config::from_json(&config("qwen2", more).to_string())?;
        Ok(config.layers.iter().map(|layer| layer.attention.window).collect())
    };
    let on = |first| json!({"sliding_window": 5, "max_window_layers": first, "use_sliding_window": true});
    assert_eq!(windows(on(2))?, [None, None, Some(5)]);
    assert_eq!(windows(on(0))?, [Some(5); 3]);
    assert_eq!(windows(json!({"sliding_window": 5, "max_window_layers": 0}))?, [None; 3]);
    let mut said = on(0);
    said["layer_types"] = json!(["full_attention", "sliding_attention", "full_attention"]);
    assert_eq!(windows(said.clone())?, [None, Some(5), None]);
    said["layer_types"] = json!(["full_attention"]);
    assert!(windows(said).unwrap_err().to_string().contains("layer_types has 1 entries"));
    Ok(())
}

#[test]
fn qwen3() -> Result<()> {
    let config = config(
        "qwen3",
        json!({
            "head_dim": 12, "attention_bias": true, "max_window_layers": 3, "use_sliding_window": false,
        }),
    );
    let (ours, weights) = model(&config)?;
    assert_eq!(weights["model.layers.2.self_attn.k_norm.weight"].dims(), [12]);
    let parsed = parsed::<theirs::qwen3::Config>(&config)?;
    type Qwen = theirs::qwen3::ModelForCausalLM;
    agree!("qwen3", &ours, Qwen::new(&parsed, builder(&weights)), |model: &mut Qwen, x: &Tensor, at| {
        model.forward(x, at)
    })
}
