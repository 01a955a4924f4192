//! What each part of the encoder contributes: a model's KL divergence with one choice changed at a time.
//!
//! ```sh
//! cargo run --release --features cli --example ablation -- [BITS] [MODEL_DIR]
//! ```
//!
//! All projections are compressed at BITS (3.02), embeddings, norms and biases stay. KL is from the uncompressed model over
//! sixteen windows of 128 tokens of `models/evaluation.txt`, the mean over three seeds of the random signs and its
//! standard deviation; `error` is the relative one of all weights. Calibration reads `models/calibration.txt`.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_rbe::archive::{CompressOptions, Selection, compress_calibrated};
use candle_rbe::models::{Model, Windows, evaluate};
use candle_rbe::nn::Calibration;
use candle_rbe::{
    Encoder, EncoderConfig, LayerConfig, Precision, Rate, RbeTensor, TermChoice, Transform,
    set_default_layer_config,
};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::time::Instant;
use tokenizers::Tokenizer;

const PROJECTIONS: &str = r"(_proj|c_attn|c_fc)\.weight$";
const SEEDS: [u64; 3] = [0x5242_4531, 1, 2];

type Tensors = HashMap<String, Tensor>;

/// Whether a name is one of those that `PROJECTIONS` finds.
fn is_projection(name: &str) -> bool {
    ["_proj.weight", "c_attn.weight", "c_fc.weight"].iter().any(|end| name.ends_with(end))
}

/// How a model is compressed.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Each matrix by itself.
    Plain,
    /// Likewise, with the Walsh-Hadamard transform in the DCT's place.
    Hadamard,
    /// Calibrated, each matrix at the same bits.
    CalibratedAlone,
    /// Calibrated, matrices share the bits.
    CalibratedShared,
}

struct Bench {
    dir: String,
    dense: Tensors,
    conv1d: bool,
    reference: Model,
    tokens: Vec<u32>,
}

impl Bench {
    fn open(dir: String) -> Result<(Self, Vec<Tensor>)> {
        let root = env!("CARGO_MANIFEST_DIR");
        let weights = candle_core::safetensors::load(format!("{dir}/model.safetensors"), &Device::Cpu)?;
        let float = |(name, weight): (String, Tensor)| Ok((name, weight.to_dtype(DType::F32)?));
        let dense = weights.into_iter().map(float).collect::<Result<Tensors>>()?;
        let tokenizer = Tokenizer::from_file(format!("{dir}/tokenizer.json")).map_err(anyhow::Error::msg)?;
        let tokenize = |name: &str| -> Result<Vec<u32>> {
            let text = std::fs::read_to_string(format!("{root}/models/{name}.txt"))?;
            Ok(tokenizer.encode(text, false).map_err(anyhow::Error::msg)?.get_ids().to_vec())
        };
        let (tokens, calibration) = (tokenize("evaluation")?, tokenize("calibration")?);
        let windows = Windows { count: calibration.len() / 256 - 1, length: 256 };
        let samples = windows.samples(&calibration, &Device::Cpu)?;
        // GPT-2's Conv1D keeps its weights (in, out).
        let conv1d = dense.keys().any(|name| name.ends_with("c_attn.weight"));
        let reference = load(&dir, dense.clone())?;
        Ok((Self { dir, dense, conv1d, reference, tokens }, samples))
    }

    /// KL of the model with these tensors.
    fn divergence(&self, tensors: Tensors) -> Result<f64> {
        let model = load(&self.dir, tensors)?;
        let windows = Windows { count: 16, length: 128 };
        Ok(evaluate(&self.reference, &model, &self.tokens, windows, |_, _| {})?.kl_divergence)
    }

