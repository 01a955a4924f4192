//! Quality per bit on a model: RBE beside every quantised type of Candle, on the same text.
//!
//! ```sh
//! cargo run --release --features cli --example quality -- [MODEL_DIR] [TEXT] [--calibrate TEXT]
//! ```
//!
//! All projections are compressed; embeddings, norms and biases stay as they are. Candle's types are quantised and
//! decoded back; RBE runs on the compressed form. `bits` are those of the projections, everything counted.
//! KL is from the uncompressed F32 model, in nats per token, over eight windows of 128 tokens; top-1 is the part of
//! positions at which both find the same token likeliest. With `--calibrate` there are rows, marked so, that are
//! compressed by `archive::compress_layer_by_layer`, all projections sharing the bits; the text is read in windows of 256. Every
//! window begins with what the tokenizer puts before a text.

use anyhow::{Context, Result};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_rbe::archive::{self, CompressOptions, Selection, Stage, compress_layer_by_layer};
use candle_rbe::models::{Config, Model, Text, Walk, Windows, evaluate};
use candle_rbe::{Encoder, EncoderConfig, LayerConfig, Precision, Rate, set_default_layer_config};
use std::collections::HashMap;
use std::ops::ControlFlow;
use tokenizers::Tokenizer;

type Tensors = HashMap<String, Tensor>;

/// Projections, by Hugging Face's names in LLaMA and GPT-2.
fn is_projection(name: &str) -> bool {
    ["_proj.weight", "c_attn.weight", "c_fc.weight"].iter().any(|end| name.ends_with(end))
}

/// What a compressed model weighs and how far its weights are from the original's.
#[derive(Default)]
struct Account {
    bits: f64,
    weights: f64,
    squared_error: f64,
    energy: f64,
}

impl Account {
    fn add(&mut self, bytes: usize, original: &Tensor, relative_error: f64) -> Result<()> {
        let energy = f64::from(original.sqr()?.sum_all()?.to_scalar::<f32>()?);
        self.bits += 8.0 * bytes as f64;
        self.weights += original.elem_count() as f64;
        self.squared_error += relative_error * relative_error * energy;
        self.energy += energy;
        Ok(())
    }
}

fn rbe(dense: &Tensors, bits: f64, conv1d: bool) -> Result<(Tensors, Account)> {
    let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(bits)))?;
    let (mut tensors, mut account) = (Tensors::new(), Account::default());
    for (name, weight) in dense {
        if !is_projection(name) {
            tensors.insert(name.clone(), weight.clone());
            continue;
        }
        let compressed = if conv1d { encoder.encode(&weight.t()?)?.t()? } else { encoder.encode(weight)? };
        let payload = compressed.to_bytes()?;
        account.add(payload.len(), weight, compressed.relative_error())?;
        let len = payload.len();
        tensors.insert(format!("{name}.rbe"), Tensor::from_vec(payload, len, &Device::Cpu)?);
    }
    Ok((tensors, account))
}

/// The same through an archive, calibrated layer by layer as `rbe compress --calibrate` does it.
fn calibrated(dir: &str, bits: f64, samples: &[Tensor]) -> Result<(Tensors, Account)> {
    let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(bits)))?;
    let options = CompressOptions {
        selection: Selection::new(Some(r"(_proj|c_attn|c_fc)\.weight$"), None)?,
        ..CompressOptions::default()
    };
    let room = tempfile::tempdir()?;
    let out = room.path().join("model");
    let walk =
        Walk::new(Config::read(dir)?, archive::open(dir, DType::F32, &Device::Cpu)?, samples.to_vec())?;
    let stage = Stage::directory(&out, false, &[])?;
    let watch = &mut |_: archive::Progress<'_>| ControlFlow::Continue(());
    let report = compress_layer_by_layer(dir, &stage, &encoder, &options, walk, watch)?;
    stage.commit()?;
    let bits = report.bits_per_weight;
    let account = Account { bits, weights: 1.0, squared_error: report.relative_error.powi(2), energy: 1.0 };
    let tensors = candle_core::safetensors::load(out.join("model.safetensors"), &Device::Cpu)?;
    Ok((tensors, account))
}

