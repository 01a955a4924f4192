//! BERT against `candle_transformers`' on the same weights, dense and compressed.

use anyhow::Result;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_rbe::archive::{self, CompressOptions};
use candle_rbe::models::bert::{Bert, Config};
use candle_rbe::{Encoder, EncoderConfig, Rate};
use candle_transformers::models::bert as theirs;
use std::collections::HashMap;
use std::ops::ControlFlow;

const CPU: Device = Device::Cpu;
const CONFIG: &str = r#"{"model_type": "bert", "vocab_size": 60, "hidden_size": 48, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 40, "type_vocab_size": 2,
    "layer_norm_eps": 1e-12, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "initializer_range": 0.02,
    "position_embedding_type": "absolute", "pad_token_id": 0, "use_cache": true}"#;

/// Values that look random in -1..1 and are the same in every run.
fn pseudo_random(shape: &[usize], seed: usize) -> Result<Tensor> {
    let value = |i: usize| ((i + 1) as f64 * 12.9898 + seed as f64 * 78.233).sin() * 43758.5453 % 1.;
    let values: Vec<f32> = (0..shape.iter().product()).map(|i| value(i) as f32).collect();
    Ok(Tensor::from_vec(values, shape, &CPU)?)
}

/// Weights under Hugging Face's names.
fn weights() -> Result<HashMap<String, Tensor>> {
    let map = VarMap::new();
    Bert::new(serde_json::from_str(CONFIG)?, VarBuilder::from_varmap(&map, DType::F32, &CPU))?;
    let mut shapes: Vec<(String, Vec<usize>)> =
        map.data().lock().unwrap().iter().map(|(name, var)| (name.clone(), var.dims().to_vec())).collect();
    shapes.sort();
    shapes
        .into_iter()
        .enumerate()
        .map(|(seed, (name, shape))| {
            let values = (pseudo_random(&shape, seed)? * 0.4)?;
            let values = if name.ends_with("LayerNorm.weight") { (values + 1.)? } else { values };
            Ok((name, values))
        })
        .collect()
}

fn builder(weights: HashMap<String, Tensor>) -> VarBuilder<'static> {
    VarBuilder::from_tensors(weights, DType::F32, &CPU)
}

fn inputs() -> Result<(Tensor, Tensor, Tensor)> {
    let ids: Vec<u32> = (0..3 * 17).map(|n| (n * 37 + n / 5) % 60).collect();
    let types: Vec<u32> = (0..3 * 17).map(|n| u32::from(n % 17 > 8)).collect();
    // The second text has 9 tokens, the third 1.
    let mask: Vec<u32> = (0..3 * 17).map(|n| u32::from(n % 17 < [17, 9, 1][n / 17])).collect();
    let tensor = |values: Vec<u32>| Tensor::from_vec(values, (3, 17), &CPU);
    Ok((tensor(ids)?, tensor(types)?, tensor(mask)?))
}

fn largest_difference(a: &Tensor, b: &Tensor) -> Result<f32> {
    Ok((a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar()?)
}

#[test]
fn states_are_those_of_candle_transformers() -> Result<()> {
    let weights = weights()?;
    let ours = Bert::new(serde_json::from_str(CONFIG)?, builder(weights.clone()))?;
    let theirs = theirs::BertModel::load(builder(weights.clone()), &serde_json::from_str(CONFIG)?)?;
    let (ids, types, mask) = inputs()?;
    for mask in [None, Some(&mask)] {
        let (a, b) = (ours.forward(&ids, Some(&types), mask)?, theirs.forward(&ids, &types, mask)?);
        let difference = largest_difference(&a, &b)?;
        println!("largest difference {difference:.1e} of values up to {:?}", b.abs()?.flatten_all()?.max(0)?);
        assert_eq!(a.dims(), [3, 17, 48]);
        assert!(difference < 2e-5, "{difference}");
    }
    let prefixed = weights.into_iter().map(|(name, weight)| (format!("bert.{name}"), weight)).collect();
    let prefixed = Bert::new(serde_json::from_str(CONFIG)?, builder(prefixed))?;
    let none = ours.forward(&ids, None, None)?;
    assert_eq!(largest_difference(&prefixed.forward(&ids, None, None)?, &none)?, 0.0);
    let zeros = ids.zeros_like()?;
    assert!(largest_difference(&none, &theirs.forward(&ids, &zeros, None)?)? < 2e-5);
    Ok(())
}

#[test]
fn a_compressed_directory_runs_and_embeds_nearly_the_same() -> Result<()> {
    let room = tempfile::tempdir()?;
    let (dense, compressed) = (room.path().join("bert"), room.path().join("bert-rbe"));
    std::fs::create_dir(&dense)?;
    std::fs::write(dense.join("config.json"), CONFIG)?;
    candle_core::safetensors::save(&weights()?, dense.join("model.safetensors"))?;
    let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(8.6)))?;
    let options = CompressOptions::default();
    archive::compress(&dense, &compressed, &encoder, &options, &mut |_| ControlFlow::Continue(()))?;
    let open = |path| -> Result<Bert> {
        Ok(Bert::new(Config::read(path)?, archive::open(path, DType::F32, &CPU)?)?)
    };
    let (original, mut small) = (open(&dense)?, open(&compressed)?);
    let linears = small.linears_mut();
    assert_eq!(linears.len(), 12);
    assert!(linears.iter().all(|(_, linear)| linear.weight().rbe().is_some()));
    assert_eq!(linears[5].0, "encoder.layer.0.output.dense.weight");
    let (ids, _, mask) = inputs()?;
    let (a, b) = (original.sentence_embeddings(&ids, &mask)?, small.sentence_embeddings(&ids, &mask)?);
    let cosines = (&a * &b)?.sum(1)?.to_vec1::<f32>()?;
    assert!(cosines.iter().all(|cosine| (0.999..1.00001).contains(cosine)), "{cosines:?}");
    Ok(())
}

