//! A small language model trained from the beginning with compressed feed-forward layers.
//!
//! ```sh
//! cargo run --release --features cli --example scratch -- [STEPS] [SVG] [VARIANT=RATE ..]
//! ```
//!
//! A LLaMA of two layers (hidden 128, feed-forward 512, four heads) learns the bytes of the first nine tenths of
//! `models/plays.txt`; the loss at the end is that of the last tenth, in nats per byte. All but the six feed-forward matrices
//! is dense and the same in every run, and so are the batches. The matrices are one of:
//!
//! - `dense`;
//! - `sparse:N`: compressed from the first step to the last, an `N`-th of the coefficients of a DCT at positions drawn once
//!   ([`TrainableLinear::from_scratch`]);
//! - `low-rank:N`: products `B A` of as many parameters;
//! - `narrow:N`: dense, but `512 / N` wide.
//!
//! RATE is the learning rate of the feed-forward matrices (AdamW, falling to zero linearly; for `sparse` relative to the
//! coefficients' root mean square); all else has [`RATE`]. Curves are means over [`SMOOTH`] steps. `s/step` is wall time.

use anyhow::{Context, Result, bail};
use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder, VarMap, loss};
use candle_rbe::archive::Stage;
use candle_rbe::models::{CausalLm, Config, Model};
use candle_rbe::{Linear, TrainableLinear};
use std::fmt::Write;
use std::time::Instant;

const HIDDEN: usize = 128;
const INNER: usize = 512;
const BATCH: usize = 8;
const WINDOW: usize = 96;
const RATE: f64 = 3e-3;
const SMOOTH: usize = 10;
/// Each with the best of the rates tried.
const VARIANTS: [&str; 7] = [
    "dense=3e-3",
    "sparse:8=6e-2",
    "sparse:32=1e-1",
    "low-rank:8=3e-3",
    "low-rank:32=3e-3",
    "narrow:8=1e-2",
    "narrow:32=1e-2",
];

/// How a run went.
struct Run {
    name: String,
    /// Parameters of the feed-forward matrices.
    parameters: usize,
    /// The training loss at every step.
    losses: Vec<f64>,
    held_out: f64,
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let steps: usize = args.next().map_or(Ok(250), |steps| steps.parse())?;
    // Begun before the work: nothing that is there is replaced.
    let picture = args.next().map(|path| Stage::file(path, false, &[])).transpose()?;
    let mut variants: Vec<String> = args.collect();
    if variants.is_empty() {
        variants = VARIANTS.map(str::to_owned).into();
    }
    let mut train = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/models/plays.txt"))?;
    let held_out = train.split_off(train.len() / 10 * 9);
    println!("{steps} steps of {BATCH} x {WINDOW} bytes");
    println!(
        "{:<14} {:>6} {:>10} {:>8} {:>9} {:>7}",
        "feed-forward", "rate", "parameters", "train", "held out", "s/step"
    );
    let mut runs = Vec::new();
    for variant in variants {
        let (name, rate) = variant.split_once('=').context("VARIANT=RATE, such as sparse:8=3e-2")?;
        let rate = rate.parse()?;
        let (run, seconds) = run(name, rate, steps, &train, &held_out)?;
        println!(
            "{name:<14} {rate:>6} {:>10} {:>8.4} {:>9.4} {seconds:>7.3}",
            run.parameters,
            mean(&run.losses[steps - steps.min(50)..]),
            run.held_out
        );
        runs.push(run);
    }
    if let Some(picture) = picture {
        std::fs::write(picture.path(), draw(&runs)).context("the picture")?;
        picture.commit()?;
    }
    Ok(())
}

/// A feed-forward matrix while it is trained.
enum Matrix {
    Dense,
    Compressed,
    LowRank { a: Var, b: Var },
}

