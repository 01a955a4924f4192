//! A token's own step against the model's layers one by one.

use super::*;
use candle_rbe::nn::ForwardHook;
use candle_rbe::{Encoder, EncoderConfig, Linear, Precision, Rate, RbeLinear};
use std::sync::Arc;

/// Changes nothing; a layer that has a hook has no part in a step.
#[derive(Debug)]
struct Watched;

impl ForwardHook for Watched {
    fn after(&self, _: &Tensor, y: Tensor) -> candle_core::Result<Tensor> {
        Ok(y)
    }
}

/// The model with its linear layers compressed, of every second one the transpose, at two precisions.
fn compressed(config: &Value) -> Result<Model> {
    let (mut model, _) = model(config)?;
    let encoder = |bits| Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(bits)));
    for (n, (_, linear)) in model.linears_mut().into_iter().enumerate() {
        let (weight, bias) = (linear.weight().tensor()?.clone(), linear.bias().cloned());
        let encoder = encoder([4.2, 4.2, 6.2][n % 3])?;
        let compressed = match n % 4 == 3 {
            false => encoder.encode(&weight)?,
            true => encoder.encode(&weight.t()?.contiguous()?)?.t()?,
        };
        let precision = if n % 5 == 4 { Precision::Exact } else { Precision::Auto };
        *linear = Linear::from(RbeLinear::new(compressed, bias).with_precision(precision));
    }
    Ok(model)
}

/// The same layers without a step.
fn watched(model: &Model) -> Result<Model> {
    let mut watched = model.clone();
    watched.linears_mut().swap_remove(0).1.add_forward_hook(Arc::new(Watched));
    assert!(!watched.has_token_step()? && model.has_token_step()?);
    Ok(watched)
}

/// A prompt and tokens one by one, past where the cache grows: the same bits by either way.
fn the_same(what: &str, config: &Value) -> Result<()> {
    let model = compressed(config)?;
    let layers = watched(&model)?;
    let mut caches = [model.new_cache(), layers.new_cache()];
    let pieces = [5usize].into_iter().chain([1; 70]);
    let mut at = 0;
    for piece in pieces {
        let tokens: Vec<u32> = (at..at + piece as u32).map(|i| (i * i + 3 * i + 5) % 61).collect();
        at += piece as u32;
        let [own, others] = &mut caches;
        let states = [
            model.hidden_states(&ids(&tokens)?, Some(own))?,
            layers.hidden_states(&ids(&tokens)?, Some(others))?,
        ];
        assert_eq!(states[0].dims(), states[1].dims());
        let [own, others] = states.map(|x| x.flatten_all().and_then(|x| x.to_vec1::<f32>()));
        assert_eq!(own?, others?, "{what}, before position {at}");
    }
    assert_eq!(caches[0].len(), at as usize);
    for layer in 0..config["num_hidden_layers"].as_u64().unwrap_or(2) as usize {
        let [own, others] = caches.each_ref().map(|cache| cache.layer(layer).map(|held| held.expect("keys")));
        let ((keys, values), (others_keys, others_values)) = (own?, others?);
        for (own, others) in [(keys, others_keys), (values, others_values)] {
            let [own, others] = [own, others].map(|x| x.flatten_all().and_then(|x| x.to_vec1::<f32>()));
            assert_eq!(own?, others?, "{what}, the cache of layer {layer}");
        }
    }
    Ok(())
}

fn gpt2() -> Value {
    json!({
        "model_type": "gpt2", "vocab_size": 61, "n_positions": 128, "n_embd": 48, "n_layer": 2, "n_head": 3,
        "layer_norm_epsilon": 1e-5,
    })
}

/// What [`config`] gives, with a context of more tokens.
fn long(model_type: &str, more: Value) -> Value {
    let mut config = config(model_type, more);
    config["max_position_embeddings"] = json!(128);
    config
}

#[test]
fn a_token_has_the_bits_that_its_layers_give_it() -> Result<()> {
    let granite = json!({
        "embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1,
    });
    let gemma3 = json!({
        "sliding_window": 37, "query_pre_attn_scalar": 8, "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": null, "final_logit_softcapping": null,
    });
    let sides = json!({
        "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
        "num_hidden_layers": 1,
    });
    let primes = json!({
        "hidden_size": 61, "intermediate_size": 97, "num_attention_heads": 7, "num_key_value_heads": 7, "head_dim": 8,
    });
    for (what, config) in [
        ("llama", long("llama", json!({}))),
        ("llama with biases", long("llama", json!({"attention_bias": true, "mlp_bias": true}))),
        ("erf", long("llama", json!({"hidden_act": "gelu"}))),
        ("relu", long("llama", json!({"hidden_act": "relu"}))),
        ("SmolLM2's sides", long("llama", sides)),
        ("primes", long("llama", primes)),
        ("mistral", long("mistral", json!({"sliding_window": 20}))),
        ("qwen2", long("qwen2", json!({}))),
        ("qwen3", long("qwen3", json!({}))),
        ("phi3", long("phi3", json!({"partial_rotary_factor": 0.5}))),
        ("gemma", long("gemma", json!({"hidden_activation": "gelu_pytorch_tanh"}))),
        ("gemma3", long("gemma3_text", gemma3)),
        ("smollm3", long("smollm3", json!({}))),
        ("olmo2", long("olmo2", json!({}))),
        ("granite", long("granite", granite)),
        ("gpt2", gpt2()),
    ] {
        the_same(what, &config).map_err(|error| error.context(what))?;
    }
    Ok(())
}

#[test]
fn what_a_step_cannot_do_goes_through_the_layers() -> Result<()> {
    assert!(compressed(&gpt2())?.has_token_step()?);
    assert!(!model(&gpt2())?.0.has_token_step()?, "dense layers");
    let capped = json!({
        "sliding_window": 37, "query_pre_attn_scalar": 8, "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": 9.0, "final_logit_softcapping": 20.0,
    });
    assert!(!compressed(&config("gemma2", capped))?.has_token_step()?, "capped scores");
    let experts = json!({"num_local_experts": 4, "num_experts_per_tok": 2});
    assert!(!compressed(&config("mixtral", experts))?.has_token_step()?, "experts");
    // A layer that has become another one.
    let mut model = compressed(&gpt2())?;
    assert!(model.has_token_step()?);
    let weight = Tensor::zeros(model.linears_mut().swap_remove(1).1.weight().dims(), DType::F32, &CPU)?;
    *model.linears_mut().swap_remove(1).1 = Linear::new(weight, None);
    assert!(!model.has_token_step()?, "a layer became dense");
    Ok(())
}

#[test]
fn a_token_that_does_not_fit_leaves_the_cache_as_it_was() -> Result<()> {
    let model = compressed(&config("llama", json!({})))?;
    let mut cache = model.new_cache();
    let tokens: Vec<u32> = (0..63).map(|i| i % 61).collect();
    model.hidden_states(&ids(&tokens)?, Some(&mut cache))?;
    model.hidden_states(&ids(&[7])?, Some(&mut cache))?;
    let error = model.hidden_states(&ids(&[8])?, Some(&mut cache)).expect_err("past the context").to_string();
    assert!(error.contains("64"), "{error}");
    assert_eq!(cache.len(), 64);
    let error = model.hidden_states(&ids(&[61])?, Some(&mut model.new_cache())).expect_err("no such token");
    assert!(error.to_string().contains("61"), "{error}");
    Ok(())
}
