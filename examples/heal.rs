//! Healing: a compressed model trained, as it is stored, to predict what the uncompressed one predicts.
//!
//! ```sh
//! cargo run --release --features cli --example heal -- [BITS] [STEPS] [PART=RATE,.. ..]
//! ```
//!
//! The projections of llama-books are compressed, and then trained against the original's predictions (distillation: the
//! KL divergence, Hinton et al., arXiv 1503.02531) on `models/calibration.txt`, once for each argument. What is evaluated, on
//! `models/evaluation.txt`, is what would be stored: numbers rounded to the format's, the sparse term merged. `bits` count
//! everything. An argument names the parts that are trained, each with its learning rate:
//!
//! - `scales`: of scale groups of 32 columns by up to 256 rows;
//! - `norms`: the weights of the norms;
//! - `bias`: a bias of every projection, which the model does not have (16 bits each);
//! - `basis`: the eight smooth functions of every block, from zero on;
//! - `sparse`: one coefficient in 256, where the error of the weight is largest, from zero on.

use anyhow::{Context, Result, bail, ensure};
use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder, VarMap, ops};
use candle_rbe::codec::term::{Basis, Term};
use candle_rbe::models::{CausalLm, Model, Windows, evaluate};
use candle_rbe::nn::Layer;
use candle_rbe::{
    AdapterConfig, Encoder, EncoderConfig, Linear, Positions, Rate, RbeLinear, RbeTensor, SpectralAdapter,
    TrainableLinear,
};
use std::collections::HashMap;
use std::time::Instant;
use tokenizers::Tokenizer;

const BATCH: usize = 4;
const WINDOW: usize = 128;
/// Weights for each coefficient of the sparse term.
const WEIGHTS_PER_COEFFICIENT: usize = 256;
const PARTS: [&str; 5] = ["scales", "norms", "bias", "basis", "sparse"];
/// What is trained where nothing is said.
const DEFAULT: [&str; 7] = [
    "scales=3e-3",
    "norms=3e-3",
    "bias=1e-2",
    "basis=3e-3",
    "sparse=1e-2",
    "scales=3e-3,norms=3e-3,bias=1e-2",
    "scales=3e-3,norms=3e-3,bias=1e-2,sparse=1e-2",
];

type Tensors = HashMap<String, Tensor>;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let bits: f64 = args.next().map_or(Ok(2.02), |bits| bits.parse())?;
    let steps: usize = args.next().map_or(Ok(150), |steps| steps.parse())?;
    let mut runs: Vec<String> = args.collect();
    if runs.is_empty() {
        runs = DEFAULT.map(str::to_owned).into();
    }
    let models = concat!(env!("CARGO_MANIFEST_DIR"), "/models");
    let dir = format!("{models}/llama-books");
    let tokenizer = Tokenizer::from_file(format!("{dir}/tokenizer.json")).map_err(anyhow::Error::msg)?;
    let tokens = |name: &str| -> Result<Vec<u32>> {
        let text = std::fs::read_to_string(format!("{models}/{name}")).context(name.to_owned())?;
        Ok(tokenizer.encode(text, false).map_err(anyhow::Error::msg)?.get_ids().to_vec())
    };
    let (calibration, evaluation) = (tokens("calibration.txt")?, tokens("evaluation.txt")?);
    let weights = candle_core::safetensors::load(format!("{dir}/model.safetensors"), &Device::Cpu)?;
    let weights = weights
        .into_iter()
        .map(|(name, weight)| Ok((name, weight.to_dtype(DType::F32)?)))
        .collect::<Result<Tensors>>()?;
    let load = |tensors: Tensors| {
        Model::load(&dir, VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)).context(dir.clone())
    };
    let original = load(weights.clone())?;
    let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(bits)))?;
    let mut compressed: HashMap<String, RbeTensor> = HashMap::new();
    for (name, weight) in weights.iter().filter(|(name, _)| name.contains("_proj")) {
        compressed.insert(name.clone(), encoder.encode(weight)?);
    }

    println!("llama-books, {steps} steps of {BATCH} x {WINDOW} tokens");
    println!(
        "{:<36} {:>6} {:>10} {:>9} {:>10} {:>7} {:>7}",
        "trained", "bits", "parameters", "KL", "perplexity", "top-1", "s/step"
    );
    let row = |name: &str, model: &mut Model, parameters: usize, seconds: f64| -> Result<()> {
        let (mut bytes, mut elements) = (0, 0);
        for (name, linear) in projections(model) {
            let Layer::Rbe(linear) = linear.layer() else { bail!("{name} is not compressed") };
            bytes += linear.weight().size_in_bytes() + 2 * linear.bias().map_or(0, Tensor::elem_count);
            elements += linear.weight().shape().elem_count();
        }
        let found =
            evaluate(&original, model, &evaluation, Windows { count: 16, length: WINDOW }, |_, _| {})?;
        println!(
            "{name:<36} {:>6.3} {parameters:>10} {:>9.6} {:>10.3} {:>7.4} {seconds:>7.3}",
            8.0 * bytes as f64 / elements as f64,
            found.kl_divergence,
            found.candidate.perplexity,
            found.top1_agreement
        );
        Ok(())
    };
    let mut start = load(weights.clone())?;
    for (name, linear) in projections(&mut start) {
        *linear = RbeLinear::new(compressed[&name].clone(), None).into();
    }
    row("nothing", &mut start, 0, 0.0)?;

    for run in runs {
        let rates = run
            .split(',')
            .map(|part| {
                let (part, rate) = part.split_once('=').context("PART=RATE, such as scales=3e-3")?;
                ensure!(PARTS.contains(&part), "{part} is none of {PARTS:?}");
                Ok((part, rate.parse()?))
            })
            .collect::<Result<HashMap<&str, f64>>>()?;
        let map = VarMap::new();
        let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
        // Norms are variables by being variables in the map that the model is made of.
        let (mut tensors, mut norms) = (weights.clone(), HashMap::new());
        if rates.contains_key("norms") {
            for (name, tensor) in tensors.iter_mut().filter(|(name, _)| name.contains("norm")) {
                let var = Var::from_tensor(tensor)?;
                *tensor = var.as_tensor().clone();
                norms.insert(name.clone(), var);
            }
        }
        let mut model = load(tensors)?;
        for (name, linear) in projections(&mut model) {
            *linear = trainable(&weights[&name], &compressed[&name], &rates, vb.pp(&name))?;
        }
        let mut optimizers = Vec::new();
        for (part, rate) in &rates {
            let of_part = |name: &str| match *part {
                "scales" => name.ends_with("trellis") || name.ends_with("planes"),
                "sparse" => name.ends_with("sparse.values"),
                part => name.ends_with(part),
            };
            let mut variables: Vec<Var> =
                if *part == "norms" { norms.values().cloned().collect() } else { vec![] };
            let of_layers = map.data().lock().expect("no other thread");
            variables.extend(of_layers.iter().filter(|(name, _)| of_part(name)).map(|(_, var)| var.clone()));
            let count: usize = variables.iter().map(|var| var.elem_count()).sum();
            let adam =
                AdamW::new(variables, ParamsAdamW { lr: *rate, weight_decay: 0.0, ..Default::default() })?;
            optimizers.push((adam, *rate, count));
        }
        let clock = Instant::now();
        for step in 0..steps {
            let input = batch(&calibration, step)?;
            let gradients =
                divergence(&original.forward(&input, None)?, &model.forward(&input, None)?)?.backward()?;
            for (adam, rate, _) in &mut optimizers {
                adam.set_learning_rate(*rate * (1.0 - step as f64 / steps as f64));
                adam.step(&gradients)?;
            }
        }
        let seconds = clock.elapsed().as_secs_f64() / steps as f64;

        let mut tensors = weights.clone();
        tensors.extend(norms.into_iter().map(|(name, var)| (name, var.as_tensor().detach())));
        let mut healed = load(tensors)?;
        let trained: HashMap<String, Linear> =
            projections(&mut model).into_iter().map(|(name, linear)| (name, linear.clone())).collect();
        for (name, linear) in projections(&mut healed) {
            *linear = stored(&trained[&name])?;
        }
        row(&run, &mut healed, optimizers.iter().map(|(_, _, count)| count).sum(), seconds)?;
    }
    Ok(())
}

