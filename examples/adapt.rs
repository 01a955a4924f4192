//! Fine-tuning a compressed model: spectral adapters beside LoRA.
//!
//! ```sh
//! cargo run --release --features cli --example adapt -- [BITS] [STEPS] [METHOD=RATE ..]
//! ```
//!
//! llama-books, whose training text were novels, is compressed (16 leaves it as it is) and then fine-tuned on the first nine
//! tenths of `models/plays.txt`; perplexities are those of the last tenth, of `models/evaluation.txt` (a novel) beside it.
//! Every method trains the same layers on the same batches with AdamW and a rate that falls to zero. The methods:
//!
//! - `lora:R`: LoRA (Hu et al., arXiv 2106.09685) of rank `R` and `alpha = 2 R` on the decoded weights;
//! - `random:N`: a spectral adapter with an `N`-th of the parameters of LoRA of rank 8, at positions drawn once;
//! - `gradient:N`: at those where the gradient of the weights over [`GRADIENT_BATCHES`] batches is largest;
//!
//! `bytes` are those of what is kept: LoRA's factors in F16, the adapters' file. `s/step` is the wall time of a step.

use anyhow::{Context, Result, bail};
use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder, VarMap, loss};
use candle_rbe::archive::{self, load_adapters, save_adapters};
use candle_rbe::models::{CausalLm, Model, Windows, evaluate};
use candle_rbe::nn::Layer;
use candle_rbe::{
    AdapterConfig, Encoder, EncoderConfig, Linear, Positions, Rate, RbeLinear, SpectralAdapter,
};
use std::collections::HashMap;
use std::time::Instant;
use tokenizers::Tokenizer;

const BATCH: usize = 4;
const WINDOW: usize = 128;
/// LoRA's, of which adapters have a share.
const RANK: usize = 8;
const GRADIENT_BATCHES: usize = 16;
const WINDOWS: Windows = Windows { count: 16, length: WINDOW };
/// Each with the best of the rates tried.
const METHODS: [&str; 5] =
    ["lora:8=4e-3", "lora:1=1e-2", "random:4=4e-2", "random:16=1e-1", "gradient:16=8e-2"];

/// The tokens of a text of this checkout.
struct Texts {
    train: Vec<u32>,
    held_out: Vec<u32>,
    novel: Vec<u32>,
}

/// A model after fine-tuning.
struct Tuned {
    model: Model,
    parameters: usize,
    bytes: usize,
    seconds_per_step: f64,
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let bits: f64 = args.next().map_or(Ok(4.02), |bits| bits.parse())?;
    let steps: usize = args.next().map_or(Ok(100), |steps| steps.parse())?;
    let mut methods: Vec<String> = args.collect();
    if methods.is_empty() {
        methods = METHODS.map(str::to_owned).into();
    }
    let models = concat!(env!("CARGO_MANIFEST_DIR"), "/models");
    let dir = format!("{models}/llama-books");
    let tokenizer = Tokenizer::from_file(format!("{dir}/tokenizer.json")).map_err(anyhow::Error::msg)?;
    let tokens = |name: &str| -> Result<Vec<u32>> {
        let text = std::fs::read_to_string(format!("{models}/{name}")).context(name.to_owned())?;
        Ok(tokenizer.encode(text, false).map_err(anyhow::Error::msg)?.get_ids().to_vec())
    };
    let mut train = tokens("plays.txt")?;
    let held_out = train.split_off(train.len() / 10 * 9);
    let texts = Texts { train, held_out, novel: tokens("evaluation.txt")? };