    /// Every projection by `encode`, with what they are after it: tensors, bits, relative error.
    fn each(
        &self,
        mut encode: impl FnMut(&str, &Tensor) -> Result<RbeTensor>,
    ) -> Result<(Tensors, f64, f64)> {
        let (mut tensors, mut account) = (self.dense.clone(), [0.0; 4]);
        for (name, weight) in self.dense.iter().filter(|(name, _)| is_projection(name)) {
            let turned = if self.conv1d { weight.t()?.contiguous()? } else { weight.clone() };
            let compressed = encode(name, &turned)?;
            let payload = if self.conv1d { compressed.t()? } else { compressed }.to_bytes()?;
            let error = RbeTensor::from_bytes(&payload)?.relative_error();
            let energy = f64::from(weight.sqr()?.sum_all()?.to_scalar::<f32>()?);
            let more =
                [8.0 * payload.len() as f64, weight.elem_count() as f64, error.powi(2) * energy, energy];
            account.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
            tensors.remove(name);
            let len = payload.len();
            tensors.insert(format!("{name}.rbe"), Tensor::from_vec(payload, len, &Device::Cpu)?);
        }
        let [bits, weights, squared_error, energy] = account;
        Ok((tensors, bits / weights, (squared_error / energy).sqrt()))
    }

    /// Every projection turned so that the DCT of its blocks is the Walsh-Hadamard transform of the original's, with random
    /// signs; compressed, decoded and turned back.
    fn hadamard(&self, encoder: &Encoder, config: &EncoderConfig) -> Result<(Tensors, f64, f64)> {
        let edge = config.block.context("blocks of a given size")?;
        let mut turned_back = Tensors::new();
        let (mut tensors, bits, error) = self.each(|name, weight| {
            let (rows, cols) = weight.dims2()?;
            let (left, right) = (turn(rows, edge, config.seed)?, turn(cols, edge, config.seed + 1)?);
            let compressed = encoder.encode(&left.matmul(weight)?.matmul(&right.t()?)?)?;
            let decoded = left.t()?.matmul(&compressed.dequantize()?)?.matmul(&right)?;
            let decoded = if self.conv1d { decoded.t()?.contiguous()? } else { decoded };
            turned_back.insert(name.to_owned(), decoded);
            Ok(compressed)
        })?;
        tensors.retain(|name, _| !name.ends_with(".rbe"));
        tensors.extend(turned_back);
        Ok((tensors, bits, error))
    }

    fn compress(
        &self,
        config: &EncoderConfig,
        way: Way,
        calibration: &mut Calibration,
    ) -> Result<(Tensors, f64, f64)> {
        let encoder = Encoder::new(config.clone())?;
        match way {
            Way::Plain => self.each(|_, weight| Ok(encoder.encode(weight)?)),
            Way::Hadamard => self.hadamard(&encoder, config),
            Way::CalibratedAlone => self.each(|name, weight| {
                // The others will be asked for, and are recorded along.
                let others = self.dense.keys().map(String::as_str).filter(|other| is_projection(other));
                let names: Vec<&str> = std::iter::once(name).chain(others).collect();
                let statistics = calibration.statistics(&names)?.context("a layer that is not recorded")?;
                Ok(encoder.encode_calibrated(weight, statistics)?)
            }),
            Way::CalibratedShared => {
                let selection = Selection::new(Some(PROJECTIONS), None)?;
                let options = CompressOptions { selection, ..CompressOptions::default() };
                let room = tempfile::tempdir()?;
                let out = room.path().join("model");
                let go_on = &mut |_: candle_rbe::archive::Progress<'_>| ControlFlow::Continue(());
                let report = compress_calibrated(&self.dir, &out, &encoder, &options, calibration, go_on)?;
                let tensors = candle_core::safetensors::load(out.join("model.safetensors"), &Device::Cpu)?;
                Ok((tensors, report.bits_per_weight, report.relative_error))
            }
        }
    }
}

/// `T' H D` along the diagonal: the DCT's inverse after the Walsh-Hadamard transform after random signs.
fn turn(len: usize, edge: usize, seed: u64) -> Result<Tensor> {
    ensure!(len.is_multiple_of(edge) && edge.is_power_of_two(), "{len} is not in blocks of {edge}");
    let n = edge as f64;
    let dct = |k: usize, i: usize| {
        let norm = if k == 0 { 1.0 } else { std::f64::consts::SQRT_2 } / n.sqrt();
        norm * (std::f64::consts::PI * (2 * i + 1) as f64 * k as f64 / (2.0 * n)).cos()
    };
    let hadamard = |k: usize, j: usize| {
        let sign = if (k & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
        sign / n.sqrt()
    };
    let mut state = seed | 1;
    let mut sign = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if state >> 63 == 0 { 1.0 } else { -1.0 }
    };
    let mut matrix = vec![0f32; len * len];
    for column in 0..len {
        let (block, j, sign) = (column / edge * edge, column % edge, sign());
        for i in 0..edge {
            let sum: f64 = (0..edge).map(|k| dct(k, i) * hadamard(k, j)).sum();
            matrix[(block + i) * len + column] = (sign * sum) as f32;
        }
    }
    Ok(Tensor::from_vec(matrix, (len, len), &Device::Cpu)?)
}