/// A layer with the variables that the parts ask for, and those of its scales.
fn trainable(
    original: &Tensor,
    compressed: &RbeTensor,
    rates: &HashMap<&str, f64>,
    vb: VarBuilder,
) -> Result<Linear> {
    let mut weight = compressed.clone();
    if rates.contains_key("basis") {
        let matrix = weight.to_matrix()?;
        let basis =
            Term::Basis(Basis::new(matrix.layout(), &vec![[0.0; 8]; matrix.layout().blocks()], false));
        let terms = [&[basis], matrix.terms()].concat();
        let error = matrix.relative_error();
        let matrix = matrix.with_terms(terms, error);
        weight = RbeTensor::from_matrix(&matrix, weight.orientation())?;
    }
    let bias = match rates.contains_key("bias") {
        true => Some(Tensor::zeros(original.dim(0)?, DType::F32, &Device::Cpu)?),
        false => None,
    };
    let layer = TrainableLinear::new(RbeLinear::new(weight, bias), vb.clone())?.into();
    if !rates.contains_key("sparse") {
        return Ok(layer);
    }
    let residual = (original - compressed.dequantize()?)?;
    let coefficients = residual.elem_count() / WEIGHTS_PER_COEFFICIENT;
    let config = AdapterConfig { coefficients, positions: Positions::Largest(&residual), axes: None };
    let adapter = SpectralAdapter::new(layer, config, vb.pp("sparse"))?;
    Ok(adapter.into())
}

/// What would be stored of a trained layer.
fn stored(linear: &Linear) -> Result<Linear> {
    Ok(match linear.layer() {
        Layer::Trainable(trained) => trained.to_linear()?.into(),
        Layer::Adapted(adapter) => {
            SpectralAdapter::from_tensor(stored(adapter.base())?, adapter.to_tensor()?)?.merge()?
        }
        Layer::Dense(_) | Layer::Rbe(_) => linear.clone(),
    })
}

fn projections(model: &mut Model) -> Vec<(String, &mut Linear)> {
    model.linears_mut().into_iter().filter(|(name, _)| name.contains("_proj")).collect()
}

/// Windows of the text, the same ones at every run.
fn batch(tokens: &[u32], step: usize) -> Result<Tensor> {
    let windows: Vec<u32> = (0..BATCH)
        .flat_map(|n| {
            let start = ((step * BATCH + n) * 7919 * WINDOW / 16) % (tokens.len() - WINDOW);
            tokens[start..start + WINDOW].iter().copied()
        })
        .collect();
    Ok(Tensor::from_vec(windows, (BATCH, WINDOW), &Device::Cpu)?)
}

/// `KL(reference || candidate)` up to what does not depend on the candidate, the mean over positions.
fn divergence(reference: &Tensor, candidate: &Tensor) -> Result<Tensor> {
    let probabilities = ops::softmax_last_dim(reference)?;
    let log_probabilities = ops::log_softmax(candidate, D::Minus1)?;
    let positions = (reference.dim(0)? * reference.dim(1)?) as f64;
    Ok(((probabilities * log_probabilities)?.sum_all()? / -positions)?)
}