fn run(name: &str, rate: f64, steps: usize, train: &[u8], held_out: &[u8]) -> Result<(Run, f64)> {
    let device = Device::Cpu;
    let (kind, share) = match name.split_once(':') {
        Some((kind, share)) => (kind, share.parse()?),
        None => (name, 1),
    };
    let inner = if kind == "narrow" { INNER / share } else { INNER };
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": 256, "hidden_size": HIDDEN, "intermediate_size": inner, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": WINDOW, "tie_word_embeddings": false
    });
    let others = VarMap::new();
    let config = Config::from_json(&config.to_string())?;
    let mut model = Model::new(config, VarBuilder::from_varmap(&others, DType::F32, &device))?;
    reseed(&others)?;

    let compressed = VarMap::new();
    let vb = VarBuilder::from_varmap(&compressed, DType::F32, &device);
    let mut matrices = Vec::new();
    for (seed, (name, linear)) in feed_forward(&mut model).into_iter().enumerate() {
        let (out, input) = if name.contains("down") { (HIDDEN, inner) } else { (inner, HIDDEN) };
        matrices.push(match kind {
            "dense" | "narrow" => Matrix::Dense,
            "sparse" => {
                let coefficients = out * input / share;
                let seed = seed as u64;
                *linear = TrainableLinear::from_scratch(input, out, coefficients, seed, vb.pp(name))?.into();
                Matrix::Compressed
            }
            "low-rank" => {
                let rank = (out * input / share).div_ceil(out + input);
                // Elements of the product have the variance of the dense matrix, `2 / in`.
                let (a, b) = ((1.0 / input as f64).sqrt(), (2.0 / rank as f64).sqrt());
                Matrix::LowRank {
                    a: Var::from_tensor(&(noise(rank * input, seed)?.reshape((rank, input))? * a)?)?,
                    b: Var::from_tensor(&(noise(out * rank, seed + 100)?.reshape((out, rank))? * b)?)?,
                }
            }
            _ => bail!("{kind} is none of the variants"),
        });
    }
    let mut own: Vec<Var> = compressed.all_vars();
    let mut rest = Vec::new();
    for (name, var) in others.data().lock().expect("no other thread").iter() {
        match (name.contains(".mlp."), kind) {
            (false, _) => rest.push(var.clone()),
            (true, "dense" | "narrow") => own.push(var.clone()),
            // Made for the dense model, and replaced.
            (true, _) => {}
        }
    }
    for matrix in &matrices {
        if let Matrix::LowRank { a, b } = matrix {
            own.extend([a.clone(), b.clone()]);
        }
    }
    let parameters = own.iter().map(|var| var.elem_count()).sum();
    let adam =
        |variables, lr| AdamW::new(variables, ParamsAdamW { lr, weight_decay: 0.0, ..Default::default() });
    let (mut of_own, mut of_rest) = (adam(own, rate)?, adam(rest, RATE)?);
    let mut losses = Vec::new();
    let clock = Instant::now();
    for step in 0..steps {
        let left = 1.0 - step as f64 / steps as f64;
        of_own.set_learning_rate(rate * left);
        of_rest.set_learning_rate(RATE * left);
        assemble(&mut model, &matrices)?;
        let starts = (0..BATCH).map(|n| (step * BATCH + n) * 7919 * WINDOW / 16 % (train.len() - WINDOW - 1));
        let loss = next_byte_loss(&model, train, starts)?;
        let gradients = loss.backward()?;
        of_own.step(&gradients)?;
        of_rest.step(&gradients)?;
        losses.push(loss.to_scalar::<f32>()?.into());
    }
    let seconds = clock.elapsed().as_secs_f64() / steps as f64;
    assemble(&mut model, &matrices)?;
    let mut held_out_losses = Vec::new();
    let windows = (0..held_out.len() - WINDOW - 1).step_by(WINDOW).collect::<Vec<_>>();
    for starts in windows.chunks_exact(BATCH) {
        held_out_losses
            .push(next_byte_loss(&model, held_out, starts.iter().copied())?.to_scalar::<f32>()?.into());
    }
    Ok((Run { name: name.to_owned(), parameters, losses, held_out: mean(&held_out_losses) }, seconds))
}

/// The six feed-forward matrices.
fn feed_forward(model: &mut Model) -> Vec<(String, &mut Linear)> {
    model.linears_mut().into_iter().filter(|(name, _)| name.contains(".mlp.")).collect()
}

/// Puts the products of factors, as they are now, in their places.
fn assemble(model: &mut Model, matrices: &[Matrix]) -> Result<()> {
    for ((_, linear), matrix) in feed_forward(model).into_iter().zip(matrices) {
        if let Matrix::LowRank { a, b } = matrix {
            *linear = Linear::new(b.matmul(a)?, None);
        }
    }
    Ok(())
}