fn load(dir: &str, tensors: Tensors) -> Result<Model> {
    Model::load(dir, VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)).context(dir.to_owned())
}

fn main() -> Result<()> {
    // The weights alone are judged.
    set_default_layer_config(LayerConfig { precision: Precision::Exact, ..LayerConfig::default() });
    let mut args = std::env::args().skip(1);
    let bits = args.next().map_or(Ok(3.02), |bits| bits.parse())?;
    let dir =
        args.next().unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/models/llama-books").into());
    let (bench, samples) = Bench::open(dir)?;
    let mut calibration = Calibration::new(&bench.reference, samples);

    let base = EncoderConfig { term: TermChoice::Trellis, ..Rate::BitsPerWeight(bits).into() };
    let block = |block| EncoderConfig { block: Some(block), ..base.clone() };
    let planes = EncoderConfig { term: TermChoice::Planes, ..base.clone() };
    let rows = [
        ("a trellis, 12 bits of state, signs, DCT", base.clone(), Way::Plain),
        ("planes", planes.clone(), Way::Plain),
        ("no signs", EncoderConfig { signs: Some(false), ..base.clone() }, Way::Plain),
        ("blocks of 32", block(32), Way::Plain),
        ("blocks of 64", block(64), Way::Plain),
        ("blocks of 128", block(128), Way::Plain),
        ("blocks of 256", block(256), Way::Plain),
        ("Walsh-Hadamard, blocks of 128", EncoderConfig { signs: Some(false), ..block(128) }, Way::Hadamard),
        ("Haar's wavelet", EncoderConfig { transform: Transform::Haar, ..base.clone() }, Way::Plain),
        ("14 bits of state", EncoderConfig { trellis_state_bits: 14, ..base.clone() }, Way::Plain),
        ("16 bits of state", EncoderConfig { trellis_state_bits: 16, ..base.clone() }, Way::Plain),
        ("calibrated, the same bits for all", base.clone(), Way::CalibratedAlone),
        ("calibrated, bits shared", base.clone(), Way::CalibratedShared),
        ("planes, calibrated, bits shared", planes, Way::CalibratedShared),
        (
            "14 bits of state, calibrated, bits shared",
            EncoderConfig { trellis_state_bits: 14, ..base },
            Way::CalibratedShared,
        ),
    ];
    println!("{:<42} {:>6} {:>8} {:>10} {:>9} {:>8}", "", "bits", "error", "KL", "+-", "seconds");
    for (what, config, way) in rows {
        // Without signs there is nothing to draw.
        let draws = config.signs != Some(false) || way == Way::Hadamard;
        let seeds = if draws { &SEEDS[..] } else { &SEEDS[..1] };
        let start = Instant::now();
        let (mut bits, mut error, mut divergences) = (0.0, 0.0, Vec::new());
        for &seed in seeds {
            let config = EncoderConfig { seed, ..config.clone() };
            let tensors;
            (tensors, bits, error) = bench.compress(&config, way, &mut calibration)?;
            divergences.push(bench.divergence(tensors)?);
        }
        let count = divergences.len() as f64;
        let mean = divergences.iter().sum::<f64>() / count;
        let deviation = (divergences.iter().map(|kl| (kl - mean).powi(2)).sum::<f64>() / count).sqrt();
        let seconds = start.elapsed().as_secs_f64() / count;
        println!("{what:<42} {bits:>6.3} {error:>8.5} {mean:>10.6} {deviation:>9.6} {seconds:>8.1}");
    }
    Ok(())
}
