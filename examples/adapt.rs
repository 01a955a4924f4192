//! Fine-tuning a compressed model: spectral adapters beside LoRA.
//!
//! ```sh
//! cargo run --release --features cli --example adapt -- [BITS] [STEPS] [RATE]
//! ```
//!
//! llama-books, whose training text were novels, is compressed (16 leaves it as it is) and then fine-tuned on the first nine
//! tenths of `models/plays.txt`; perplexities are those of the last tenth, of `models/evaluation.txt` (a novel) beside it.
//! Every method trains the same layers on the same batches with AdamW; RATE is the spectral adapters' learning rate, LoRA's is 2e-3. LoRA (Hu et al., arXiv
//! 2106.09685) has rank 8 and `alpha` 16 and runs on the decoded weights. `bytes` are those of what is kept: LoRA's factors in F16,
//! the adapters' file. `s/step` is the wall time of a step in this process.

use anyhow::{Context, Result, bail};
use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder, VarMap, loss};
use candle_rbe::archive::{self, load_adapters, save_adapters};
use candle_rbe::models::{CausalLm, Model, Windows, evaluate};
use candle_rbe::{
    AdapterConfig, Encoder, EncoderConfig, Linear, Positions, Rate, RbeLinear, SpectralAdapter,
};
use std::collections::HashMap;
use std::time::Instant;
use tokenizers::Tokenizer;

const BATCH: usize = 4;
const WINDOW: usize = 128;
const RANK: usize = 8;
const ALPHA: f64 = 16.0;
const LORA_RATE: f64 = 2e-3;
/// For a quarter of LoRA's parameters; a step of Adam moves the weight by the square root of their number.
const SPECTRAL_RATE: f64 = 2e-2;
const WINDOWS: Windows = Windows { count: 16, length: WINDOW };

/// The tokens of a text of this checkout.
struct Texts {
    train: Vec<u32>,
    held_out: Vec<u32>,
    novel: Vec<u32>,
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let bits: f64 = args.next().map_or(Ok(4.02), |bits| bits.parse())?;
    let steps: usize = args.next().map_or(Ok(100), |steps| steps.parse())?;
    let spectral_rate: f64 = args.next().map_or(Ok(SPECTRAL_RATE), |rate| rate.parse())?;
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

    let open = || -> Result<Model> { Ok(Model::load(&dir, archive::open(&dir, DType::F32, &Device::Cpu)?)?) };
    let original = open()?;
    let base = || -> Result<Model> {
        let mut model = open()?;
        compress(&mut model, bits)?;
        Ok(model)
    };
    let base = base()?;
    println!("llama-books at {bits} bits, {steps} steps of {BATCH} x {WINDOW} tokens");
    println!(
        "{:<34} {:>10} {:>8} {:>8} {:>8} {:>7}",
        "method", "parameters", "bytes", "plays", "novel", "s/step"
    );
    let row = |name: &str, model: &Model, parameters: usize, bytes: usize, seconds: f64| -> Result<()> {
        let perplexity = |tokens| -> Result<f64> {
            Ok(evaluate(&original, model, tokens, WINDOWS, |_, _| {})?.candidate.perplexity)
        };
        let (plays, novel) = (perplexity(&texts.held_out)?, perplexity(&texts.novel)?);
        println!("{name:<34} {parameters:>10} {bytes:>8} {plays:>8.2} {novel:>8.2} {seconds:>7.3}");
        Ok(())
    };
    row("none", &base, 0, 0, 0.0)?;

    let (lora, parameters, seconds) = train_lora(&base, &texts.train, steps)?;
    row("LoRA, rank 8", &lora, parameters, 2 * parameters, seconds)?;

