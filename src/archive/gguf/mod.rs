//! GGUF files as a source: the ordinary Hugging Face directory that one stands for.
//!
//! Names and configurations are those that Hugging Face's implementations read; what GGUF's writers do to weights (rotated pairs
//! side by side, one added to norms, transposes) is undone. A file that cannot be held so is refused, by the field or tensor.

mod alignment;
mod architecture;
mod config;
mod imatrix;
mod metadata;
mod pre_tokenizer;
mod source;
mod split;
mod tensors;
mod tokenizer;

pub use imatrix::Imatrix;

use super::progress::{OnProgress, Progress};
use super::{Dtype, MODEL_FILE, SafetensorsWriter, Slot};
use crate::clock::Instant;
use crate::{Error, Result, file};
use serde_json::Value;
use source::Source;
pub use split::gguf_parts;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use tensors::Part;

/// How a GGUF file begins.
const MAGIC: &[u8] = b"GGUF";

/// What became of a GGUF file.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct UnpackReport {
    /// Tensors in the directory.
    pub tensors: usize,
    /// How many of them the file held quantised.
    pub quantized_tensors: usize,
    /// Bytes of the tensors in the file.
    pub bytes_before: u64,
    /// Bytes of the tensors in the directory.
    pub bytes_after: u64,
    /// Wall time.
    pub seconds: f64,
}

/// Whether a file begins as GGUF files do.
pub fn is_gguf(path: impl AsRef<Path>) -> bool {
    let mut start = Vec::new();
    let read = file::open(path.as_ref()).map(|file| file.take(MAGIC.len() as u64).read_to_end(&mut start));
    matches!(read, Ok(Ok(_))) && start == MAGIC
}

/// Writes what a GGUF file holds into `directory`, which is there and empty, as Hugging Face's files: `model.safetensors`,
/// `config.json`, and `tokenizer.json` with `tokenizer_config.json` and `generation_config.json` where the file has a tokenizer.
///
/// Quantised tensors are written in F32, exactly as Candle decodes them; others keep their type. Few rows are in memory at a
/// time. [`decode`](super::decode()) does this into an output that appears whole or not at all.
///
/// | read | |
/// |---|---|
/// | files | one, or with one of `NAME-00001-of-00003.gguf` and on all ([`gguf_parts`]) |
/// | architectures | llama (with experts: Mixtral), qwen2, qwen3, qwen3moe, phi3, gemma, gemma2, gemma3, smollm3, olmo2, granite, gpt2 |
/// | tensor types | those of Candle: F32, F16, BF16, `Q4_0` to `Q8_1`, `Q2_K` to `Q8_K` |
/// | tokenizers | `llama` (SentencePiece's BPE), `gpt2` (BPE of bytes) with the pre-tokenizers of those models |
///
/// # Errors
/// A file is damaged or missing, or of an architecture, tensor type or tokenizer that is not in the table; a field that its architecture
/// needs is missing or says what a configuration cannot; a tensor has another name than the architecture's; `watch` asks to stop.
pub fn unpack_gguf(
    input: impl AsRef<Path>,
    directory: impl AsRef<Path>,
    watch: &mut OnProgress<'_>,
) -> Result<UnpackReport> {
    let (start, directory) = (Instant::now(), directory.as_ref());
    let source = Source::open(input.as_ref())?;
    let parts = tensors::plan(&source)?;
    write_json(&directory.join("config.json"), &config::config(&source)?)?;
    for (name, json) in tokenizer::files(&source.metadata)? {
        write_json(&directory.join(name), &json)?;
    }
    let path = directory.join(MODEL_FILE);
    let model = File::create_new(&path).map_err(|e| Error::io(&path, e))?;
    write_model(&source, &parts, (model, &path), watch)?;
    Ok(UnpackReport {
        tensors: parts.len(),
        quantized_tensors: parts.iter().filter(|part| part.is_quantized()).count(),
        bytes_before: parts.iter().map(|part| part.stored_bytes() as u64).sum(),
        bytes_after: parts.iter().map(|part| part.bytes() as u64).sum(),
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn write_json(path: &Path, json: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(json).map_err(|e| Error::file(path, e))?;
    std::fs::write(path, text + "\n").map_err(|e| Error::io(path, e))
}

/// Lets the configuration in `directory` say that its weights have this type.
pub(super) fn set_dtype(directory: &Path, dtype: Dtype) -> Result<()> {
    let path = directory.join("config.json");
    let mut json: Value =
        serde_json::from_str(&file::read_text(&path)?).map_err(|e| Error::file(&path, e))?;
    json["torch_dtype"] = match dtype {
        Dtype::F16 => "float16".into(),
        Dtype::BF16 => "bfloat16".into(),
        _ => "float32".into(),
    };
    write_json(&path, &json)
}

fn write_model(
    source: &Source,
    parts: &[Part],
    (model, path): (File, &Path),
    watch: &mut OnProgress<'_>,
) -> Result<()> {
    let slots = parts.iter().map(|part| Slot::dense(&part.name, part.dtype, &part.shape));
    let format = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut writer = SafetensorsWriter::new(model, path, slots.collect(), format)?;
    let by_name: BTreeMap<&str, &Part> = parts.iter().map(|part| (part.name.as_str(), part)).collect();
    let weights = parts.iter().map(|part| part.elements() as u64).sum();
    let (mut tensors_done, mut weights_done) = (0, 0);
    let mut tell = |part: Option<&Part>| {
        let name = part.map_or("", |part| &part.name);
        let tensors = parts.len();
        let step = Progress { name, tensors_done, tensors, weights_done, weights, weights_kept: 0 };
        if watch(step).is_break() {
            let stopped = std::io::Error::new(
                std::io::ErrorKind::Interrupted,
                "stopped on request; nothing is written",
            );
            return Err(Error::io(path, stopped));
        }
        tensors_done += 1;
        weights_done += part.map_or(0, |part| part.elements() as u64);
        Ok(())
    };
    while let Some(slot) = writer.next_slot() {
        let part = by_name[slot.name.as_str()];
        tell(Some(part))?;
        writer.write_pieces(&part.shape, part.bytes(), |write| part.read(source, write))?;
    }
    tell(None)?;
    writer.finish().map(drop)
}
