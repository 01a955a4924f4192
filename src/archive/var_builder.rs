//! Candle's `VarBuilder` over a compressed model.

use super::{Archive, Entry, SUFFIX};
use crate::{Error, Result};
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use std::path::Path;

/// Opens a model, compressed or not, for this crate's layers: [`crate::linear`] and its kin find `NAME.rbe` and run
/// on the compressed weights.
///
/// It serves what the files hold, by the names in the files, as
/// `VarBuilder::from_mmaped_safetensors` does, with errors that name file and tensor.
///
/// # Errors
/// See [`Archive::open`].
pub fn open(path: impl AsRef<Path>, dtype: DType, device: &Device) -> Result<VarBuilder<'static>> {
    let stored = Stored(Archive::open(path)?);
    Ok(VarBuilder::from_backend(Box::new(stored), dtype, device.clone()))
}

/// Opens a model, compressed or not, for layers that know nothing of compression: `get` decodes.
///
/// So any unmodified Candle model loads it, and then takes as much memory as the original.
///
/// # Errors
/// See [`Archive::open`].
pub fn open_decoded(path: impl AsRef<Path>, dtype: DType, device: &Device) -> Result<VarBuilder<'static>> {
    let decoded = Decoded(Archive::open(path)?);
    Ok(VarBuilder::from_backend(Box::new(decoded), dtype, device.clone()))
}

/// Tensors as the files hold them.
struct Stored(Archive);

impl Stored {
    fn find(&self, name: &str) -> Option<&Entry> {
        let (name, compressed) = match name.strip_suffix(SUFFIX) {
            Some(name) => (name, true),
            None => (name, false),
        };
        self.0.get(name).filter(|entry| entry.compressed == compressed)
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
        expect(self.get_unchecked(name, dtype, device)?, shape, name)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let Some(entry) = self.find(name) else {
            let other = self.0.entry(name)?;
            let hint = "is compressed; load it with this crate's layers, or open the model with open_decoded";
            return Err(self.0.about(other, hint).into());
        };
        if entry.compressed {
            if dtype != DType::U8 {
                let what = format!("the payload {name:?} as {dtype:?}; it is U8");
                return Err(Error::Unsupported { what }.into());
            }
            return Tensor::from_raw_buffer(self.0.bytes(entry), DType::U8, &[entry.bytes], device);
        }
        self.0.tensor(entry, device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.find(name).is_some()
    }
}

/// Tensors under their own names, decoded when they are asked for.
struct Decoded(Archive);

impl SimpleBackend for Decoded {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        expect(self.get_unchecked(name, dtype, device)?, shape, name)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.0.tensor(self.0.entry(name)?, device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.get(name).is_some()
    }
}

fn expect(tensor: Tensor, expected: Shape, name: &str) -> candle_core::Result<Tensor> {
    if tensor.shape() == &expected {
        return Ok(tensor);
    }
    let (msg, got) = (format!("shape mismatch for {name}"), tensor.shape().clone());
    Err(candle_core::Error::UnexpectedShape { msg, expected, got }.bt())
}
