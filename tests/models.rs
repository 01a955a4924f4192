//! The models against other implementations of them, and against themselves.

use anyhow::Result;
use candle_core::{DType, Device, IndexOp, Tensor, safetensors};
use candle_nn::{VarBuilder, VarMap};
use candle_rbe::models::{CausalLm, Config, Model, Windows, evaluate, generate, greedy};
use candle_transformers::generation::LogitsProcessor;
use candle_transformers::models::llama as theirs;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

const CPU: Device = Device::Cpu;
const NAMES: [&str; 2] = ["llama-books", "gpt2-books"];

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name)
}

fn weights(name: &str) -> Result<HashMap<String, Tensor>> {
    Ok(safetensors::load(directory(name).join("model.safetensors"), &CPU)?)
}

fn load(name: &str, dtype: DType) -> Result<Model> {
    Ok(Model::load(directory(name), VarBuilder::from_tensors(weights(name)?, dtype, &CPU))?)
}

fn reference(name: &str) -> Result<HashMap<String, Tensor>> {
    Ok(safetensors::load(directory(name).join("reference.safetensors"), &CPU)?)
}

/// The beginning of the evaluation text.
fn tokens(count: usize) -> Result<Vec<u32>> {
    let text = std::fs::read_to_string(directory("evaluation.txt"))?;
    let file = directory("llama-books").join("tokenizer.json");
    let tokenizer = tokenizers::Tokenizer::from_file(file).map_err(anyhow::Error::msg)?;
    let ids = tokenizer.encode(text, false).map_err(anyhow::Error::msg)?.get_ids().to_vec();
    Ok(ids[..count].to_vec())
}

fn ids(tokens: &[u32]) -> Result<Tensor> {
    Ok(Tensor::new(tokens, &CPU)?.unsqueeze(0)?)
}

/// `max |a - b| / max |b|` or `|a - b| / |b|` (Frobenius), whichever is larger.
fn relative_error(a: &Tensor, b: &Tensor) -> Result<f64> {
    assert_eq!(a.dims(), b.dims());
    let values = |x: &Tensor| -> Result<Vec<f64>> { Ok(x.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?) };
    let (b, difference) = (values(b)?, values(&(a.to_dtype(DType::F64)? - b.to_dtype(DType::F64)?)?)?);
    let max = |x: &[f64]| x.iter().fold(0., |max: f64, x| if x.is_nan() { *x } else { max.max(x.abs()) });
    let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    Ok(f64::max(max(&difference) / max(&b), norm(&difference) / norm(&b)))
}

#[track_caller]
fn assert_close(what: &str, a: &Tensor, b: &Tensor, tolerance: f64) {
    let error = relative_error(a, b).unwrap();
    println!("{what}: relative error {error:.2e}");
    assert!(error <= tolerance, "{what}: relative error {error:e} exceeds {tolerance:e}");
}

#[track_caller]
fn assert_refused<T>(result: Result<T, impl std::fmt::Display>, words: &[&str]) {
    let message = result.err().expect("must be refused").to_string();
    for word in words {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
}

/// Values that look random in -1..1 and are the same in every run.
fn pseudo_random(shape: &[usize], seed: usize, dtype: DType) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    let value = |i: usize| ((i + 1) as f64 * 12.9898 + seed as f64 * 78.233).sin() * 43758.5453 % 1.;
    let values: Vec<f64> = (0..count).map(value).collect();
    Ok(Tensor::from_vec(values, shape, &CPU)?.to_dtype(dtype)?)
}

/// A small model with pseudo-random weights, which the returned map holds as variables.
fn small(json: &str, dtype: DType) -> Result<(Model, VarMap)> {
    let (config, map) = (Config::from_json(json)?, VarMap::new());
    Model::new(config.clone(), VarBuilder::from_varmap(&map, dtype, &CPU))?;
    let mut names: Vec<String> = map.data().lock().unwrap().keys().cloned().collect();
    names.sort();
    for (seed, name) in names.iter().enumerate() {
        let shape = map.data().lock().unwrap()[name].dims().to_vec();
        let mut value = (pseudo_random(&shape, seed, dtype)? * 0.4)?;
        if name.contains("norm") || name.contains("ln_") {
            value = (value + 1.)?;
        }
        map.data().lock().unwrap()[name].set(&value)?;
    }
    Ok((Model::new(config, VarBuilder::from_varmap(&map, dtype, &CPU))?, map))
}