#[test]
fn what_is_no_bert_is_refused() -> Result<()> {
    for (from, to, words) in [
        ("\"absolute\"", "\"relative_key\"", "relative_key"),
        ("\"num_attention_heads\": 4", "\"num_attention_heads\": 5", "not a multiple"),
        ("\"use_cache\"", "\"is_decoder\": true, \"use_cache\"", "encoder"),
        ("\"vocab_size\": 60", "\"vocab_size\": 0", "vocab_size is 0"),
    ] {
        let error = serde_json::from_str::<Config>(&CONFIG.replace(from, to)).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let model = Bert::new(serde_json::from_str(CONFIG)?, builder(weights()?))?;
    let long = Tensor::zeros((1, 41), DType::U32, &CPU)?;
    assert!(model.forward(&long, None, None).unwrap_err().to_string().contains("context of 40"));
    let (ids, _, mask) = inputs()?;
    assert!(model.forward(&ids, None, Some(&mask.narrow(1, 0, 5)?)).is_err());
    assert!(model.forward(&ids.to_dtype(DType::F32)?, None, None).is_err());
    Ok(())
}

/// With `BERT_DIR` set to a directory of all-MiniLM-L6-v2: the cosines of its embeddings to those of the compressed model.
///
/// `BERT_DIR=... cargo test --release --features cli --test bert -- --ignored --nocapture`
#[test]
#[ignore = "needs a downloaded model"]
fn embeddings_of_a_trained_sentence_encoder_survive_compression() -> Result<()> {
    let directory = std::path::PathBuf::from(std::env::var("BERT_DIR")?);
    let tokenizer =
        tokenizers::Tokenizer::from_file(directory.join("tokenizer.json")).map_err(anyhow::Error::msg)?;
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/models/evaluation.txt"))?;
    let sentences: Vec<&str> = text.split(". ").filter(|s| s.len() > 40).take(100).collect();
    let open = |path: &std::path::Path| -> Result<Bert> {
        Ok(Bert::new(Config::read(path)?, archive::open(path, DType::F32, &CPU)?)?)
    };
    let embed = |model: &Bert| -> Result<Tensor> {
        let rows = sentences.iter().map(|sentence| {
            let ids = tokenizer.encode(*sentence, true).map_err(anyhow::Error::msg)?;
            let count = ids.get_attention_mask().iter().filter(|seen| **seen == 1).count();
            let ids = Tensor::new(&ids.get_ids()[..count], &CPU)?.unsqueeze(0)?;
            Ok(model.sentence_embeddings(&ids, &ids.ones_like()?)?)
        });
        Ok(Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)?)
    };
    let exact = embed(&open(&directory)?)?;
    let room = tempfile::tempdir()?;
    let mut before = 1.0;
    for bits in [8.05, 4.02, 3.02] {
        let compressed = room.path().join(bits.to_string());
        let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(bits)))?;
        let report =
            archive::compress(&directory, &compressed, &encoder, &CompressOptions::default(), &mut |_| {
                ControlFlow::Continue(())
            })?;
        let cosines = (&exact * embed(&open(&compressed)?)?)?.sum(1)?.to_vec1::<f32>()?;
        let mean = cosines.iter().sum::<f32>() / cosines.len() as f32;
        let worst = cosines.iter().copied().fold(1.0, f32::min);
        println!(
            "{} -> {} bytes, {:.3} bits, relative error {:.4}: cosine of {} sentences {mean:.5} on average, {worst:.5} \
             at least",
            report.bytes_before,
            report.bytes_after,
            report.bits_per_weight,
            report.relative_error,
            cosines.len()
        );
        assert!(mean < before && (bits < 8.0 || mean > 0.999), "{mean}");
        before = mean;
    }
    // Candle's types on the same matrices; the k-types take 256 columns at a time, and most of these have 384.
    let tensors = candle_core::safetensors::load(directory.join("model.safetensors"), &CPU)?;
    for (name, dtype) in [("Q8_0", GgmlDType::Q8_0), ("Q5_0", GgmlDType::Q5_0), ("Q4_0", GgmlDType::Q4_0)] {
        let (mut error, mut energy) = (0.0, 0.0);
        let quantised = tensors.iter().map(|(name, tensor)| -> Result<(String, Tensor)> {
            let tensor =
                if tensor.dtype().is_float() { tensor.to_dtype(DType::F32)? } else { tensor.clone() };
            if tensor.rank() != 2 || !tensor.dtype().is_float() {
                return Ok((name.clone(), tensor));
            }
            let quantised = QTensor::quantize(&tensor, dtype)?.dequantize(&CPU)?;
            error += f64::from((&quantised - &tensor)?.sqr()?.sum_all()?.to_scalar::<f32>()?);
            energy += f64::from(tensor.sqr()?.sum_all()?.to_scalar::<f32>()?);
            Ok((name.clone(), quantised))
        });
        let quantised = quantised.collect::<Result<HashMap<_, _>>>()?;
        let model =
            Bert::new(Config::read(&directory)?, VarBuilder::from_tensors(quantised, DType::F32, &CPU))?;
        let cosines = (&exact * embed(&model)?)?.sum(1)?.to_vec1::<f32>()?;
        let mean = cosines.iter().sum::<f32>() / cosines.len() as f32;
        let worst = cosines.iter().copied().fold(1.0, f32::min);
        let error = (error / energy).sqrt();
        println!("{name}: relative error {error:.4}: cosine {mean:.5} on average, {worst:.5} at least");
    }
    Ok(())
}