    let original = Model::load(&dir, archive::open(&dir, DType::F32, &Device::Cpu)?)?;
    let mut base = original.clone();
    compress(&mut base, bits)?;
    println!("llama-books at {bits} bits, {steps} steps of {BATCH} x {WINDOW} tokens");
    println!(
        "{:<14} {:>6} {:>10} {:>8} {:>8} {:>8} {:>7}",
        "method", "rate", "parameters", "bytes", "plays", "novel", "s/step"
    );
    let row = |name: &str, rate: f64, tuned: &Tuned| -> Result<()> {
        let perplexity = |tokens| -> Result<f64> {
            Ok(evaluate(&original, &tuned.model, tokens, WINDOWS, |_, _| {})?.candidate.perplexity)
        };
        let (plays, novel) = (perplexity(&texts.held_out)?, perplexity(&texts.novel)?);
        let Tuned { parameters, bytes, seconds_per_step, .. } = tuned;
        println!(
            "{name:<14} {rate:>6} {parameters:>10} {bytes:>8} {plays:>8.2} {novel:>8.2} {seconds_per_step:>7.3}"
        );
        Ok(())
    };
    row("none", 0.0, &Tuned { model: base.clone(), parameters: 0, bytes: 0, seconds_per_step: 0.0 })?;
    let mut gradients = None;
    for method in methods {
        let (name, rate) = method.split_once('=').context("METHOD=RATE, such as lora:8=2e-3")?;
        let (kind, size) = name.split_once(':').context("a method and its size, such as lora:8")?;
        let (rate, size): (f64, usize) = (rate.parse()?, size.parse()?);
        let tuned = match kind {
            "lora" => train_lora(&base, size, rate, &texts.train, steps)?,
            "random" => train_spectral(&base, size, None, rate, &texts.train, steps)?,
            "gradient" => {
                let gradients = match &mut gradients {
                    Some(gradients) => gradients,
                    none => none.insert(weight_gradients(&base, &texts.train)?),
                };
                train_spectral(&base, size, Some(gradients), rate, &texts.train, steps)?
            }
            _ => bail!("{kind} is no method"),
        };
        row(name, rate, &tuned)?;
    }
    Ok(())
}

/// The layers that are compressed and adapted: all but the head.
fn projections(model: &mut Model) -> Vec<(String, &mut Linear)> {
    model.linears_mut().into_iter().filter(|(name, _)| name.contains("_proj")).collect()
}

fn compress(model: &mut Model, bits: f64) -> Result<()> {
    if bits >= 16.0 {
        return Ok(());
    }
    let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(bits)))?;
    for (name, linear) in projections(model) {
        let Layer::Dense(dense) = linear.layer() else { bail!("{name} is not dense") };
        *linear = RbeLinear::new(encoder.encode(dense.weight())?, dense.bias().cloned()).into();
    }
    Ok(())
}

/// The weight of a layer, decoded where it is compressed.
fn weight(linear: &Linear) -> Result<Tensor> {
    Ok(match linear.layer() {
        Layer::Dense(dense) => dense.weight().clone(),
        Layer::Rbe(compressed) => compressed.weight().dequantize()?,
        _ => bail!("a layer that is trained already"),
    })
}

/// `(out, in)`.
fn shape(linear: &Linear) -> Result<(usize, usize)> {
    Ok(linear.weight().dims2()?)
}

/// Windows of the text, the same ones at every run.
fn batch(tokens: &[u32], step: usize) -> Result<(Tensor, Tensor)> {
    let windows: Vec<u32> = (0..BATCH)
        .flat_map(|n| {
            let start = ((step * BATCH + n) * 7919 * WINDOW / 16) % (tokens.len() - WINDOW - 1);
            tokens[start..start + WINDOW + 1].iter().copied()
        })
        .collect();
    let windows = Tensor::from_vec(windows, (BATCH, WINDOW + 1), &Device::Cpu)?;
    Ok((windows.narrow(1, 0, WINDOW)?.contiguous()?, windows.narrow(1, 1, WINDOW)?.flatten_all()?))
}

fn next_token_loss(model: &Model, tokens: &[u32], step: usize) -> Result<Tensor> {
    let (input, next) = batch(tokens, step)?;
    let logits = model.forward(&input, None)?;
    let vocabulary = logits.dim(D::Minus1)?;
    Ok(loss::cross_entropy(&logits.reshape(((), vocabulary))?, &next)?)
}

/// Trains for some steps with a rate that falls to zero linearly; returns the seconds of a step.
fn fit(
    model: &mut Model,
    variables: Vec<Var>,
    rate: f64,
    tokens: &[u32],
    steps: usize,
    mut before: impl FnMut(&mut Model) -> Result<()>,
) -> Result<f64> {
    let mut adam = AdamW::new(variables, ParamsAdamW { lr: rate, weight_decay: 0.0, ..Default::default() })?;
    let start = Instant::now();
    for step in 0..steps {
        adam.set_learning_rate(rate * (1.0 - step as f64 / steps as f64));
        before(model)?;
        adam.backward_step(&next_token_loss(model, tokens, step)?)?;
    }
    Ok(start.elapsed().as_secs_f64() / steps as f64)
}