const SMALL_LLAMA: &str = r#"{"model_type": "llama", "vocab_size": 50, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 64, "attention_bias": true, "mlp_bias": true, "tie_word_embeddings": true,
    "eos_token_id": null}"#;

const SMALL_GPT2: &str = r#"{"model_type": "gpt2", "vocab_size": 50, "n_positions": 32, "n_embd": 24, "n_layer": 2,
    "n_head": 3, "n_inner": 40, "eos_token_id": null}"#;

#[test]
fn logits_and_hidden_states_are_those_of_hugging_face() -> Result<()> {
    for name in NAMES {
        let (model, reference) = (load(name, DType::F32)?, reference(name)?);
        let input = &reference["input_ids"];
        let hidden = model.hidden_states(input, None)?;
        assert_close(&format!("{name} hidden states"), &hidden, &reference["hidden_last"], 1e-4);
        let logits = model.forward(input, None)?;
        assert_eq!(logits.dtype(), DType::F32);
        assert_close(&format!("{name} logits"), &logits, &reference["logits"], 1e-4);
        let last = model.forward_last(input, None)?;
        assert_close(&format!("{name} last logits"), &last, &reference["logits"].i((.., 47))?, 1e-4);
    }
    Ok(())
}

#[test]
fn greedy_text_is_that_of_hugging_face() -> Result<()> {
    for name in NAMES {
        let json: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(directory(name).join("greedy.json"))?)?;
        let list = |key: &str| serde_json::from_value::<Vec<u32>>(json[key].clone());
        let (prompt, expected) = (list("prompt_ids")?, list("greedy_ids")?);
        let model = load(name, DType::F32)?;
        let new = expected.len() - prompt.len();
        let text = generate(&model, &prompt, new, greedy).collect::<Result<Vec<u32>, _>>()?;
        assert_eq!(text, expected[prompt.len()..], "{name}");
        let mut processor = LogitsProcessor::new(1, None, None);
        let same = generate(&model, &prompt, new, |logits| processor.sample(logits));
        assert_eq!(same.collect::<Result<Vec<u32>, _>>()?, text, "{name}");
    }
    Ok(())
}

#[test]
fn llama_agrees_with_candle_transformers() -> Result<()> {
    let json = std::fs::read_to_string(directory("llama-books").join("config.json"))?;
    let config = serde_json::from_str::<theirs::LlamaConfig>(&json)?.into_config(false);
    let vb = VarBuilder::from_tensors(weights("llama-books")?, DType::F32, &CPU);
    let model = theirs::Llama::load(vb, &config)?;
    let input = &reference("llama-books")?["input_ids"];
    let mut cache = theirs::Cache::new(true, DType::F32, &config, &CPU)?;
    let expected = model.forward(input, 0, &mut cache)?;
    let ours = load("llama-books", DType::F32)?.forward_last(input, None)?;
    assert_close("llama-books against candle-transformers", &ours, &expected, 1e-4);
    Ok(())
}

/// Three query heads to a key head, and frequencies on both sides of the interpolated band and inside it.
#[test]
fn llama_3_rope_agrees_with_candle_transformers() -> Result<()> {
    let json = r#"{"model_type": "llama", "vocab_size": 50, "hidden_size": 96, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256, "rope_theta": 500000.0, "rope_scaling": {"factor": 8.0, "rope_type": "llama3",
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}"#;
    let (model, map) = small(json, DType::F32)?;
    let config = serde_json::from_str::<theirs::LlamaConfig>(json)?.into_config(false);
    let other = theirs::Llama::load(VarBuilder::from_varmap(&map, DType::F32, &CPU), &config)?;
    let input: Vec<u32> = (0..220).map(|i| i * i % 50).collect();
    let (first, second) = input.split_at(200);
    let mut cache = theirs::Cache::new(true, DType::F32, &config, &CPU)?;
    other.forward(&ids(first)?, 0, &mut cache)?;
    let expected = other.forward(&ids(second)?, 200, &mut cache)?;
    let ours = model.forward_last(&ids(&input)?, None)?;
    assert_close("Llama 3 rope", &ours, &expected, 1e-4);

    let plain = small(&json.replace("llama3", "default"), DType::F32)?.0.forward_last(&ids(&input)?, None)?;
    assert!(relative_error(&plain, &expected)? > 1e-2, "the scaling must matter here");
    Ok(())
}

