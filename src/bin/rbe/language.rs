//! A language model directory: weights, configuration, tokenizer.

use crate::reader::TextReader;
use anyhow::Context;
use candle_core::{DType, Device, Tensor};
use candle_rbe::archive::{self, Archive};
use candle_rbe::models::{Config, Model, Text, Windows};
use std::path::{Path, PathBuf};

pub(crate) struct Language {
    pub(crate) path: PathBuf,
    pub(crate) model: Model,
}

impl Language {
    /// Opens a dense or a compressed model; which of them its layers are, the file says.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        Self::open_on(path, DType::F32, &Device::Cpu)
    }

    /// The same on a device, its weights of this type where they are dense, and its states.
    pub(crate) fn open_on(path: &Path, dtype: DType, device: &Device) -> anyhow::Result<Self> {
        let load = || Model::load(directory(path), archive::open(path, dtype, device)?);
        let model = load().with_context(|| format!("cannot load {}", path.display()))?;
        Ok(Self { path: path.to_owned(), model })
    }

    /// Bytes of all weights in the file.
    pub(crate) fn bytes(&self) -> anyhow::Result<u64> {
        Ok(Archive::open(&self.path)?.entries().map(|entry| entry.own_bytes() as u64).sum())
    }
}

/// Where the configuration and the tokenizer of a model lie.
pub(crate) fn directory(path: &Path) -> &Path {
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
    let tables = match Config::read(config) {
        Err(error) => return Some(error.to_string()),
        Ok(config) => config.token_tables(),
    };
    match tables.iter().any(|name| archive.get(name).is_some()) {
        true => None,
        false => archive.entry(tables.first()?).err().map(|error| error.to_string()),
    }
}

/// Up to `count` windows of 256 tokens (or the model's context) of a calibration text, as ids `(1, length)`.
pub(crate) fn samples(
    config: &Config,
    tokenizer: &TextReader,
    text: &Path,
    count: usize,
) -> anyhow::Result<Vec<Tensor>> {
    let whole =
        std::fs::read_to_string(text).with_context(|| format!("cannot read the text {}", text.display()))?;
    let tokens = tokenizer.tokens(&whole)?;
    let length = config.max_position_embeddings.min(256);
    // As many as lie apart, and one in any case: a text too short for it is refused with the numbers.
    let room = length.saturating_sub(tokenizer.start().len()).max(1);
    let count = count.min((tokens.len().saturating_sub(1) / room).saturating_sub(1).max(1));
    let windows = Windows { count, length };
    windows
        .samples(Text { start: tokenizer.start(), tokens: &tokens }, &Device::Cpu)
        .with_context(|| format!("cannot calibrate on {}", text.display()))
}
