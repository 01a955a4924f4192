//! Healing: a compressed model trained, as it is stored, to predict what the uncompressed one predicts.
//!
//! ```sh
//! cargo run --release --features cli --example heal -- [BITS] [STEPS] [RATE]
//! ```
//!
//! The projections of llama-books are compressed. Then the scales (of strips of 32 columns by up to 256 rows) and the norms, and in a
//! second run a sparse term of one coefficient in 256 too, are trained against the original's predictions (distillation:
//! the KL divergence, Hinton et al., arXiv 1503.02531) on `models/calibration.txt`. What is evaluated, on `models/evaluation.txt`, is
//! what would be stored: numbers rounded to the format's, the sparse term merged. `bits` count everything.

use anyhow::{Context, Result, bail};
use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder, VarMap, ops};
use candle_rbe::models::{CausalLm, Model, Windows, evaluate};
use candle_rbe::{
    AdapterConfig, Encoder, EncoderConfig, Linear, Positions, Rate, RbeLinear, SpectralAdapter,
    TrainableLinear,
};
use std::collections::HashMap;
use std::time::Instant;
use tokenizers::Tokenizer;

const BATCH: usize = 4;
const WINDOW: usize = 128;
/// Weights for each coefficient of the sparse term.
const WEIGHTS_PER_COEFFICIENT: usize = 256;
/// Coefficients move by about a tenth of what a relative change of the scales moves.
const SPARSE_RATE: f64 = 1.0;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let bits: f64 = args.next().map_or(Ok(2.02), |bits| bits.parse())?;
    let steps: usize = args.next().map_or(Ok(150), |steps| steps.parse())?;
    let rate: f64 = args.next().map_or(Ok(3e-3), |rate| rate.parse())?;
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
        .collect::<Result<HashMap<String, Tensor>>>()?;
    let load = |tensors: HashMap<String, Tensor>| {
        Model::load(&dir, VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)).context(dir.clone())
    };
    let original = load(weights.clone())?;
    let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(bits)))?;
    let mut compressed: HashMap<String, RbeLinear> = HashMap::new();
    for (name, weight) in weights.iter().filter(|(name, _)| name.contains("_proj")) {
        compressed.insert(name.clone(), RbeLinear::new(encoder.encode(weight)?, None));
    }

    println!("llama-books, {steps} steps of {BATCH} x {WINDOW} tokens");
    println!(
        "{:<28} {:>8} {:>10} {:>10} {:>10} {:>7} {:>7}",
        "trained", "bits", "parameters", "KL", "perplexity", "top-1", "s/step"
    );
    let row = |name: &str, model: &mut Model, parameters: usize, seconds: f64| -> Result<()> {
        let (mut bytes, mut elements) = (0, 0);
        for (name, linear) in projections(model) {
            let Linear::Rbe(linear) = &*linear else { bail!("{name} is not compressed") };
            bytes += linear.weight().size_in_bytes();
            elements += linear.weight().shape().elem_count();
        }
        let found =
            evaluate(&original, model, &evaluation, Windows { count: 16, length: WINDOW }, |_, _| {})?;
        println!(
            "{name:<28} {:>8.3} {parameters:>10} {:>10.6} {:>10.3} {:>7.4} {seconds:>7.3}",
            8.0 * bytes as f64 / elements as f64,
            found.kl_divergence,
            found.candidate.perplexity,
            found.top1_agreement
        );
        Ok(())
    };
    let mut start = load(weights.clone())?;
    for (name, linear) in projections(&mut start) {
        *linear = compressed[&name].clone().into();
    }
    row("nothing", &mut start, 0, 0.0)?;

    for sparse in [false, true] {
        let map = VarMap::new();
        let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
        // Norms are variables by being variables in the map that the model is made of.
        let mut tensors = weights.clone();
        let mut norms = HashMap::new();
        for (name, tensor) in tensors.iter_mut().filter(|(name, _)| name.contains("norm")) {
            let var = Var::from_tensor(tensor)?;
            *tensor = var.as_tensor().clone();
            norms.insert(name.clone(), var);
        }
        let mut model = load(tensors)?;
        for (name, linear) in projections(&mut model) {
            let trainable = TrainableLinear::new(compressed[&name].clone(), vb.pp(&name))?;
            *linear = trainable.into();
            if sparse {
                let residual = (&weights[&name] - compressed[&name].weight().dequantize()?)?;
                let config = AdapterConfig {
                    coefficients: residual.elem_count() / WEIGHTS_PER_COEFFICIENT,
                    positions: Positions::Largest(&residual),
                    axes: None,
                };
                *linear = SpectralAdapter::new(linear.clone(), config, vb.pp(&name).pp("sparse"))?.into();
            }
        }
        let (mut changes, mut coefficients): (Vec<Var>, Vec<Var>) =
            (norms.values().cloned().collect(), vec![]);
        for (name, var) in map.data().lock().expect("no other thread").iter() {
            if name.contains("sparse") { &mut coefficients } else { &mut changes }.push(var.clone());
        }
        let parameters = changes.iter().chain(&coefficients).map(|var| var.elem_count()).sum();
        let adam = |variables, lr| {
            AdamW::new(variables, ParamsAdamW { lr, weight_decay: 0.0, ..Default::default() })
        };
        let (mut scales, mut entries) = (adam(changes, rate)?, adam(coefficients, rate * SPARSE_RATE)?);
        let clock = Instant::now();
        for step in 0..steps {
            let left = 1.0 - step as f64 / steps as f64;
            scales.set_learning_rate(rate * left);
            entries.set_learning_rate(rate * SPARSE_RATE * left);
            let input = batch(&calibration, step)?;
            let gradients =
                divergence(&original.forward(&input, None)?, &model.forward(&input, None)?)?.backward()?;
            scales.step(&gradients)?;
            entries.step(&gradients)?;
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
        let name = if sparse { "scales, norms, sparse term" } else { "scales, norms" };
        row(name, &mut healed, parameters, seconds)?;
    }
    Ok(())
}

/// What would be stored of a trained layer.
fn stored(linear: &Linear) -> Result<Linear> {
    Ok(match linear {
        Linear::Trainable(trained) => trained.to_linear()?.into(),
        Linear::Adapted(adapter) => {
            SpectralAdapter::from_tensor(stored(adapter.base())?, adapter.to_tensor()?)?.merge()?
        }
        other => other.clone(),
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