#[test]
fn a_prompt_in_pieces_is_the_prompt_at_once() -> Result<()> {
    let tokens = tokens(100)?;
    for name in NAMES {
        let model = load(name, DType::F32)?;
        let whole = model.forward(&ids(&tokens)?, None)?;
        let mut cache = model.new_cache();
        for pieces in [&[100][..], &[37, 1, 1, 40, 21], &[63, 2, 35], &[1; 100]] {
            cache.reset();
            let mut start = 0;
            for &piece in pieces {
                let logits = model.forward(&ids(&tokens[start..start + piece])?, Some(&mut cache))?;
                let expected = whole.narrow(1, start, piece)?;
                let error = relative_error(&logits, &expected)?;
                assert!(error < 1e-5, "{name}: {piece} tokens after {start}: {error:e}");
                start += piece;
                assert_eq!(cache.len(), start);
            }
        }
    }
    Ok(())
}

#[test]
fn a_batch_is_its_sequences_one_by_one() -> Result<()> {
    for name in NAMES {
        let (model, input) = (load(name, DType::F32)?, reference(name)?["input_ids"].clone());
        let mut cache = model.new_cache();
        model.forward(&input.narrow(1, 0, 30)?, Some(&mut cache))?;
        let both = model.forward(&input.narrow(1, 30, 18)?, Some(&mut cache))?;
        for row in 0..2 {
            let alone = model.forward(&input.narrow(0, row, 1)?, None)?.narrow(1, 30, 18)?;
            assert_close(&format!("{name} row {row}"), &both.narrow(0, row, 1)?, &alone, 1e-5);
        }
    }
    Ok(())
}

#[test]
fn half_precision_stays_near() -> Result<()> {
    for name in NAMES {
        let reference = reference(name)?;
        for (dtype, tolerance) in [(DType::F16, 1e-2), (DType::BF16, 5e-2)] {
            let (model, input) = (load(name, dtype)?, &reference["input_ids"]);
            assert_eq!(model.hidden_states(input, None)?.dtype(), dtype);
            let mut cache = model.new_cache();
            model.forward(&input.narrow(1, 0, 20)?, Some(&mut cache))?;
            let logits = model.forward(&input.narrow(1, 20, 28)?, Some(&mut cache))?;
            let expected = reference["logits"].narrow(1, 20, 28)?;
            assert_close(&format!("{name} in {dtype:?}"), &logits, &expected, tolerance);
        }
    }
    Ok(())
}

