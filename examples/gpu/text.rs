//! A text read by a model of LLaMA 7B's shape, and one written, token by token.
//!
//! Weights are random: of `DISTINCT` layers, which come again and again, but are together more than the card's second cache holds. A token's
//! time is the median of those after the first ones, from one token in the host's hands to the next, beside what its bytes would take at a
//! copy's speed. Reading is that of a prompt at once, the median of three, of which the logits of the last token come to the host.

use crate::{Filter, Report, speed};
use anyhow::Result;
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use candle_rbe::models::{CausalLm, Config, Model, generate, greedy};
use candle_rbe::{Linear, RbeLinear, RbeTensor};
use serde::Serialize;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Write;
use std::sync::Mutex;
use std::time::Instant;

const DISTINCT: usize = 4;
const PROMPT_TOKENS: u32 = 64;
const NEW_TOKENS: usize = 120;
const READ_TOKENS: u32 = 512;
/// Until memory is allocated, kernels are loaded and graphs captured.
const FIRST_TOKENS: usize = 20;

const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}"#;

/// One model's text.
#[derive(Serialize)]
pub(crate) struct Written {
    weight: String,
    weight_bytes: usize,
    us: f64,
    /// Of what its bytes allow.
    share: f64,
    /// Of `READ_TOKENS` together.
    read_us: f64,
}

pub(crate) fn run(device: &Device, filter: &Filter, report: &mut Report) -> Result<()> {
    let copy_gb_s = speed::Clock::new(device)?.copy_gb_s();
    type Make = fn(usize, usize) -> Result<RbeTensor>;
    let forms: [(&str, Option<Make>); 3] = [
        ("F16", None),
        ("planes 4", Some(|out, input| speed::planes(out, input, 4))),
        ("trellis 4", Some(|out, input| speed::trellis(out, input, 4))),
    ];
    for (name, make) in forms.into_iter().filter(|(name, _)| filter.form(name)) {
        report.attempt(&format!("a text by {name}"), |report| {
            let noise = Noise { tensors: Mutex::default(), is_empty: make.is_some() };
            let vb = VarBuilder::from_backend(Box::new(noise), DType::F16, device.clone());
            let mut model = Model::new(Config::from_json(CONFIG)?, vb)?;
            let weight_bytes = match make {
                Some(make) => compress(&mut model, make, device)?,
                None => model.linears_mut().iter().map(|(_, linear)| 2 * linear.weight().elem_count()).sum(),
            };
            let us = token_us(&model)?;
            let share = weight_bytes as f64 / (copy_gb_s * 1e3) / us;
            let read_us = read_us(&model)?;
            eprintln!(
                "7B, {name}: {us:.0} us a token, {:.0} % of what its bytes allow; {READ_TOKENS} read in {read_us:.0} us",
                100.0 * share
            );
            report.texts.push(Written { weight: name.to_owned(), weight_bytes, us, share, read_us });
            Ok(())
        })?;
    }
    Ok(())
}

/// Random tensors by their names, where layers that many further share them; of no element where others take their place.
struct Noise {
    tensors: Mutex<HashMap<String, Tensor>>,
    is_empty: bool,
}

/// A name without the number of the layer among those that are distinct.
fn distinct(name: &str) -> String {
    let part = |part: &str| part.parse::<usize>().map_or(part.to_owned(), |n| (n % DISTINCT).to_string());
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

impl SimpleBackend for Noise {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let mut tensors = self.tensors.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(tensor) = tensors.get(&distinct(name)) {
            return Ok(tensor.clone());
        }
        let is_projection = name.contains("_proj") || name.contains("lm_head");
        let tensor = match self.is_empty && is_projection {
            true => Tensor::zeros(1, dtype, device)?.broadcast_as(shape)?,
            false => Tensor::randn(0f32, 0.02, shape, device)?.to_dtype(dtype)?,
        };
        tensors.insert(distinct(name), tensor.clone());
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("no shape is known of {name}")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        !name.ends_with("bias") && !name.contains(".rbe")
    }
}

/// Puts compressed layers in the place of all; their bytes.
fn compress(
    model: &mut Model,
    make: fn(usize, usize) -> Result<RbeTensor>,
    device: &Device,
) -> Result<usize> {
    let mut by_shape = HashMap::new();
    let mut by_name: HashMap<String, RbeTensor> = HashMap::new();
    let mut bytes = 0;
    for (name, linear) in model.linears_mut() {
        let (out, input) = linear.weight().dims2()?;
        let tensor = match by_name.get(&distinct(&name)) {
            Some(tensor) => tensor.clone(),
            None => match by_shape.entry((out, input)) {
                Entry::Occupied(tensor) => tensor.into_mut(),
                Entry::Vacant(place) => place.insert(make(out, input)?),
            }
            .to_device(device)?,
        };
        by_name.insert(distinct(&name), tensor.clone());
        bytes += tensor.plain_size_in_bytes();
        *linear = Linear::from(RbeLinear::new(tensor, None));
    }
    Ok(bytes)
}

/// The median time of a token.
fn token_us(model: &Model) -> Result<f64> {
    let prompt: Vec<u32> = (1..=PROMPT_TOKENS).collect();
    let mut last = Instant::now();
    let mut times = Vec::with_capacity(NEW_TOKENS);
    for token in generate(model, &prompt, NEW_TOKENS, greedy) {
        token?;
        times.push(last.elapsed().as_secs_f64() * 1e6);
        last = Instant::now();
    }
    let mut times = times.split_off(FIRST_TOKENS.min(times.len()));
    times.sort_by(f64::total_cmp);
    Ok(times.get(times.len() / 2).copied().unwrap_or(f64::NAN))
}

/// The median time in which a prompt is read.
fn read_us(model: &Model) -> Result<f64> {
    let prompt = Tensor::arange(1, READ_TOKENS + 1, model.device())?.unsqueeze(0)?;
    let mut times = Vec::new();
    for _ in 0..4 {
        let start = Instant::now();
        let logits = model.forward_last(&prompt, Some(&mut model.new_cache()))?;
        logits.to_vec2::<f32>()?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    // The first one allocates.
    let mut times = times.split_off(1);
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

pub(crate) fn markdown(texts: &[Written]) -> String {
    if texts.is_empty() {
        return String::new();
    }
    let mut table = format!(
        "\n## A text by a model of LLaMA 7B's shape\n\n| weight | bytes | us a token | tokens a second | of what its bytes allow | \
         {READ_TOKENS} tokens read, us |\n|---|---|---|---|---|---|"
    );
    for Written { weight, weight_bytes, us, share, read_us } in texts {
        let _ = write!(
            table,
            "\n| {weight} | {weight_bytes} | {us:.0} | {:.0} | {:.0} % | {read_us:.0} |",
            1e6 / us,
            100.0 * share
        );
    }
    table + "\n"
}
