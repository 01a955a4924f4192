//! A language model directory: weights, configuration, tokenizer.

use crate::reader::TextReader;
use anyhow::{Context, anyhow, bail, ensure};
use candle_core::{DType, Device, Tensor};
use candle_rbe::archive::{self, Archive};
use candle_rbe::models::{CausalLm, Config, Model, Text, Windows, generate, greedy};
use candle_transformers::generation::LogitsProcessor;
use std::path::{Path, PathBuf};
use std::time::Instant;

pub(crate) struct Language {
    pub(crate) path: PathBuf,
    pub(crate) model: Model,
}

impl Language {
    /// Opens a dense or a compressed model; which of them its layers are, the file says.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let load = || Model::load(directory(path), archive::open(path, DType::F32, &Device::Cpu)?);
        let model = load().with_context(|| format!("cannot load {}", path.display()))?;
        Ok(Self { path: path.to_owned(), model })
    }

    /// Bytes of all weights in the file.
    pub(crate) fn bytes(&self) -> anyhow::Result<u64> {
        Ok(Archive::open(&self.path)?.entries().map(|entry| entry.own_bytes() as u64).sum())
    }
}

/// Where the configuration and the tokenizer of a model lie.
fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !path.is_dir() => parent,
        _ => path,
    }
}

/// The tokenizer beside a model's weights, and what the model expects before every text.
pub(crate) fn tokenizer(path: &Path) -> anyhow::Result<TextReader> {
    TextReader::open(directory(path))
}

/// Why none of this crate's models will run what is in a directory: said before it is compressed, which may all the same be
/// what is wanted.
pub(crate) fn obstacle(archive: &Archive) -> Option<String> {
    let config = archive.path().join("config.json");
    if !config.is_file() {
        return None;
    }
    let tables: &[&str] = match Config::read(config) {
        Err(error) => return Some(error.to_string()),
        Ok(Config::Llama(_)) => &["model.embed_tokens.weight"],
        Ok(Config::Gpt2(_)) => &["transformer.wte.weight", "wte.weight"],
    };
    match tables.iter().any(|name| archive.get(name).is_some()) {
        true => None,
        false => archive.entry(tables[0]).err().map(|error| error.to_string()),
    }
}

/// Up to `count` windows of 256 tokens (or the model's context) of a calibration text.
pub(crate) fn samples(
    model: &Model,
    tokenizer: &TextReader,
    text: &Path,
    count: usize,
) -> anyhow::Result<Vec<Tensor>> {
    let whole =
        std::fs::read_to_string(text).with_context(|| format!("cannot read the text {}", text.display()))?;
    let tokens = tokenizer.tokens(&whole)?;
    let length = model.context_length().min(256);
    // As many as lie apart, and one in any case: a text too short for it is refused with the numbers.
    let room = length.saturating_sub(tokenizer.start().len()).max(1);
    let count = count.min((tokens.len().saturating_sub(1) / room).saturating_sub(1).max(1));
    let windows = Windows { count, length };
    let read = Text { start: tokenizer.start(), tokens: &tokens };
    windows
        .cut_for(model, read)
        .and_then(|_| windows.samples(read, model.device()))
        .with_context(|| format!("cannot calibrate on {}", text.display()))
}

/// How the next token is chosen.
#[derive(Clone, Copy)]
pub(crate) enum Sampling {
    Greedy,
    Temperature { temperature: f64, seed: u64 },
}

/// Continues `prompt` by up to `count` tokens, handing over the prompt and each piece of text as soon as it is whole; returns
/// the number of tokens and the tokens per second after the first, which pays for the prompt.
pub(crate) fn write(
    model: &dyn CausalLm,
    tokenizer: &TextReader,
    prompt: &str,
    count: usize,
    sampling: Sampling,
    mut piece: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<(usize, f64)> {
    let mut ids = tokenizer.whole(prompt)?;
    if ids.is_empty() {
        // A model continues something: with no prompt, the token that stands between texts.
        let start = model.eos_token_ids().first();
        ids.push(
            *start.context("the prompt is empty and the model names no end-of-text token; give a prompt")?,
        );
    }
    let (length, context, vocabulary) = (ids.len(), model.context_length(), model.vocab_size());
    ensure!(length <= context, "the prompt has {length} tokens and the model's context {context} positions");
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
        bail!(
            "token {id} of the prompt is not in the vocabulary of {vocabulary}; the tokenizer is not this model's"
        );
    }
    piece(prompt)?;
    let mut processor = match sampling {
        Sampling::Greedy => None,
        Sampling::Temperature { temperature, seed } => {
            Some(LogitsProcessor::new(seed, Some(temperature), None))
        }
    };
    let choose = |logits: &candle_core::Tensor| match &mut processor {
        None => greedy(logits),
        Some(processor) => processor.sample(logits),
    };
    let mut stream = tokenizer.tokenizer().decode_stream(true);
    // The stream is told the prompt too, so that the spaces between words come out right.
    for &id in &ids {
        stream.step(id).map_err(|e| anyhow!("cannot decode token {id}: {e}"))?;
    }
    let (mut written, mut first) = (0, None);
    for id in generate(model, &ids, count, choose) {
        let id = id.context("cannot continue the text")?;
        first.get_or_insert_with(Instant::now);
        written += 1;
        if let Some(text) = stream.step(id).map_err(|e| anyhow!("cannot decode token {id}: {e}"))? {
            piece(&text)?;
        }
    }
    let seconds = first.map_or(0.0, |first| first.elapsed().as_secs_f64());
    let rate = if written > 1 { (written - 1) as f64 / seconds } else { 0.0 };
    Ok((written, rate))
}
