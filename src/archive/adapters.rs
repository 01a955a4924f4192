//! Spectral adapters in a file of their own.

use super::stage::Stage;
use super::{
    Archive, Dtype, FORMAT_KEY, FORMAT_VERSION, Original, SafetensorsWriter, Slot, TENSORS_KEY, element_count,
};
use crate::nn::SpectralAdapter;
use crate::{Error, RbeTensor, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// The `__metadata__` key that tells an adapter from a model.
pub(super) const KIND_KEY: &str = "rbe.kind";
pub(super) const KIND: &str = "adapter";

/// Writes adapters, each under the name of the weight that it changes: an archive whose tensors are the changes alone, about
/// four bytes a coefficient or less. Returns the file's bytes of payloads.
///
/// # Errors
/// A value is not finite; a name is there twice; the file exists and `overwrite` is not set, or cannot be written.
pub fn save_adapters<'a>(
    path: impl AsRef<Path>,
    adapters: impl IntoIterator<Item = (String, &'a SpectralAdapter)>,
    overwrite: bool,
) -> Result<usize> {
    let path = path.as_ref();
    let stage = Stage::file(path, overwrite, &[])?;
    let mut tensors = BTreeMap::new();
    for (name, adapter) in adapters {
        let tensor = adapter.to_tensor().map_err(|e| Error::from(e).in_tensor(&name))?;
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(Error::config(format!("two adapters are named {name:?}")));
        }
    }
    let original = |tensor: &RbeTensor| Original { dtype: Dtype::F32, shape: tensor.shape().dims().to_vec() };
    let originals: BTreeMap<&String, Original> =
        tensors.iter().map(|(name, tensor)| (name, original(tensor))).collect();
    let mut metadata = BTreeMap::from([
        (FORMAT_KEY.to_owned(), FORMAT_VERSION.to_owned()),
        (KIND_KEY.to_owned(), KIND.to_owned()),
    ]);
    metadata.insert(TENSORS_KEY.into(), serde_json::to_string(&originals).map_err(|e| Error::file(path, e))?);

    let plan = tensors.keys().map(|name| Slot::payload(name)).collect();
    let mut writer = SafetensorsWriter::new(stage.model()?, path, plan, metadata)?;
    let mut bytes = 0;
    // The file's order is that of the names.
    for tensor in tensors.values() {
        let payload = tensor.to_bytes()?;
        writer.write(&[payload.len()], &payload)?;
        bytes += payload.len();
    }
    writer.finish()?;
    stage.commit()?;
    Ok(bytes)
}

/// Reads what [`save_adapters`] wrote: by the name of the weight, what
/// [`SpectralAdapter::from_tensor`] puts on top of its layer.
///
/// # Errors
/// The file is not a valid archive, is not one of adapters, or a payload is damaged.
pub fn load_adapters(path: impl AsRef<Path>) -> Result<BTreeMap<String, RbeTensor>> {
    let archive = Archive::open(path)?;
    if archive.metadata().get(KIND_KEY).map(String::as_str) != Some(KIND) {
        let reason = format!("is not a file of adapters: its metadata has no {KIND_KEY} {KIND:?}");
        return Err(Error::file(archive.path(), reason));
    }
    if let Some(entry) = archive.entries().find(|e| !e.compressed || element_count(&e.shape).is_none()) {
        return Err(archive.about(entry, "is not an adapter"));
    }
    archive.entries().map(|entry| Ok((entry.name.clone(), archive.rbe(entry)?))).collect()
}
