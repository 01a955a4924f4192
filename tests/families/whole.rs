//! What must hold of every family: gradients, names, compressed weights.

use super::experts::qwen3_moe_config;
use super::gemma::GEMMA;
use super::*;

/// The gradient along one direction through all weights of both kinds of experts and Gemma's norms, by differences.
#[test]
fn gradients_reach_experts_routers_and_norms_around_one() -> Result<()> {
    let gemma = json!({
        "sliding_window": 5, "sliding_window_pattern": 2, "final_logit_softcapping": 20.0, "attn_logit_softcapping": 9.0,
    });
    for config in [qwen3_moe_config(true), qwen3_moe_config(false), config("gemma3_text", GEMMA(gemma))] {
        let (config, weights) = (Config::from_json(&config.to_string())?, model(&config)?.1);
        let map = VarMap::new();
        let vb = VarBuilder::from_varmap(&map, DType::F64, &CPU);
        Model::new(config.clone(), vb.clone())?;
        let variables = map.data().lock().unwrap().clone();
        for (name, variable) in &variables {
            variable.set(&weights[name].to_dtype(DType::F64)?)?;
        }
        let ours = Model::new(config, vb)?;
        let loss = || -> Result<Tensor> {
            let hidden = ours.hidden_states(&ids(&prompt()[..9])?, None)?;
            Ok((&hidden * pseudo_random(hidden.dims(), 5)?.to_dtype(DType::F64)?)?.sum_all()?)
        };
        let gradients = loss()?.backward()?;
        let mut slope = 0.;
        let mut directions = vec![];
        for (seed, (name, variable)) in variables.iter().enumerate() {
            // An expert that no token chose has none, nor has the head.
            let Some(gradient) = gradients.get(variable) else {
                assert!(name.contains("experts") || name == "lm_head.weight", "{name} has no gradient");
                continue;
            };
            let direction = pseudo_random(variable.dims(), seed)?.to_dtype(DType::F64)?;
            slope += (gradient * &direction)?.sum_all()?.to_scalar::<f64>()?;
            directions.push((variable, direction));
        }
        let step = |size: f64| -> Result<f64> {
            for (variable, direction) in &directions {
                variable.set(&(variable.as_tensor() + (direction * size)?)?)?;
            }
            Ok(loss()?.to_scalar()?)
        };
        let difference = (step(1e-6)? - step(-2e-6)?) / 2e-6;
        println!("slope {slope}, by differences {difference}");
        assert!((slope - difference).abs() < 1e-4 * difference.abs());
    }
    Ok(())
}

/// In each family the names of linear layers are those of its files, and the pattern finds the projections among them.
#[test]
fn linear_layers_have_the_names_of_the_file() -> Result<()> {
    let families = [
        config("llama", json!({})),
        config("phi3", json!({})),
        config("olmo2", json!({})),
        qwen3_moe_config(true),
        config("mixtral", json!({})),
        json!({"model_type": "gpt2", "vocab_size": 50, "n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 3}),
    ];
    for config in families {
        let (mut ours, weights) = model(&config)?;
        let pattern = regex::Regex::new(&ours.config().projections())?;
        let tables = ours.config().token_tables();
        assert!(tables.iter().any(|table| weights.contains_key(table)), "{tables:?}");
        for (name, linear) in ours.linears_mut() {
            let (weight, dims) =
                (weights.get(&name).unwrap_or_else(|| panic!("{name}")), linear.weight().dims());
            let stored = weight.dims();
            assert!(stored == dims || stored == [dims[1], dims[0]], "{name}: {stored:?} {dims:?}");
            let projection = !name.ends_with("gate.weight") && name != "lm_head.weight";
            assert_eq!(pattern.is_match(&name), projection, "{name}");
        }
        for other in weights
            .keys()
            .filter(|name| name.contains("norm") || name.contains("embed") || name.contains("wpe"))
        {
            assert!(!pattern.is_match(other), "{other}");
        }
    }
    Ok(())
}

/// Experts compress and run as any matrix.
#[test]
fn a_compressed_mixture_answers_as_its_decoded_weights() -> Result<()> {
    use candle_rbe::archive::{self, CompressOptions, Selection};
    use candle_rbe::{Encoder, EncoderConfig, Rate};
    use std::ops::ControlFlow;

    let room = tempfile::tempdir()?;
    for (at, config) in [qwen3_moe_config(true), config("gemma3_text", GEMMA(json!({"sliding_window": 9})))]
        .iter()
        .enumerate()
    {
        let (from, to) = (room.path().join(format!("dense-{at}")), room.path().join(format!("rbe-{at}")));
        std::fs::create_dir(&from)?;
        std::fs::write(from.join("config.json"), config.to_string())?;
        let weights = model(config)?.1;
        candle_core::safetensors::save(&weights, from.join("model.safetensors"))?;
        let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(5.1)))?;
        let selection = Selection::new(Some(&Config::read(&from)?.projections()), None)?.with_min_side(8);
        let options = CompressOptions { selection, ..CompressOptions::default() };
        let report = archive::compress(&from, &to, &encoder, &options, &mut |_| ControlFlow::Continue(()))?;
        assert!(report.compressed_tensors > 20, "{}", report.compressed_tensors);
        candle_rbe::set_default_layer_config(candle_rbe::LayerConfig {
            precision: candle_rbe::Precision::Exact,
            ..Default::default()
        });
        let ours = Model::load(&to, archive::open(&to, DType::F32, &CPU)?)?;
        let decoded: HashMap<String, Tensor> = weights
            .keys()
            .map(|name| Ok((name.clone(), archive::open(&to, DType::F32, &CPU)?.get_unchecked(name)?)))
            .collect::<Result<_>>()?;
        let dense = Model::new(ours.config().clone(), builder(&decoded))?;
        let tokens = ids(&prompt())?;
        assert_close("compressed", &ours.forward_last(&tokens, None)?, &dense.forward_last(&tokens, None)?);
    }
    Ok(())
}

