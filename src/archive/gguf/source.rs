//! A GGUF file that is open, its metadata and tensors listed; or all files of a model that is split.

use super::alignment;
use super::architecture::Architecture;
use super::metadata::Metadata;
use super::split::gguf_parts;
use crate::{Error, Result, file};
use candle_core::Device;
use candle_core::quantized::QTensor;
use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Seek};
use std::path::{Path, PathBuf};

/// A model of a known architecture.
pub(super) struct Source {
    /// The file, the first of several.
    pub path: PathBuf,
    parts: Vec<Part>,
    /// Each tensor, and in which of the files it lies.
    pub tensors: BTreeMap<String, (TensorInfo, usize)>,
    pub metadata: Metadata,
    pub architecture: &'static Architecture,
}

struct Part {
    path: PathBuf,
    file: File,
    data_offset: u64,
}

impl Source {
    /// Opens a file, or with one of several all.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let names = gguf_parts(&name);
        let paths: Vec<PathBuf> = match names.len() {
            // Its own name may be no text.
            1 => vec![path.to_owned()],
            _ => names.iter().map(|name| path.with_file_name(name)).collect(),
        };
        let (mut parts, mut tensors, mut fields) = (Vec::new(), BTreeMap::new(), None);
        for (number, path) in paths.iter().enumerate() {
            let (file, mut content) = read(path)?;
            expect_part(path, &content, number, paths.len())?;
            for (name, info) in content.tensor_infos.drain() {
                if let Some((_, other)) = tensors.insert(name.clone(), (info, number)) {
                    let other = paths[other].display();
                    return Err(Error::file(path, format!("tensor {name:?} is also in {other}")));
                }
            }
            // The first file's describe the model; the others' say which they are.
            fields.get_or_insert(content.metadata);
            parts.push(Part { path: path.clone(), file, data_offset: content.tensor_data_offset });
        }
        let path = paths.into_iter().next().unwrap_or_default();
        let metadata = Metadata::new(&path, fields.unwrap_or_default())?;
        let expected = metadata.size("split.tensors.count")?;
        if expected.is_some_and(|expected| expected != tensors.len()) {
            return Err(
                metadata.error("split.tensors.count", format!("is not the {} there are", tensors.len()))
            );
        }
        let architecture = Architecture::of(&metadata, |tensor| tensors.contains_key(tensor))?;
        Ok(Self { path, parts, tensors, metadata, architecture })
    }

    /// An error about one tensor.
    pub(super) fn about(&self, tensor: &str, reason: impl std::fmt::Display) -> Error {
        let part = self.tensors.get(tensor).map_or(0, |(_, part)| *part);
        Error::file(&self.parts[part].path, format!("tensor {tensor:?}: {reason}"))
    }

    /// Whether there is such a tensor.
    pub(super) fn has(&self, tensor: &str) -> bool {
        self.tensors.contains_key(tensor)
    }

    /// What is known of a tensor.
    pub(super) fn info(&self, tensor: &str) -> Option<&TensorInfo> {
        self.tensors.get(tensor).map(|(info, _)| info)
    }

    /// Reads what `info` describes in the file that has the tensor: it, or a piece of it.
    pub(super) fn read(&self, tensor: &str, info: &TensorInfo) -> candle_core::Result<QTensor> {
        let part = self.tensors.get(tensor).map_or(0, |(_, part)| *part);
        let Part { file, data_offset, .. } = &self.parts[part];
        info.read(&mut &*file, *data_offset, &Device::Cpu)
    }
}

/// A file and what stands before its tensors.
fn read(path: &Path) -> Result<(File, Content)> {
    let file = file::open(path)?;
    if alignment::is_zero(&file) {
        return Err(Error::file(path, "general.alignment is 0; the file is damaged"));
    }
    (&file).rewind().map_err(|e| Error::io(path, e))?;
    let content = Content::read(&mut BufReader::new(&file));
    let content = content.map_err(|e| Error::file(path, unreadable(&e.to_string())))?;
    Ok((file, content))
}

/// Refuses a file that says of itself to be another of the parts than its name does.
fn expect_part(path: &Path, content: &Content, number: usize, count: usize) -> Result<()> {
    let said = |key: &str| content.metadata.get(key).map(number_of);
    let (said_number, said_count) = (said("split.no"), said("split.count"));
    match (said_number.flatten().unwrap_or(0), said_count.flatten().unwrap_or(1)) {
        // What is not split may say 0.
        (0, 0 | 1) if count == 1 => Ok(()),
        said if said == (number as u64, count as u64) => Ok(()),
        (said_number, said_count) => {
            let reason = format!(
                "is part {} of {said_count}, and by its name {} of {count}: files of one model are called \
                 NAME-00001-of-{said_count:05}.gguf and on, and lie side by side",
                said_number.saturating_add(1),
                number + 1
            );
            Err(Error::file(path, reason))
        }
    }
}

fn number_of(value: &Value) -> Option<u64> {
    match value {
        Value::I32(value) => u64::try_from(*value).ok(),
        value => value.to_u64().ok(),
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