#[test]
fn gpt2_reads_every_form_of_its_checkpoints() -> Result<()> {
    let json = std::fs::read_to_string(directory("gpt2-books").join("config.json"))?;
    let input = reference("gpt2-books")?["input_ids"].clone();
    let logits = |json: &str, weights| -> Result<Tensor> {
        let vb = VarBuilder::from_tensors(weights, DType::F32, &CPU);
        Ok(Model::new(Config::from_json(json)?, vb)?.forward(&input, None)?)
    };
    let expected = logits(&json, weights("gpt2-books")?)?;

    let bare = weights("gpt2-books")?.into_iter().map(|(name, w)| (name.replace("transformer.", ""), w));
    assert_close("without prefix", &logits(&json, bare.collect())?, &expected, 0.);

    let mut untied = weights("gpt2-books")?;
    untied.insert("lm_head.weight".into(), (&untied["transformer.wte.weight"] * -1.)?);
    let json_untied = json.replace(r#""tie_word_embeddings": true"#, r#""tie_word_embeddings": false"#);
    assert_close("untied head", &logits(&json_untied, untied)?, &expected.neg()?, 0.);

    // Scores divided by the layer's number, and not by sqrt(64), are those of smaller or larger queries.
    let json_scaled = json
        .replace(r#""scale_attn_by_inverse_layer_idx": false"#, r#""scale_attn_by_inverse_layer_idx": true"#)
        .replace(r#""scale_attn_weights": true"#, r#""scale_attn_weights": false"#);
    let mut scaled = weights("gpt2-books")?;
    for layer in 0..6 {
        for (part, dim) in [("weight", 1), ("bias", 0)] {
            let name = format!("transformer.h.{layer}.attn.c_attn.{part}");
            let w = scaled[&name].to_dtype(DType::F32)?;
            let queries = (w.narrow(dim, 0, 256)? * ((layer + 1) as f64 / 8.))?;
            scaled.insert(name, Tensor::cat(&[&queries, &w.narrow(dim, 256, 512)?], dim)?);
        }
    }
    assert_close("scaled scores", &logits(&json_scaled, scaled)?, &expected, 1e-5);
    Ok(())
}

#[test]
fn llama_takes_the_tensors_that_its_configuration_asks_for() -> Result<()> {
    let (model, map) = small(SMALL_LLAMA, DType::F32)?;
    let shapes: HashMap<String, Vec<usize>> =
        map.data().lock().unwrap().iter().map(|(name, var)| (name.clone(), var.dims().to_vec())).collect();
    assert_eq!(shapes["model.layers.1.self_attn.q_proj.weight"], [48, 64]);
    assert_eq!(shapes["model.layers.1.self_attn.k_proj.bias"], [16]);
    assert_eq!(shapes["model.layers.1.self_attn.o_proj.weight"], [64, 48]);
    assert_eq!(shapes["model.layers.0.mlp.down_proj.bias"], [64]);
    assert!(!shapes.contains_key("lm_head.weight"));

    let input = ids(&[3, 1, 4, 1, 5])?;
    let hidden = model.hidden_states(&input, None)?;
    let table = map.data().lock().unwrap()["model.embed_tokens.weight"].as_tensor().t()?;
    assert_close(
        "tied head",
        &model.forward(&input, None)?,
        &hidden.squeeze(0)?.matmul(&table)?.unsqueeze(0)?,
        1e-6,
    );

    let wrong = SMALL_LLAMA.replace(r#""head_dim": 8"#, r#""head_dim": 16"#);
    let vb = VarBuilder::from_varmap(&map, DType::F32, &CPU);
    assert_refused(Model::new(Config::from_json(&wrong)?, vb), &["model.layers.0.self_attn.q_proj.weight"]);
    Ok(())
}

/// The derivative along one direction through all weights, against central differences in F64.
#[test]
fn gradients_reach_every_weight() -> Result<()> {
    for json in [SMALL_LLAMA, SMALL_GPT2] {
        let (model, map) = small(json, DType::F64)?;
        let input = Tensor::new(&[[7u32, 1, 30, 2], [9, 9, 4, 11]], &CPU)?;
        let probe = |hidden: &Tensor| -> Result<Tensor> {
            Ok((hidden * pseudo_random(hidden.dims(), 99, DType::F64)?)?.sum_all()?)
        };
        let grads = probe(&model.hidden_states(&input, None)?)?.backward()?;
        let mut cache = model.new_cache();
        let cached = probe(&model.hidden_states(&input, Some(&mut cache))?)?.backward()?;

        let variables: Vec<_> = map.data().lock().unwrap().clone().into_iter().collect();
        let (mut slope, mut slope_cached) = (0., 0.);
        for (name, var) in &variables {
            let direction = pseudo_random(var.dims(), name.len(), DType::F64)?;
            let along = |g: &Tensor| -> Result<f64> { Ok((g * &direction)?.sum_all()?.to_scalar()?) };
            slope += along(grads.get(var).unwrap_or_else(|| panic!("{name} has no gradient")))?;
            slope_cached += along(cached.get(var).unwrap_or_else(|| panic!("{name} has no gradient")))?;
        }
        let step = |step: f64| -> Result<f64> {
            for (name, var) in &variables {
                let direction = pseudo_random(var.dims(), name.len(), DType::F64)?;
                var.set(&(var.as_tensor() + (direction * step)?)?)?;
            }
            let vb = VarBuilder::from_varmap(&map, DType::F64, &CPU);
            let hidden = Model::new(Config::from_json(json)?, vb)?.hidden_states(&input, None)?;
            Ok(probe(&hidden)?.to_scalar()?)
        };
        let difference = (step(1e-5)? - step(-2e-5)?) / 2e-5;
        println!("slope {slope}, with a cache {slope_cached}, by differences {difference}");
        // Candle's derivative of GELU has constants of six digits.
        assert!((slope - difference).abs() < 1e-5 * difference.abs());
        assert!((slope_cached - slope).abs() < 1e-12 * slope.abs());
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_the_cache_as_it_was() -> Result<()> {
    let model = small(SMALL_GPT2, DType::F32)?.0;
    let mut cache = model.new_cache();
    let tokens: Vec<u32> = (0..33).collect();
    model.forward(&ids(&tokens[..30])?, Some(&mut cache))?;
    let full = model.forward(&ids(&tokens[..3])?, Some(&mut cache));
    assert_refused(full, &["context of 32 positions", "30 are taken", "3 more"]);
    assert_refused(model.forward(&ids(&tokens)?, None), &["33 tokens are more", "context of 32"]);
    let two = Tensor::zeros((2, 1), DType::U32, &CPU)?;
    assert_refused(model.forward(&two, Some(&mut cache)), &["batch of 1", "batch of 2"]);
    assert_refused(model.forward(&Tensor::new(&[1u32], &CPU)?, None), &["(batch, seq)"]);
    assert_refused(model.forward(&Tensor::zeros((1, 0), DType::U32, &CPU)?, None), &["no token"]);
    assert_refused(model.forward(&Tensor::zeros((1, 1), DType::F32, &CPU)?, None), &["F32", "U32"]);
    assert_refused(load("gpt2-books", DType::F32)?.forward(&two, Some(&mut cache)), &["2 layers", "has 6"]);
    assert_eq!(cache.len(), 30);
    let next = model.forward(&ids(&tokens[30..32])?, Some(&mut cache))?;
    let whole = model.forward(&ids(&tokens[..32])?, None)?;
    assert_close("after refusals", &next, &whole.narrow(1, 30, 2)?, 1e-5);

    assert_refused(
        Model::load("no/such/directory", VarBuilder::zeros(DType::F32, &CPU)),
        &["no/such/directory"],
    );
    Ok(())
}

#[test]
fn generation_ends_with_the_text_or_the_context() -> Result<()> {
    let (endless, map) = small(SMALL_GPT2, DType::F32)?;
    let text: Vec<_> = generate(&endless, &[1, 2, 3], 100, greedy).collect();
    assert_eq!(text.len(), 31, "29 more positions, the token after the last, and an error");
    assert_refused(text[30].as_ref().map_err(|e| e.to_string()), &["context of 32"]);

    let text: Vec<u32> = text[..30].iter().map(|token| *token.as_ref().unwrap()).collect();
    let first = text.iter().position(|token| *token == text[9]).unwrap();
    let json = SMALL_GPT2.replace(r#""eos_token_id": null"#, &format!(r#""eos_token_id": [{}]"#, text[9]));
    let ending = Model::new(Config::from_json(&json)?, VarBuilder::from_varmap(&map, DType::F32, &CPU))?;
    let mut ended = generate(&ending, &[1, 2, 3], 100, greedy);
    assert_eq!(ended.by_ref().collect::<Result<Vec<u32>, _>>()?, text[..first]);
    assert!(ended.next().is_none(), "it stays ended");

    assert_eq!(generate(&endless, &[1], 0, greedy).count(), 0);
    assert_refused(generate(&endless, &[], 5, greedy).next().unwrap(), &["no token"]);
    Ok(())
}

#[test]
fn a_model_agrees_with_itself_and_less_with_others() -> Result<()> {
    let (tokens, windows) = (tokens(600)?, Windows { count: 3, length: 64 });
    let (llama, gpt2) = (load("llama-books", DType::F32)?, load("gpt2-books", DType::F32)?);
    let mut progress = vec![];
    let same = evaluate(&llama, &llama, &tokens, windows, |done, total| progress.push((done, total)))?;
    assert_eq!(progress, [(0, 3), (1, 3), (2, 3), (3, 3)]);
    assert_eq!((same.kl_divergence, same.top1_agreement, same.max_logit_difference), (0., 1., 0.));
    assert_eq!(same.reference.perplexity, same.candidate.perplexity);

    let half = evaluate(&llama, &load("llama-books", DType::F16)?, &tokens, windows, |_, _| {})?;
    assert!(half.kl_divergence > 0. && half.kl_divergence < 1e-4, "{half:?}");

    let other = evaluate(&llama, &gpt2, &tokens, windows, |_, _| {})?;
    assert!(other.kl_divergence > 0.05 && other.top1_agreement < 0.9, "{other:?}");
    // The loss per token on this novel is near 4: perplexities of trained models, not of chance (4096).
    for score in [other.reference, other.candidate] {
        assert!((20. ..150.).contains(&score.perplexity) && score.tokens_per_second > 0., "{other:?}");
    }
    assert!(serde_json::to_value(other)?["candidate"]["tokens_per_second"].is_f64());
    Ok(())
}