/// A walk shows each layer what a forward of the whole does: of the dense model, and of one whose layers were compressed on the
/// way.
#[test]
fn a_walk_shows_what_a_forward_shows() -> Result<()> {
    use candle_rbe::models::Walk;
    use candle_rbe::nn::Calibration;
    use candle_rbe::{Encoder, EncoderConfig, Rate, RbeLinear};

    let families = [
        config("llama", json!({"tie_word_embeddings": true})),
        config("phi3", json!({})),
        config("olmo2", json!({})),
        config("gemma3_text", GEMMA(json!({"sliding_window": 9}))),
        qwen3_moe_config(true),
        json!({"model_type": "gpt2", "vocab_size": 61, "n_positions": 64, "n_embd": 24, "n_layer": 2, "n_head": 3}),
    ];
    let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(6.1)))?;
    for (config, compresses) in families.iter().flat_map(|config| [(config, false), (config, true)]) {
        let (mut ours, weights) = model(config)?;
        let windows = vec![ids(&prompt())?, ids(&prompt()[..9])?];
        let mut walk = Walk::new(ours.config().clone(), builder(&weights), windows.clone())?;
        let mut shown = HashMap::new();
        while let Some(seen) = walk.step(|_| true)? {
            for (name, statistics) in seen {
                let mut linears = ours.linears_mut().into_iter();
                if let Some((_, linear)) = linears.find(|(own, _)| compresses && *own == name) {
                    let tensor = encoder.encode(linear.weight().tensor()?)?;
                    walk.put(&name, &tensor)?;
                    *linear = RbeLinear::new(tensor, linear.bias().cloned()).into();
                }
                shown.insert(name, statistics);
            }
        }
        let names = walk.names();
        let mut calibration = Calibration::new(&ours, windows).of_products();
        for (at, name) in names.iter().enumerate() {
            let rest: Vec<&str> = names[at..].iter().map(String::as_str).collect();
            let (whole, step) = (calibration.statistics(&rest)?, shown.get(name));
            let (Some(whole), Some(step)) = (whole, step) else {
                // An expert that no token came to.
                assert!(
                    name.contains("experts") && (compresses || (whole.is_none() && step.is_none())),
                    "{name}"
                );
                continue;
            };
            assert_eq!(whole.shape(), step.shape(), "{name}");
            // Compressed, the router sends some tokens elsewhere than when its step was shown.
            if compresses && name.contains("experts") {
                continue;
            }
            assert_eq!(whole.count(), step.count(), "{name}");
            let (whole, step) = (whole.input_moments(), step.input_moments());
            let largest = whole.iter().copied().fold(0., f64::max);
            let off = whole.iter().zip(&step).map(|(a, b)| (a - b).abs()).fold(0., f64::max);
            assert!(off < 1e-4 * largest, "{name}, compressed {compresses}: {off} of {largest}");
        }
        assert!(shown.keys().all(|name| names.contains(name)));
    }
    Ok(())
}

#[test]
fn a_walk_refuses_what_the_model_cannot_read() -> Result<()> {
    use candle_rbe::models::Walk;
    let (ours, weights) = model(&config("llama", json!({})))?;
    let walk = |windows| Walk::new(ours.config().clone(), builder(&weights), windows);
    let refusal = |windows| walk(windows).unwrap_err().to_string();
    assert!(refusal(vec![]).contains("without samples"));
    let outside = refusal(vec![ids(&[1, ours.config().vocab_size as u32])?]);
    assert!(outside.contains("not in the vocabulary"), "{outside}");
    let longer = refusal(vec![ids(&vec![1; ours.config().max_position_embeddings + 1])?]);
    assert!(longer.contains("context"), "{longer}");
    let mut walk = walk(vec![ids(&prompt())?])?;
    let Some(seen) = walk.step(|name| name.ends_with("down_proj.weight"))? else { panic!("no step") };
    let tensor = candle_rbe::Encoder::new(Default::default())?.encode(&pseudo_random(&[64, 64], 1)?)?;
    let error = walk.put(&seen[0].0, &tensor).unwrap_err().to_string();
    assert!(error.contains("down_proj") && error.contains("shape"), "{error}");
    Ok(())
}
