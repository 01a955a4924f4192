//! What `config.json` beside a model's weights says of the tensors.

use super::options::Selection;
use super::{Archive, Entry};
pub(super) use crate::models::is_gpt2_conv1d as is_conv1d;
use crate::models::ties_by_default;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// `config.json` beside the weights, where there is one.
pub(super) fn config_file(archive: &Archive) -> Option<PathBuf> {
    archive.files().next().map(|file| file.with_file_name("config.json")).filter(|path| path.is_file())
}

/// What it says.
pub(super) fn config(archive: &Archive) -> Result<Option<Value>> {
    let Some(path) = config_file(archive) else { return Ok(None) };
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    serde_json::from_str(&text).map(Some).map_err(|e| Error::file(&path, e))
}

pub(super) fn model_type(config: Option<&Value>) -> Option<&str> {
    config?.get("model_type")?.as_str()
}

/// Whether the head is the table of embeddings.
pub(super) fn ties_head(config: Option<&Value>) -> bool {
    let said = config.and_then(|config| config.get("tie_word_embeddings")).and_then(Value::as_bool);
    // Some families' files leave it out, and mean it.
    said.unwrap_or(model_type(config).is_some_and(ties_by_default))
}

/// The heads that need not be stored, each with the tensor that stands for it: where the configuration ties the head to
/// the embeddings, and the file holds the same bytes for both. A head that is treated otherwise than its twin stays.
pub(super) fn tied<'a>(
    archive: &'a Archive,
    selection: &Selection,
    config: Option<&Value>,
) -> BTreeMap<&'a str, &'a str> {
    if !ties_head(config) {
        return BTreeMap::new();
    }
    let is_head = |entry: &&Entry| entry.name == "lm_head.weight" || entry.name.ends_with(".lm_head.weight");
    let twin = |head: &'a Entry| {
        let same = |other: &&Entry| {
            !is_head(other)
                && (other.dtype, &other.shape) == (head.dtype, &head.shape)
                && selection.takes(other) == selection.takes(head)
                && archive.bytes(other) == archive.bytes(head)
        };
        archive.entries().find(same).map(|other| (head.name.as_str(), other.name.as_str()))
    };
    archive.entries().filter(is_head).filter_map(twin).collect()
}
