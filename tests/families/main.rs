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

/// Two models of another implementation, one for each way.
macro_rules! agree {
    ($what:expr, $ours:expr, $make:expr, $forward:expr) => {{
        let (mut one, mut other) = ($make?, $make?);
        let at_once: Other = Box::new(move |tokens, at| $forward(&mut one, tokens, at));
        let one_by_one: Other = Box::new(move |tokens, at| $forward(&mut other, tokens, at));
        agree($what, $ours, at_once, one_by_one)
    }};
}

mod experts;
mod gemma;
mod gguf;
mod gguf_tokenizers;
mod plain;
mod token;
mod whole;

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

fn parsed<T: serde::de::DeserializeOwned>(config: &Value) -> Result<T> {
    Ok(serde_json::from_value(config.clone())?)
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