/// Numbers that look normally distributed and are the same in every run: Box and Muller's of a sine's digits.
fn noise(count: usize, seed: usize) -> Result<Tensor> {
    let unit = |n: usize, salt: f64| ((n as f64 + 1.0 + 1e6 * seed as f64) * salt).sin() * 43758.5453;
    let value = |n: usize| {
        let (u, v) = (unit(n, 12.9898).rem_euclid(1.0), unit(n, 78.233).rem_euclid(1.0));
        ((-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    };
    Ok(Tensor::from_vec((0..count).map(value).collect::<Vec<_>>(), count, &Device::Cpu)?)
}

/// Weights as `VarMap` would draw them, but the same in every run.
fn reseed(map: &VarMap) -> Result<()> {
    let data = map.data().lock().expect("no other thread");
    let mut names: Vec<&String> = data.keys().collect();
    names.sort();
    for (seed, name) in names.into_iter().enumerate() {
        let var = &data[name];
        if let [out, input] = *var.dims() {
            let deviation = if name.contains("embed") { 1.0 } else { (2.0 / input as f64).sqrt() };
            var.set(&(noise(out * input, 1000 + seed)?.reshape((out, input))? * deviation)?)?;
        }
    }
    Ok(())
}

fn next_byte_loss(model: &Model, bytes: &[u8], starts: impl Iterator<Item = usize>) -> Result<Tensor> {
    let windows: Vec<u32> = starts
        .flat_map(|start| bytes[start..start + WINDOW + 1].iter().map(|byte| u32::from(*byte)))
        .collect();
    let windows = Tensor::from_vec(windows, (BATCH, WINDOW + 1), &Device::Cpu)?;
    let logits = model.forward(&windows.narrow(1, 0, WINDOW)?.contiguous()?, None)?;
    let next = windows.narrow(1, 1, WINDOW)?.flatten_all()?;
    let classes = logits.dim(D::Minus1)?;
    Ok(loss::cross_entropy(&logits.reshape(((), classes))?, &next)?)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Curves of the training loss, each with its name where it ends.
fn draw(runs: &[Run]) -> String {
    const COLOURS: [&str; 7] = ["#1f2933", "#2f7fbf", "#8cc1ea", "#c4572f", "#eda98c", "#3f8f57", "#9fd3ae"];
    let (left, top, width, height) = (52.0, 48.0, 560.0, 330.0);
    let curves: Vec<Vec<f64>> =
        runs.iter().map(|run| run.losses.chunks(SMOOTH).map(mean).collect()).collect();
    let steps = runs.iter().map(|run| run.losses.len()).max().unwrap_or(1) as f64;
    // Where training begins, everything is steep: the picture begins below it.
    let lowest = curves.iter().flatten().copied().fold(f64::MAX, f64::min);
    let (floor, ceiling) = ((lowest * 5.0).floor() / 5.0, 3.4);
    let x = |step: f64| left + width * step / steps;
    let y = |loss: f64| top + height * (ceiling - loss.min(ceiling)) / (ceiling - floor);
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"930\" height=\"424\" viewBox=\"0 0 930 424\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"26\" font-size=\"16\" font-weight=\"600\" fill=\"#1f2933\">Training loss, nats per byte: \
         feed-forward matrices trained compressed</text>\n",
    );
    let mut tick = floor;
    while tick <= ceiling + 1e-9 {
        let at = y(tick);
        let _ = writeln!(
            svg,
            "<path d=\"M{left} {at:.1}H{:.1}\" stroke=\"#e4e7eb\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#7b8794\">{tick:.1}</text>",
            left + width,
            left - 8.0,
            at + 4.0
        );
        tick += 0.2;
    }
    for n in 0..=5 {
        let step = steps * f64::from(n) / 5.0;
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#7b8794\">{step:.0}</text>",
            x(step),
            top + height + 20.0
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"#7b8794\">steps</text>",
        left + width / 2.0,
        top + height + 38.0
    );
    // Names in the order of the ends from the lowest curve up, no two on one line.
    let end = |n: usize| y(*curves[n].last().unwrap_or(&floor));
    let mut order: Vec<usize> = (0..runs.len()).collect();
    order.sort_by(|a, b| end(*b).total_cmp(&end(*a)));
    let mut names = vec![0.0; runs.len()];
    let mut below = f64::MAX;
    for n in order {
        names[n] = end(n).min(below - 17.0);
        below = names[n];
    }
    for (n, (run, curve)) in runs.iter().zip(&curves).enumerate() {
        let colour = COLOURS[n % COLOURS.len()];
        let points: Vec<String> = curve
            .iter()
            .enumerate()
            .filter(|(_, loss)| **loss < ceiling)
            .map(|(n, loss)| format!("{:.1},{:.1}", x((n as f64 + 0.5) * SMOOTH as f64), y(*loss)))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-linejoin=\"round\"/>\
             <text x=\"{}\" y=\"{:.1}\" fill=\"{colour}\" font-weight=\"600\">{} \
             <tspan fill=\"#7b8794\" font-weight=\"400\">{} parameters, held out {:.3}</tspan></text>",
            points.join(" "),
            left + width + 8.0,
            names[n] + 4.0,
            run.name,
            run.parameters,
            run.held_out
        );
    }
    svg.push_str("</svg>\n");
    svg
}
