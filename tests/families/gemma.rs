//! Gemma, whose windows candle-transformers has otherwise.

use super::*;

pub(super) const GEMMA: fn(Value) -> Value = |mut more| {
    more["attention_bias"] = json!(false);
    more["hidden_activation"] = json!("gelu_pytorch_tanh");
    more["query_pre_attn_scalar"] = json!(8);
    more["tie_word_embeddings"] = json!(true);
    more
};

#[test]
fn gemma() -> Result<()> {
    let plain = config(
        "gemma",
        json!({"attention_bias": false, "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": true}),
    );
    let (ours, weights) = model(&plain)?;
    assert!(!weights.contains_key("lm_head.weight"));
    let parsed = parsed::<theirs::gemma::Config>(&plain)?;
    type Gemma = theirs::gemma::Model;
    let forward = |model: &mut Gemma, x: &Tensor, at| model.forward(x, at);
    agree!("gemma", &ours, Gemma::new(false, &parsed, builder(&weights)), forward)?;
    // What the first files say of the activation does not count.
    let mut first = plain;
    first["hidden_act"] = json!("gelu");
    assert_eq!(Config::from_json(&first.to_string())?, *ours.config());
    Ok(())
}

#[test]
fn gemma2() -> Result<()> {
    let more = json!({"final_logit_softcapping": 30.0, "attn_logit_softcapping": 2.0, "sliding_window": 64});
    let plain = config("gemma2", GEMMA(more));
    let (ours, weights) = model(&plain)?;
    assert!(!weights.contains_key("lm_head.weight"));
    let parsed = parsed::<theirs::gemma2::Config>(&plain)?;
    type Gemma = theirs::gemma2::Model;
    let forward = |model: &mut Gemma, x: &Tensor, at| model.forward(x, at);
    agree!("gemma2", &ours, Gemma::new(false, &parsed, builder(&weights)), forward)?;

    // candle-transformers has the window in every layer; Gemma 2 in every second, the first to begin with.
    let mut windowed = plain.clone();
    windowed["num_hidden_layers"] = json!(1);
    windowed["sliding_window"] = json!(7);
    let ours = Model::new(Config::from_json(&windowed.to_string())?, builder(&weights))?;
    let parsed = theirs::gemma2::Config { num_hidden_layers: 1, sliding_window: Some(6), ..parsed };
    let expected = Gemma::new(false, &parsed, builder(&weights))?.forward(&ids(&prompt())?, 0)?;
    assert_close("gemma2's window", &ours.forward_last(&ids(&prompt())?, None)?, &expected);
    windowed["num_hidden_layers"] = json!(3);
    let config = Config::from_json(&windowed.to_string())?;
    let windows: Vec<_> = config.layers.iter().map(|layer| layer.attention.window).collect();
    assert_eq!(windows, [Some(7), None, Some(7)]);
    pieces_agree("gemma2's window", &Model::new(config, builder(&weights))?)?;

    // What the scores are divided by need not be the head's width.
    let mut scaled = plain;
    scaled["query_pre_attn_scalar"] = json!(32);
    let halved = Config::from_json(&scaled.to_string())?;
    assert!((halved.layers[0].attention.scale * 32f64.sqrt() - 1.).abs() < 1e-15);
    Ok(())
}

/// A window in all layers but every third, and another base there. candle-transformers sees a position more in a prompt, and
/// as many as here afterwards; its cache of the layers without a window takes prompts of one key head alone.
#[test]
fn gemma3() -> Result<()> {
    let more = json!({
        "sliding_window": 7, "sliding_window_pattern": 3, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
        "num_hidden_layers": 4, "num_key_value_heads": 1, "final_logit_softcapping": null, "attn_logit_softcapping": null,
    });
    let config = config("gemma3_text", GEMMA(more));
    let (ours, weights) = model(&config)?;
    let parsed = parsed::<theirs::gemma3::Config>(&config)?;
    type Gemma = theirs::gemma3::Model;
    let narrower = theirs::gemma3::Config { sliding_window: 6, ..parsed.clone() };
    let mut prompt_wise = Gemma::new(false, &narrower, builder(&weights))?;
    let mut token_wise = Gemma::new(false, &parsed, builder(&weights))?;
    agree(
        "gemma3",
        &ours,
        Box::new(move |x: &Tensor, at| prompt_wise.forward(x, at)),
        Box::new(move |x: &Tensor, at| token_wise.forward(x, at)),
    )?;
    pieces_agree("gemma3", &ours)?;

    // As transformers 5 writes it, and with its text in a model of images too.
    let mut new = config.clone();
    let fields = new.as_object_mut().expect("an object");
    for old in ["rope_theta", "rope_local_base_freq", "sliding_window_pattern"] {
        fields.remove(old);
    }
    let sliding = "sliding_attention";
    fields.insert("layer_types".into(), json!([sliding, sliding, "full_attention", sliding]));
    fields.insert(
        "rope_parameters".into(),
        json!({
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }),
    );
    assert_eq!(Config::from_json(&new.to_string())?, *ours.config());
    let with_images = json!({"model_type": "gemma3", "eos_token_id": [1, 106], "text_config": config});
    let with_images = Config::from_json(&with_images.to_string())?;
    assert_eq!(with_images.layers, ours.config().layers);
    for body in ["language_model.model", "model.language_model"] {
        let renamed = weights.iter().map(|(name, w)| (name.replacen("model", body, 1), w.clone())).collect();
        let mut model = Model::new(with_images.clone(), builder(&renamed))?;
        let (tokens, expected) = (ids(&prompt())?, ours.forward_last(&ids(&prompt())?, None)?);
        assert_close(body, &model.forward_last(&tokens, None)?, &expected);
        assert_eq!(model.linears_mut()[0].0, format!("{body}.layers.0.self_attn.q_proj.weight"));
    }
    Ok(())
}