fn candle(dense: &Tensors, dtype: GgmlDType, conv1d: bool) -> Result<(Tensors, Account)> {
    let (mut tensors, mut account) = (dense.clone(), Account::default());
    for (name, weight) in dense.iter().filter(|(name, _)| is_projection(name)) {
        let weight = if conv1d { weight.t()?.contiguous()? } else { weight.clone() };
        let quantized = QTensor::quantize(&weight, dtype)?;
        let decoded = quantized.dequantize(&Device::Cpu)?;
        let energy = weight.sqr()?.sum_all()?.to_scalar::<f32>()?;
        let error = (&decoded - &weight)?.sqr()?.sum_all()?.to_scalar::<f32>()?;
        account.add(quantized.storage_size_in_bytes(), &weight, f64::from(error / energy).sqrt())?;
        tensors.insert(name.clone(), if conv1d { decoded.t()?.contiguous()? } else { decoded });
    }
    Ok((tensors, account))
}

fn main() -> Result<()> {
    // The weights alone are judged, and Candle's are decoded too.
    set_default_layer_config(LayerConfig { precision: Precision::Exact, ..LayerConfig::default() });
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let calibrate = match args.iter().position(|arg| arg == "--calibrate") {
        Some(at) => args.drain(at..args.len().min(at + 2)).nth(1),
        None => None,
    };
    let mut args = args.into_iter();
    let root = env!("CARGO_MANIFEST_DIR");
    let dir = args.next().unwrap_or_else(|| format!("{root}/models/llama-books"));
    let text = args.next().unwrap_or_else(|| format!("{root}/models/evaluation.txt"));

    let weights = candle_core::safetensors::load(format!("{dir}/model.safetensors"), &Device::Cpu)?;
    let dense = weights
        .into_iter()
        .map(|(name, weight)| Ok((name, weight.to_dtype(DType::F32)?)))
        .collect::<Result<Tensors>>()?;
    // GPT-2's Conv1D keeps its weights (in, out).
    let conv1d = dense.keys().any(|name| name.ends_with("c_attn.weight"));
    let load = |tensors: Tensors| {
        Model::load(&dir, VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)).context(dir.clone())
    };
    let tokenizer = Tokenizer::from_file(format!("{dir}/tokenizer.json")).map_err(anyhow::Error::msg)?;
    let tokenize = |path: String| -> Result<Vec<u32>> {
        let text = std::fs::read_to_string(&path).context(path)?;
        Ok(tokenizer.encode(text, false).map_err(anyhow::Error::msg)?.get_ids().to_vec())
    };
    let tokens = tokenize(text)?;
    let around = tokenizer.encode("a", true).map_err(anyhow::Error::msg)?;
    let special = around.get_ids().iter().zip(around.get_special_tokens_mask());
    let start: Vec<u32> = special.take_while(|(_, special)| **special == 1).map(|(id, _)| *id).collect();

    let reference = load(dense.clone())?;
    println!(
        "{:<15} {:>7} {:>11} {:>10} {:>11} {:>7}",
        "type", "bits", "rel. error", "KL", "perplexity", "top-1"
    );
    let row = |name: &str, (tensors, account): (Tensors, Account)| -> Result<f64> {
        let text = Text { start: &start, tokens: &tokens };
        let result = evaluate(&reference, &load(tensors)?, text, Windows::default(), |_, _| {})?;
        println!(
            "{name:<15} {:>7.3} {:>11.5} {:>10.6} {:>11.3} {:>7.4}",
            account.bits / account.weights,
            (account.squared_error / account.energy).sqrt(),
            result.kl_divergence,
            result.candidate.perplexity,
            result.top1_agreement,
        );
        Ok(result.reference.perplexity)
    };
    let samples = match calibrate {
        Some(path) => {
            let tokens = tokenize(path)?;
            let windows = Windows { count: (tokens.len() / 256).saturating_sub(1), length: 256 };
            windows.samples(Text { start: &start, tokens: &tokens }, &Device::Cpu)?
        }
        None => vec![],
    };
    let mut perplexity = 0.0;
    let table = [
        (8.05, vec![(GgmlDType::Q8_0, "Q8_0")]),
        (6.05, vec![(GgmlDType::Q6K, "Q6_K")]),
        (5.05, vec![(GgmlDType::Q5K, "Q5_K")]),
        (4.02, vec![(GgmlDType::Q4K, "Q4_K"), (GgmlDType::Q4_0, "Q4_0")]),
        (3.02, vec![(GgmlDType::Q3K, "Q3_K")]),
        (2.02, vec![(GgmlDType::Q2K, "Q2_K")]),
    ];
    for (bits, peers) in table {
        perplexity = row("RBE", rbe(&dense, bits, conv1d)?)?;
        if !samples.is_empty() {
            row("RBE, calibrated", calibrated(&dir, bits, &samples)?)?;
        }
        for (dtype, name) in peers {
            row(name, candle(&dense, dtype, conv1d)?)?;
        }
    }
    println!("\nperplexity of the uncompressed model: {perplexity:.3}");
    Ok(())
}
