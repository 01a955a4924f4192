//! GPT-2 and LLaMA on the card against the CPU.

use crate::{Check, Report};
use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_rbe::archive::{self, CompressOptions};
use candle_rbe::models::{CausalLm, Model, generate, greedy};
use candle_rbe::{Encoder, EncoderConfig, LayerConfig, Precision, Rate, set_default_layer_config};
use std::ops::ControlFlow;
use std::path::Path;

const NEW_TOKENS: usize = 20;

pub(crate) fn run(models: &Path, device: &Device, report: &mut Report) -> Result<()> {
    // The card does not round activations to bytes; nor may what it is compared with.
    set_default_layer_config(LayerConfig { precision: Precision::Exact, ..LayerConfig::default() });
    for name in ["llama-books", "gpt2-books"] {
        for bits in [4.02, 8.05] {
            let what = format!("{name} at {bits} bits");
            report.attempt(&what, |report| model(models, name, bits, device, &mut report.checks))?;
        }
    }
    set_default_layer_config(LayerConfig::default());
    Ok(())
}

fn model(models: &Path, name: &str, bits: f64, device: &Device, checks: &mut Vec<Check>) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join(name);
    let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(bits)))?;
    let options = CompressOptions::default();
    archive::compress(models.join(name), &path, &encoder, &options, &mut |_| ControlFlow::Continue(()))?;
    let load = |device: &Device, dtype| -> Result<Model> {
        Ok(Model::load(&path, archive::open(&path, dtype, device)?)?)
    };
    let on_host = load(&Device::Cpu, DType::F32)?;
    let prompts: [&[u32]; 2] = [&[846, 318, 259, 1275, 1307, 12, 77, 1001, 54, 9, 600], &[846, 318]];
    for prompt in prompts {
        let exact = on_host.forward(&Tensor::new(prompt, &Device::Cpu)?.unsqueeze(0)?, None)?;
        for (dtype, bound) in [(DType::F32, 1e-4), (DType::F16, 1e-2), (DType::BF16, 5e-2)] {
            let logits = load(device, dtype)?.forward(&Tensor::new(prompt, device)?.unsqueeze(0)?, None)?;
            let what = format!("{name} at {bits} bits, {} tokens, {dtype:?}", prompt.len());
            checks.push(Check::new(what, &logits, &exact, Check::size(&exact)?, bound)?);
        }
    }
    for (dtype, bound) in [(DType::F32, 1e-4), (DType::F16, 1e-2), (DType::BF16, 5e-2)] {
        let what = format!("{name} at {bits} bits, token by token, {dtype:?}");
        checks.push(token_by_token(what, &load(device, dtype)?, &on_host, bound)?);
    }
    // A text, through the cache.
    let text = |model: &Model| -> Result<Vec<u32>> {
        Ok(generate(model, prompts[0], NEW_TOKENS, greedy).collect::<candle_core::Result<_>>()?)
    };
    let (ours, exact) = (text(&load(device, DType::F32)?)?, text(&on_host)?);
    let different = ours.iter().zip(&exact).filter(|(a, b)| a != b).count();
    let what = format!("{name} at {bits} bits, {NEW_TOKENS} tokens written: those that differ");
    checks.push(Check { what, error: different as f64, bound: 0.0, failure: None });
    Ok(())
}

/// Logits of one token after another, some of them where the cache has grown: all but the first of each growth are a graph's on the card.
fn token_by_token(what: String, model: &Model, exact: &Model, bound: f64) -> Result<Check> {
    let token = |position: usize| (position * position + 7 * position + 11) as u32 % 4000;
    let (before, tokens) = (58, 12);
    let logits_of = |model: &Model| -> Result<(Tensor, String)> {
        let mut cache = model.new_cache();
        let ids = |positions: std::ops::Range<usize>| -> Result<Tensor> {
            let ids: Vec<_> = positions.map(token).collect();
            Ok(Tensor::new(ids, model.device())?.unsqueeze(0)?)
        };
        model.forward_last(&ids(0..before)?, Some(&mut cache))?;
        let logits =
            (before..before + tokens).map(|at| Ok(model.forward_last(&ids(at..at + 1)?, Some(&mut cache))?));
        let logits = logits.collect::<Result<Vec<_>>>()?;
        Ok((Tensor::cat(&logits, 0)?, format!("{cache:?}")))
    };
    let ((logits, cache), (expected, _)) = (logits_of(model)?, logits_of(exact)?);
    anyhow::ensure!(cache.contains("as a graph"), "{what}: no graph was captured: {cache}");
    Check::new(what, &logits, &expected, Check::size(&expected)?, bound)
}
