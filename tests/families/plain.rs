//! Families in which every token goes through all weights.

use super::*;

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

#[test]
fn phi3() -> Result<()> {
    for more in [
        json!({}),
        json!({"partial_rotary_factor": 0.5}),
        json!({"rope_scaling": {
            "type": "longrope", "short_factor": [1.0, 1.5, 2.0, 4.0], "long_factor": [2.0, 3.0, 4.0, 8.0],
        }, "original_max_position_embeddings": 64}),
    ] {
        let config = config("phi3", more);
        let (ours, weights) = model(&config)?;
        assert_eq!(weights["model.layers.0.self_attn.qkv_proj.weight"].dims(), [80, 48]);
        let mut parsed = parsed::<theirs::phi3::Config>(&config)?;
        // It multiplies by what Hugging Face's divides by.
        if let Some(scaling) = &mut parsed.rope_scaling {
            scaling.short_factor.iter_mut().for_each(|factor| *factor = factor.recip());
        }
        type Phi = theirs::phi3::Model;
        agree!("phi3", &ours, Phi::new(&parsed, builder(&weights)), |model: &mut Phi, x: &Tensor, at| {
            model.forward(x, at)
        })?;
    }
    Ok(())
}

/// Beyond the original context the other factors count, of all positions; both by a LLaMA whose bases make the same angles.
#[test]
fn phi3_beyond_its_original_context() -> Result<()> {
    let long = |original: usize, short: f64, long: f64| {
        config(
            "phi3",
            json!({"num_attention_heads": 12, "head_dim": 4, "partial_rotary_factor": 0.5, "rope_scaling": {
            "type": "su", "short_factor": [short], "long_factor": [long], "attention_factor": 1.0,
        }, "original_max_position_embeddings": original}),
        )
    };
    let (by_short, weights) = model(&long(40, 1.0, 3.0))?;
    let plain =
        config("phi3", json!({"num_attention_heads": 12, "head_dim": 4, "partial_rotary_factor": 0.5}));
    let logits = |config: &Value| -> Result<Tensor> {
        let config = Config::from_json(&config.to_string())?;
        Ok(Model::new(config, builder(&weights))?.forward_last(&ids(&prompt())?, None)?)
    };
    assert_close("short factors", &by_short.forward_last(&ids(&prompt())?, None)?, &logits(&plain)?);
    assert_close("long factors", &logits(&long(39, 7.0, 1.0))?, &logits(&plain)?);
    let differ = (logits(&long(39, 1.0, 3.0))? - logits(&plain)?)?.sqr()?.sum_all()?.to_scalar::<f32>()?;
    assert!(differ > 1e-3, "{differ}");
    Ok(())
}

#[test]
fn smollm3() -> Result<()> {
    for more in [
        json!({"no_rope_layer_interval": 2}),
        json!({"no_rope_layers": [1, 0, 0], "tie_word_embeddings": true}),
    ] {
        let config = config("smollm3", more);
        let (ours, weights) = model(&config)?;
        let parsed = parsed::<theirs::smol::smollm3::Config>(&config)?;
        type Smol = theirs::smol::smollm3::ModelForCausalLM;
        agree!(
            "smollm3",
            &ours,
            Smol::new(&parsed, builder(&weights)),
            |model: &mut Smol, x: &Tensor, at| { model.forward(x, at) }
        )?;
    }
    Ok(())
}

#[test]
fn olmo2() -> Result<()> {
    let config = config("olmo2", json!({"attention_bias": true}));
    let (ours, weights) = model(&config)?;
    assert_eq!(weights["model.layers.2.self_attn.q_norm.weight"].dims(), [48]);
    assert!(!weights.contains_key("model.layers.0.input_layernorm.weight"));
    let parsed = parsed::<theirs::olmo2::Config>(&config)?;
    type Olmo = theirs::olmo2::Model;
    agree!("olmo2", &ours, Olmo::new(&parsed, builder(&weights)), |model: &mut Olmo, x: &Tensor, at| {
        model.forward(x, at)
    })
}

/// candle-transformers leaves Granite's multipliers out: here it is a LLaMA that has them in its weights.
#[test]
fn granite() -> Result<()> {
    let (plain, mut weights) = model(&config("llama", json!({})))?;
    let multipliers = json!({
        "embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1,
    });
    let by = |name: &str| match name {
        _ if name.contains("embed_tokens") => 1. / 12.,
        _ if name.contains("lm_head") => 8.,
        _ if name.contains("o_proj") || name.contains("down_proj") => 1. / 0.22,
        _ if name.contains("q_proj") => 1. / (0.1 * 8f64.sqrt()),
        _ => 1.,
    };
    for (name, weight) in &mut weights {
        *weight = (&*weight * by(name))?;
    }
    let granite = Config::from_json(&config("granite", multipliers).to_string())?;
    let ours = Model::new(granite, builder(&weights))?;
    let tokens = ids(&prompt())?;
    assert_close("granite", &ours.forward(&tokens, None)?, &plain.forward(&tokens, None)?);
    pieces_agree("granite", &ours)
}
