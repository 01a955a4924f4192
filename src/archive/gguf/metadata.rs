//! What a GGUF file says of itself.

use crate::{Error, Result};
use candle_core::quantized::gguf_file::Value;
use std::collections::HashMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// The key-value pairs of a file. A key that begins with a dot is the architecture's own: `.block_count` is
/// `llama.block_count`. Every error names the key.
pub(super) struct Metadata {
    path: PathBuf,
    fields: HashMap<String, Value>,
    architecture: String,
}

impl Metadata {
    pub(super) fn new(path: &Path, fields: HashMap<String, Value>) -> Result<Self> {
        let mut metadata = Self { path: path.to_owned(), fields, architecture: String::new() };
        metadata.architecture =
            metadata.need(metadata.text("general.architecture")?, "general.architecture")?.to_owned();
        Ok(metadata)
    }

    /// `general.architecture`.
    pub(super) fn architecture(&self) -> &str {
        &self.architecture
    }

    fn key(&self, key: &str) -> String {
        if key.starts_with('.') { format!("{}{key}", self.architecture) } else { key.to_owned() }
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.fields.get(&self.key(key))
    }

    /// An error about one field, whose reason goes on from its name.
    pub(super) fn error(&self, key: &str, reason: impl Display) -> Error {
        Error::file(&self.path, format!("{} {reason}", self.key(key)))
    }

    /// What the file must say.
    pub(super) fn need<T>(&self, said: Option<T>, key: &str) -> Result<T> {
        said.ok_or_else(|| self.error(key, "is missing, and the model cannot be described without it"))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        what: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(self.error(key, format!("is no {what}"))),
        }
    }

    /// A number that counts or measures something. Where a file has one for each layer they must be equal.
    pub(super) fn size(&self, key: &str) -> Result<Option<usize>> {
        let Some(Value::Array(all)) = self.get(key) else {
            return self.typed(key, "whole number", size);
        };
        let sizes: Option<Vec<usize>> = all.iter().map(size).collect();
        match sizes.as_deref() {
            Some([first, others @ ..]) if others.iter().all(|other| other == first) => Ok(Some(*first)),
            Some([_, ..]) => {
                Err(self
                    .error(key, "differs from layer to layer, which no configuration of these models says"))
            }
            _ => Err(self.error(key, "is no whole number")),
        }
    }

    /// A size that must be there.
    pub(super) fn need_size(&self, key: &str) -> Result<usize> {
        self.need(self.size(key)?, key)
    }

    /// A token.
    pub(super) fn token(&self, key: &str) -> Result<Option<u32>> {
        Ok(self.size(key)?.and_then(|id| u32::try_from(id).ok()))
    }

    /// A real number, with as few digits as tell it in its own precision.
    pub(super) fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "number", |value| match value {
            // 1e-5 and not 9.99999974738e-6.
            Value::F32(value) => value.to_string().parse().ok(),
            Value::F64(value) => Some(*value),
            value => size(value).map(|value| value as f64),
        })
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "truth value", |value| value.to_bool().ok())
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "text", |value| value.to_string().ok().map(String::as_str))
    }

    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.list(key, "list of texts", |value| value.to_string().ok().map(String::as_str))
    }

    pub(super) fn sizes(&self, key: &str) -> Result<Option<Vec<usize>>> {
        self.list(key, "list of whole numbers", size)
    }

    pub(super) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.list(key, "list of numbers", |value| value.to_f32().ok())
    }

    fn list<'a, T>(
        &'a self,
        key: &str,
        what: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        self.typed(key, what, |value| value.to_vec().ok()?.iter().map(read).collect())
    }
}

fn size(value: &Value) -> Option<usize> {
    let value = match value {
        // True is no number.
        Value::Bool(_) => None,
        Value::I8(value) => u64::try_from(*value).ok(),
        Value::I16(value) => u64::try_from(*value).ok(),
        Value::I32(value) => u64::try_from(*value).ok(),
        Value::I64(value) => u64::try_from(*value).ok(),
        value => value.to_u64().ok(),
    };
    usize::try_from(value?).ok()
}
