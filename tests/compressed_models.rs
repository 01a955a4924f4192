//! Whole models on compressed weights against the same weights decoded: the same code, another file.
//! CI runs this at the best CPU level alone: products of every level are compared with the codec's, and layers' with Candle's.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_rbe::archive::{self, Archive, CompressOptions, DecodeOptions, Dtype, Selection};
use candle_rbe::models::{CausalLm, Model, generate, greedy};
use candle_rbe::{Encoder, EncoderConfig, LayerConfig, Precision, Rate, set_default_layer_config};
use candle_transformers::models::llama as theirs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

const CPU: Device = Device::Cpu;

/// A model of the repository, compressed into a directory that lives as long as the handle.
struct Compressed {
    _room: tempfile::TempDir,
    path: PathBuf,
}

fn compress(name: &str, bits: f64, include: Option<&str>) -> Result<Compressed> {
    let room = tempfile::tempdir()?;
    let path = room.path().join(name);
    let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(bits)))?;
    let options = CompressOptions { selection: Selection::new(include, None)?, ..CompressOptions::default() };
    let input = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name);
    archive::compress(&input, &path, &encoder, &options, &mut |_| ControlFlow::Continue(()))?;
    Ok(Compressed { _room: room, path })
}

/// With products that are exact: both must say the same.
fn load(path: &Path, decoded: bool) -> Result<Model> {
    set_default_layer_config(LayerConfig { precision: Precision::Exact, ..LayerConfig::default() });
    if !decoded {
        return Ok(Model::load(path, archive::open(path, DType::F32, &CPU)?)?);
    }
    // A file without any payload, so that every layer is Candle's own.
    let file = path.join("decoded");
    let options = DecodeOptions { dtype: Some(Dtype::F32), overwrite: true };
    archive::decode(path, &file, &options, &mut |_| ControlFlow::Continue(()))?;
    assert!(Archive::open(&file)?.entries().all(|entry| !entry.compressed));
    let weights = std::fs::read(&file)?;
    Ok(Model::load(path, VarBuilder::from_buffered_safetensors(weights, DType::F32, &CPU)?)?)
}

fn relative_error(a: &Tensor, b: &Tensor) -> Result<f64> {
    let norm = |t: &Tensor| -> Result<f64> {
        Ok(t.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt())
    };
    Ok(norm(&(a - b)?)? / norm(b)?)
}

fn prompt() -> Result<Tensor> {
    let ids: Vec<u32> = (0..96u32).map(|n| (n * 197 + 31) % 4096).collect();
    Ok(Tensor::new(ids, &CPU)?.reshape((2, 48))?)
}

#[test]
fn compressed_models_answer_as_their_decoded_weights_do() -> Result<()> {
    // Every matrix compressed: projections, embeddings, positions, and GPT-2's head tied to its embeddings.
    for name in ["llama-books", "gpt2-books"] {
        for bits in [4.05, 8.05] {
            let model = compress(name, bits, None)?;
            let (ours, dense) = (load(&model.path, false)?, load(&model.path, true)?);
            let (a, b) = (ours.forward(&prompt()?, None)?, dense.forward(&prompt()?, None)?);
            let error = relative_error(&a, &b)?;
            println!("{name} at {bits} bits: relative error of the logits {error:.1e}");
            assert!(error <= 1e-5, "{name} at {bits} bits: {error:e}");
            let start = [846, 318, 259, 1275, 1307];
            let text = |model: &Model| generate(model, &start, 40, greedy).collect::<Result<Vec<u32>, _>>();
            assert_eq!(text(&ours)?, text(&dense)?, "{name}");
        }
    }
    Ok(())
}

#[test]
fn our_compressed_llama_answers_as_candle_transformers_on_the_decoded_weights() -> Result<()> {
    let model = compress("llama-books", 4.05, Some("_proj"))?;
    let config = std::fs::read_to_string(model.path.join("config.json"))?;
    let config = serde_json::from_str::<theirs::LlamaConfig>(&config)?.into_config(false);
    let llama = theirs::Llama::load(archive::open_decoded(&model.path, DType::F32, &CPU)?, &config)?;
    let expected =
        llama.forward(&prompt()?, 0, &mut theirs::Cache::new(false, DType::F32, &config, &CPU)?)?;
    let error = relative_error(&load(&model.path, false)?.forward_last(&prompt()?, None)?, &expected)?;
    println!("relative error of the logits {error:.1e}");
    assert!(error <= 1e-4, "{error:e}");
    Ok(())
}

#[test]
fn half_precision_activations_run_on_compressed_weights() -> Result<()> {
    let model = compress("llama-books", 8.05, None)?;
    let reference = load(&model.path, false)?.forward_last(&prompt()?, None)?;
    for (dtype, bound) in [(DType::F16, 1e-2), (DType::BF16, 5e-2)] {
        let half = Model::load(&model.path, archive::open(&model.path, dtype, &CPU)?)?;
        let error = relative_error(&half.forward_last(&prompt()?, None)?, &reference)?;
        assert!(error <= bound, "{dtype:?}: {error:e}");
    }
    Ok(())
}

#[test]
fn at_eight_bits_nothing_is_lost_that_a_reader_could_tell() -> Result<()> {
    use candle_rbe::models::{Windows, evaluate};
    for (name, projections) in [("llama-books", "_proj"), ("gpt2-books", "c_attn|c_fc|c_proj")] {
        let model = compress(name, 8.05, Some(projections))?;
        let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name);
        let reference = Model::load(&original, archive::open(&original, DType::F32, &CPU)?)?;
        let text = std::fs::read_to_string(original.with_file_name("evaluation.txt"))?;
        let tokenizer =
            tokenizers::Tokenizer::from_file(original.join("tokenizer.json")).map_err(anyhow::Error::msg)?;
        let tokens = tokenizer.encode(text, false).map_err(anyhow::Error::msg)?;
        let windows = Windows::default();
        let result = evaluate(&reference, &load(&model.path, false)?, tokens.get_ids(), windows, |_, _| {})?;
        println!("{name}: KL {:.1e}, top-1 {:.4}", result.kl_divergence, result.top1_agreement);
        assert!(result.kl_divergence < 1e-3 && result.top1_agreement > 0.99, "{name}: {result:?}");
    }
    Ok(())
}
