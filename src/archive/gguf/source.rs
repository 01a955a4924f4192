//! A GGUF file that is open, its metadata and tensors listed.

use super::alignment;
use super::architecture::Architecture;
use super::metadata::Metadata;
use crate::{Error, Result, file};
use candle_core::quantized::gguf_file::Content;
use std::fs::File;
use std::io::{BufReader, Seek};
use std::path::Path;

/// A GGUF file of a known architecture.
pub(super) struct Source<'p> {
    pub path: &'p Path,
    pub file: File,
    pub content: Content,
    pub metadata: Metadata,
    pub architecture: &'static Architecture,
}

impl<'p> Source<'p> {
    pub(super) fn open(path: &'p Path) -> Result<Self> {
        let file = file::open(path)?;
        if alignment::is_zero(&file) {
            return Err(Error::file(path, "general.alignment is 0; the file is damaged"));
        }
        (&file).rewind().map_err(|e| Error::io(path, e))?;
        let read = Content::read(&mut BufReader::new(&file));
        let mut content = read.map_err(|e| Error::file(path, unreadable(&e.to_string())))?;
        let metadata = Metadata::new(path, std::mem::take(&mut content.metadata))?;
        let architecture = Architecture::of(&metadata, &content)?;
        Ok(Self { path, file, content, metadata, architecture })
    }

    /// An error about one tensor.
    pub(super) fn about(&self, tensor: &str, reason: impl std::fmt::Display) -> Error {
        Error::file(self.path, format!("tensor {tensor:?}: {reason}"))
    }

    /// Whether the file holds a tensor.
    pub(super) fn has(&self, tensor: &str) -> bool {
        self.content.tensor_infos.contains_key(tensor)
    }
}

/// Candle's error, and where it is a tensor's type, what to do.
fn unreadable(error: &str) -> String {
    let first = error.lines().next().unwrap_or_default();
    let Some(number) = first.strip_prefix("unknown dtype for tensor ") else {
        return format!("is not a GGUF file that can be read: {first}");
    };
    format!(
        "holds a tensor of GGML's type {number}, which Candle does not read; it reads F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 \
         and Q2_K to Q6_K: take a file of one of these"
    )
}