    let gradients = weight_gradients(&base, &texts.train)?;
    let room = tempfile::tempdir()?;
    for (name, share, by_gradient) in [
        ("spectral, random", 4, false),
        ("spectral, largest gradients", 4, true),
        ("spectral, random", 1, false),
    ] {
        let per_layer = |out: usize, input: usize| RANK * (out + input) / share;
        let mut model = base.clone();
        let variables = VarMap::new();
        let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
        for (name, linear) in projections(&mut model) {
            let gradient = &gradients[&name];
            let (out, input) = gradient.dims2()?;
            let positions =
                if by_gradient { Positions::Largest(gradient) } else { Positions::Random { seed: 7 } };
            let config = AdapterConfig { coefficients: per_layer(out, input), positions, axes: None };
            *linear = SpectralAdapter::new(linear.clone(), config, vb.pp(&name))?.into();
        }
        let parameters = variables.all_vars().iter().map(|var| var.elem_count()).sum();
        let rate = spectral_rate * (share as f64 / 4.0).sqrt();
        let seconds = fit(&mut model, variables.all_vars(), rate, &texts.train, steps, |_| Ok(()))?;

        // What is kept, put on top of the compressed model again.
        let file = room.path().join(format!("{name} {share}.safetensors"));
        let adapters = projections(&mut model).into_iter().filter_map(|(name, linear)| match linear {
            Linear::Adapted(adapter) => Some((name, &*adapter)),
            _ => None,
        });
        save_adapters(&file, adapters, false)?;
        let bytes = std::fs::metadata(&file)?.len() as usize;
        let mut kept = load_adapters(&file)?;
        let mut merged = base.clone();
        for (name, linear) in projections(&mut merged) {
            let adapter = kept.remove(&name).context(name)?;
            *linear = SpectralAdapter::from_tensor(linear.clone(), adapter)?.merge()?;
        }
        let label = format!("{name}, 1/{share} of LoRA's");
        row(&label, &merged, parameters, bytes, seconds)?;
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
        let Linear::Dense(dense) = &*linear else { bail!("{name} is not dense") };
        *linear = RbeLinear::new(encoder.encode(dense.weight())?, dense.bias().cloned()).into();
    }
    Ok(())
}

/// The weight of a layer, decoded where it is compressed.
fn weight(linear: &Linear) -> Result<Tensor> {
    Ok(match linear {
        Linear::Dense(dense) => dense.weight().clone(),
        Linear::Rbe(compressed) => compressed.weight().dequantize()?,
        _ => bail!("a layer that is trained already"),
    })
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
fn train_lora(base: &Model, tokens: &[u32], steps: usize) -> Result<(Model, usize, f64)> {
    let mut model = base.clone();
    let mut factors: HashMap<String, (Tensor, Var, Var)> = HashMap::new();
    for (name, linear) in projections(&mut model) {
        let weight = weight(linear)?;
        let (out, input) = weight.dims2()?;
        let a = Var::randn(0f32, 1.0 / (input as f32).sqrt(), (RANK, input), &Device::Cpu)?;
        factors.insert(name, (weight, a, Var::zeros((out, RANK), DType::F32, &Device::Cpu)?));
    }
    let variables: Vec<Var> = factors.values().flat_map(|(_, a, b)| [a.clone(), b.clone()]).collect();
    let parameters = variables.iter().map(|var| var.elem_count()).sum();
    let assemble = |model: &mut Model| -> Result<()> {
        for (name, linear) in projections(model) {
            let (weight, a, b) = &factors[&name];
            *linear = Linear::new((weight + (b.matmul(a)? * (ALPHA / RANK as f64))?)?, None);
        }
        Ok(())
    };
    let seconds = fit(&mut model, variables, LORA_RATE, tokens, steps, assemble)?;
    assemble(&mut model)?;
    Ok((model, parameters, seconds))
}

/// The gradient of every projection's weight on a batch, through the decoded weights.
fn weight_gradients(base: &Model, tokens: &[u32]) -> Result<HashMap<String, Tensor>> {
    let mut model = base.clone();
    let mut variables = HashMap::new();
    for (name, linear) in projections(&mut model) {
        let weight = Var::from_tensor(&weight(linear)?)?;
        *linear = Linear::new(weight.as_tensor().clone(), None);
        variables.insert(name, weight);
    }
    let gradients = next_token_loss(&model, tokens, 0)?.backward()?;
    variables
        .into_iter()
        .map(|(name, var)| Ok((name, gradients.get(&var).context("a gradient")?.clone())))
        .collect()
}