/// `W + alpha/r B A`, made anew from the factors at every step.
fn train_lora(base: &Model, rank: usize, rate: f64, tokens: &[u32], steps: usize) -> Result<Tuned> {
    let mut model = base.clone();
    let mut factors: HashMap<String, (Tensor, Var, Var)> = HashMap::new();
    for (name, linear) in projections(&mut model) {
        let weight = weight(linear)?;
        let (out, input) = weight.dims2()?;
        let a = Var::randn(0f32, 1.0 / (input as f32).sqrt(), (rank, input), &Device::Cpu)?;
        factors.insert(name, (weight, a, Var::zeros((out, rank), DType::F32, &Device::Cpu)?));
    }
    let variables: Vec<Var> = factors.values().flat_map(|(_, a, b)| [a.clone(), b.clone()]).collect();
    let parameters = variables.iter().map(|var| var.elem_count()).sum();
    let assemble = |model: &mut Model| -> Result<()> {
        for (name, linear) in projections(model) {
            let (weight, a, b) = &factors[&name];
            *linear = Linear::new((weight + (b.matmul(a)? * 2.0)?)?, None);
        }
        Ok(())
    };
    let seconds_per_step = fit(&mut model, variables, rate, tokens, steps, assemble)?;
    assemble(&mut model)?;
    Ok(Tuned { model, parameters, bytes: 2 * parameters, seconds_per_step })
}

/// The adapters of a model with their layers' names.
fn adapters(model: &mut Model) -> impl Iterator<Item = (String, &SpectralAdapter)> {
    projections(model).into_iter().filter_map(|(name, linear)| match linear.layer() {
        Layer::Adapted(adapter) => Some((name, adapter)),
        _ => None,
    })
}

/// Trains adapters, keeps them in a file, and merges what the file has into the model.
fn train_spectral(
    base: &Model,
    divisor: usize,
    gradients: Option<&HashMap<String, Tensor>>,
    rate: f64,
    tokens: &[u32],
    steps: usize,
) -> Result<Tuned> {
    let mut model = base.clone();
    let variables = VarMap::new();
    let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
    for (name, linear) in projections(&mut model) {
        let (out, input) = shape(linear)?;
        let positions = match gradients {
            Some(gradients) => Positions::Largest(&gradients[&name]),
            None => Positions::Random { seed: 7 },
        };
        let config = AdapterConfig { coefficients: RANK * (out + input) / divisor, positions, axes: None };
        *linear = SpectralAdapter::new(linear.clone(), config, vb.pp(&name))?.into();
    }
    let parameters = variables.all_vars().iter().map(|var| var.elem_count()).sum();
    let seconds_per_step = fit(&mut model, variables.all_vars(), rate, tokens, steps, |_| Ok(()))?;
    let room = tempfile::tempdir()?;
    let file = room.path().join("adapters.safetensors");
    save_adapters(&file, adapters(&mut model), false)?;
    let bytes = std::fs::metadata(&file)?.len() as usize;
    let mut kept = load_adapters(&file)?;
    let mut model = base.clone();
    for (name, linear) in projections(&mut model) {
        let adapter = kept.remove(&name).context(name)?;
        *linear = SpectralAdapter::from_tensor(linear.clone(), adapter)?.merge()?;
    }
    Ok(Tuned { model, parameters, bytes, seconds_per_step })
}

/// The gradient of every projection's weight on some batches, through the decoded weights.
fn weight_gradients(base: &Model, tokens: &[u32]) -> Result<HashMap<String, Tensor>> {
    let mut model = base.clone();
    let mut variables = HashMap::new();
    for (name, linear) in projections(&mut model) {
        let weight = Var::from_tensor(&weight(linear)?)?;
        *linear = Linear::new(weight.as_tensor().clone(), None);
        variables.insert(name, weight);
    }
    let mut sums: HashMap<String, Tensor> = HashMap::new();
    for step in 0..GRADIENT_BATCHES {
        let gradients = next_token_loss(&model, tokens, step)?.backward()?;
        for (name, variable) in &variables {
            let gradient = gradients.get(variable).context("a gradient")?;
            let sum = match sums.remove(name) {
                Some(sum) => (sum + gradient)?,
                None => gradient.clone(),
            };
            sums.insert(name.clone(), sum);
        }
    }
    Ok(sums)
}
