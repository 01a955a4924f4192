//! Candle's `VarBuilder` over a compressed model.

use super::{Archive, Entry, SUFFIX};
use crate::nn::decoded::{DecodeReason, note};
use crate::nn::handle::{HANDLE_SUFFIX, Handle};
use crate::{Error, Result};
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use std::collections::BTreeMap;
use std::path::Path;

/// Opens a model, compressed or not, for any layers.
///
/// A compressed tensor `NAME` is there under two names, and `contains_tensor` is true for both: `NAME.rbe` is the
/// payload (`U8`), which [`crate::linear`] and its kin run on (they find it where it lies in the file, by `NAME.rbe.handle`,
/// a tensor without elements); `NAME` is the tensor itself, decoded when it is asked for. So one builder serves this crate's layers, Candle's, and a model of both. Decoded tensors take as much memory
/// as in the original; nothing is decoded that nobody asks for, and [`decoded_weights`](crate::nn::decoded_weights) lists
/// what was: a layer that was forgotten in a swap gives right answers from a dense weight, and shows there.
///
/// A compressed model wants this builder. Candle's own (`VarBuilder::from_mmaped_safetensors`) finds `NAME.rbe` alone,
/// which is enough for this crate's layers, but tells other code that there is no `NAME`. Most of that code then fails
/// with an error. Code that chooses by `contains_tensor` goes another way in silence: `candle_transformers`' Qwen2, not
/// finding `lm_head.weight`, takes the embeddings for its head, and its logits mean nothing.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use candle_core::{DType, Device};
/// use candle_rbe::archive;
///
/// let vb = archive::open("qwen2-rbe", DType::F32, &Device::Cpu)?;
/// assert!(vb.contains_tensor("lm_head.weight.rbe") && vb.contains_tensor("lm_head.weight"));
/// let head = vb.get((151_936, 896), "lm_head.weight")?; // decoded here
/// # Ok(()) }
/// ```
///
/// # Errors
/// See [`Archive::open`].
pub fn open(path: impl AsRef<Path>, dtype: DType, device: &Device) -> Result<VarBuilder<'static>> {
    builder(Archive::open(path)?, dtype, device)
}

/// As [`open`], of a safetensors file that is in memory ([`Archive::from_bytes`]): where there are no files, as on
/// `wasm32-unknown-unknown`, [`Config::from_json`](crate::models::Config::from_json) and this load a model.
///
/// # Errors
/// See [`Archive::from_bytes`].
pub fn open_bytes(
    name: impl AsRef<Path>,
    bytes: Vec<u8>,
    dtype: DType,
    device: &Device,
) -> Result<VarBuilder<'static>> {
    builder(Archive::from_bytes(name, bytes)?, dtype, device)
}

fn builder(archive: Archive, dtype: DType, device: &Device) -> Result<VarBuilder<'static>> {
    Ok(VarBuilder::from_backend(Box::new(Stored::new(archive)?), dtype, device.clone()))
}

/// The builder that [`open`] makes, under the name of what it does for a model that knows nothing of compression:
/// every `get` of a plain name decodes, and the model takes as much memory as the original.
///
/// # Errors
/// See [`Archive::open`].
pub fn open_decoded(path: impl AsRef<Path>, dtype: DType, device: &Device) -> Result<VarBuilder<'static>> {
    open(path, dtype, device)
}

/// Tensors under their own names, and payloads under theirs.
struct Stored {
    archive: Archive,
    /// Those of the payloads, by the payloads' names. One that several names stand for has one, by which this crate's layers know to
    /// read it once.
    handles: BTreeMap<String, Handle>,
}

/// What a name stands for.
enum Asked<'a> {
    Tensor(&'a Entry),
    Payload(&'a Entry),
    Handle(&'a Handle),
}

impl Stored {
    fn new(archive: Archive) -> Result<Self> {
        let own = archive.entries().filter(|entry| entry.compressed && entry.tied_to.is_none());
        let handles = own.map(|entry| Ok((entry.stored_name(), Handle::new(archive.payload(entry))?)));
        let handles = handles.collect::<Result<_>>()?;
        Ok(Self { archive, handles })
    }

    fn find(&self, name: &str) -> Option<Asked<'_>> {
        if let Some(payload) = name.strip_suffix(HANDLE_SUFFIX)
            && let Some(Asked::Payload(entry)) = self.find(payload)
        {
            return self.handles.get(&entry.stored_name()).map(Asked::Handle);
        }
        // No tensor's own name ends like a payload's: the archive refuses such files.
        match name.strip_suffix(SUFFIX) {
            Some(name) => self.archive.get(name).filter(|entry| entry.compressed).map(Asked::Payload),
            None => self.archive.get(name).map(Asked::Tensor),
        }
    }

    fn ask(&self, name: &str) -> Result<Asked<'_>> {
        self.find(name).ok_or_else(|| self.archive.missing(name))
    }
}

impl SimpleBackend for Stored {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let got = match self.ask(name)? {
            Asked::Tensor(entry) => Shape::from(entry.shape.as_slice()),
            Asked::Payload(entry) => Shape::from(entry.bytes),
            Asked::Handle(_) => Shape::from(0),
        };
        // Before anything is decoded.
        if got != shape {
            let msg = format!("shape mismatch for {name}");
            return Err(candle_core::Error::UnexpectedShape { msg, expected: shape, got }.bt());
        }
        self.get_unchecked(name, dtype, device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        match self.ask(name)? {
            Asked::Tensor(entry) => {
                let tensor = self.archive.tensor(entry, device)?.to_dtype(dtype)?;
                if entry.compressed {
                    note(&entry.name, &tensor, DecodeReason::AskedByName);
                }
                Ok(tensor)
            }
            Asked::Payload(_) if dtype != DType::U8 => {
                let what = format!("the payload {name:?} as {dtype:?}; it is U8");
                Err(Error::unsupported(what).into())
            }
            Asked::Payload(entry) => {
                Tensor::from_raw_buffer(self.archive.bytes(entry), DType::U8, &[entry.bytes], device)
            }
            Asked::Handle(handle) => Ok(handle.tensor().clone()),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.find(name).is_some()
    }
}
