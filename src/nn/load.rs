//! Layers from a `VarBuilder`, dense or compressed per tensor: Candle's constructors.

use super::counters::register;
use super::handle::{HANDLE_SUFFIX, payload_of};
use super::mode::{LayerConfig, default_layer_config};
use super::{Conv1d, Conv2d, Embedding, Layer, Linear, RBE_SUFFIX, RbeLinear, Weight};
use crate::tensor::Unread;
use crate::{Error, RbeTensor};
use candle_core::{DType, Device, Result, Shape, Storage, Tensor};
use candle_nn::{Conv1dConfig, Conv2dConfig, Init, VarBuilder};

/// A linear layer from `weight` (or `weight.rbe`) of shape `(out_dim, in_dim)` and `bias` of shape `(out_dim)`, as
/// `candle_nn::linear`.
///
/// # Errors
/// When a tensor is missing or has another shape, when a payload is damaged, and when a compressed weight is asked
/// for on a device that this build has no kernels for.
pub fn linear(in_dim: usize, out_dim: usize, vb: VarBuilder) -> Result<Linear> {
    match compressed(&vb, "weight", (out_dim, in_dim))? {
        Some((tensor, weight)) => layer(tensor, weight, Some(vb.get(out_dim, "bias")?), &vb),
        None => Ok(candle_nn::linear(in_dim, out_dim, vb)?.into()),
    }
}

/// A linear layer without bias from `weight` (or `weight.rbe`) of shape `(out_dim, in_dim)`, as
/// `candle_nn::linear_no_bias`.
///
/// # Errors
/// As [`linear`].
pub fn linear_no_bias(in_dim: usize, out_dim: usize, vb: VarBuilder) -> Result<Linear> {
    match compressed(&vb, "weight", (out_dim, in_dim))? {
        Some((tensor, weight)) => layer(tensor, weight, None, &vb),
        None => Ok(candle_nn::linear_no_bias(in_dim, out_dim, vb)?.into()),
    }
}

/// A linear layer with or without bias: [`linear`] or [`linear_no_bias`], as `candle_nn::linear_b`.
///
/// # Errors
/// As [`linear`].
pub fn linear_b(in_dim: usize, out_dim: usize, bias: bool, vb: VarBuilder) -> Result<Linear> {
    if bias { linear(in_dim, out_dim, vb) } else { linear_no_bias(in_dim, out_dim, vb) }
}

/// A linear layer whose `weight` (or `weight.rbe`) has the shape `(in_dim, out_dim)`, as GPT-2's `Conv1D` stores it, and
/// whose `bias` has the shape `(out_dim)`. A `VarMap` that does not have them makes them as GPT-2 begins: normal with a
/// deviation of 0.02, and zeros (Radford et al. 2019; Hugging Face's `initializer_range`).
///
/// # Errors
/// As [`linear`].
#[doc(alias = "Conv1D")]
pub fn linear_conv1d(in_dim: usize, out_dim: usize, vb: VarBuilder) -> Result<Linear> {
    let bias = Some(vb.get_with_hints(out_dim, "bias", Init::Const(0.0))?);
    match compressed(&vb, "weight", (in_dim, out_dim))? {
        Some((tensor, _)) => {
            let transposed = tensor.t()?;
            let weight = Weight::named(transposed.clone(), vb.dtype(), path(&vb, "weight"));
            layer(transposed, weight, bias, &vb)
        }
        None => {
            let weight =
                vb.get_with_hints((in_dim, out_dim), "weight", Init::Randn { mean: 0.0, stdev: 0.02 })?;
            // A copy would not follow a variable that is trained.
            let transposed = weight.t()?;
            let weight = if weight.is_variable() { transposed } else { transposed.contiguous()? };
            Ok(Linear::new(weight, bias))
        }
    }
}

/// An embedding from `weight` (or `weight.rbe`) of shape `(in_size, out_size)`, as `candle_nn::embedding`: `in_size`
/// rows, one for each id, of `out_size` elements. Rows of a compressed table come in the builder's dtype.
///
/// # Errors
/// As [`linear`].
pub fn embedding(in_size: usize, out_size: usize, vb: VarBuilder) -> Result<Embedding> {
    match compressed(&vb, "weight", (in_size, out_size))? {
        Some((_, table)) => Ok(Embedding::new(table, out_size)),
        None => Ok(candle_nn::embedding(in_size, out_size, vb)?.into()),
    }
}

/// A convolution from `weight` of shape `(out_channels, in_channels / groups, kernel_size)`, or `weight.rbe`, the matrix with the last
/// two sides in one, and `bias` of shape `(out_channels)`, as `candle_nn::conv1d`.
///
/// # Errors
/// As [`linear`].
pub fn conv1d(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    config: Conv1dConfig,
    vb: VarBuilder,
) -> Result<Conv1d> {
    match compressed_conv1d([in_channels, out_channels, kernel_size], config, true, &vb)? {
        Some(conv) => Ok(conv),
        None => Ok(candle_nn::conv1d(in_channels, out_channels, kernel_size, config, vb)?.into()),
    }
}

/// The same without bias, as `candle_nn::conv1d_no_bias`.
///
/// # Errors
/// As [`linear`].
pub fn conv1d_no_bias(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    config: Conv1dConfig,
    vb: VarBuilder,
) -> Result<Conv1d> {
    match compressed_conv1d([in_channels, out_channels, kernel_size], config, false, &vb)? {
        Some(conv) => Ok(conv),
        None => Ok(candle_nn::conv1d_no_bias(in_channels, out_channels, kernel_size, config, vb)?.into()),
    }
}

/// A convolution from `weight` of shape `(out_channels, in_channels / groups, kernel_size, kernel_size)`, or `weight.rbe`, the matrix
/// with the last three sides in one, and `bias` of shape `(out_channels)`, as `candle_nn::conv2d`.
///
/// # Errors
/// As [`linear`].
pub fn conv2d(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    config: Conv2dConfig,
    vb: VarBuilder,
) -> Result<Conv2d> {
    match compressed_conv2d([in_channels, out_channels, kernel_size], config, true, &vb)? {
        Some(conv) => Ok(conv),
        None => Ok(candle_nn::conv2d(in_channels, out_channels, kernel_size, config, vb)?.into()),
    }
}

/// The same without bias, as `candle_nn::conv2d_no_bias`.
///
/// # Errors
/// As [`linear`].
pub fn conv2d_no_bias(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    config: Conv2dConfig,
    vb: VarBuilder,
) -> Result<Conv2d> {
    match compressed_conv2d([in_channels, out_channels, kernel_size], config, false, &vb)? {
        Some(conv) => Ok(conv),
        None => Ok(candle_nn::conv2d_no_bias(in_channels, out_channels, kernel_size, config, vb)?.into()),
    }
}

fn compressed_conv1d(
    [inputs, outputs, kernel]: [usize; 3],
    config: Conv1dConfig,
    bias: bool,
    vb: &VarBuilder,
) -> Result<Option<Conv1d>> {
    let columns = inputs / config.groups * kernel;
    let Some((tensor, matrix)) = compressed(vb, "weight", (outputs, columns))? else { return Ok(None) };
    let weight = matrix.reshaped((outputs, inputs / config.groups, kernel))?;
    let bias = bias.then(|| vb.get(outputs, "bias")).transpose()?;
    Ok(Some(match Conv1d::has_product(&weight, &config) {
        true => Conv1d::of(weight, layer(tensor, matrix, bias, vb)?, config),
        false => Conv1d::new(weight, bias, config),
    }))
}

fn compressed_conv2d(
    [inputs, outputs, kernel]: [usize; 3],
    config: Conv2dConfig,
    bias: bool,
    vb: &VarBuilder,
) -> Result<Option<Conv2d>> {
    let columns = inputs / config.groups * kernel * kernel;
    let Some((tensor, matrix)) = compressed(vb, "weight", (outputs, columns))? else { return Ok(None) };
    let weight = matrix.reshaped((outputs, inputs / config.groups, kernel, kernel))?;
    let bias = bias.then(|| vb.get(outputs, "bias")).transpose()?;
    Ok(Some(match Conv2d::has_product(&weight, &config) {
        true => Conv2d::of(weight, layer(tensor, matrix, bias, vb)?, config),
        false => Conv2d::new(weight, bias, config),
    }))
}

/// A layer as the process's default configuration has it, listed under the weight's path.
fn layer(tensor: RbeTensor, weight: Weight, bias: Option<Tensor>, vb: &VarBuilder) -> Result<Linear> {
    named_layer(tensor, weight, bias, vb.prefix())
}

/// The same, listed under this name.
pub(super) fn named_layer(
    tensor: RbeTensor,
    weight: Weight,
    bias: Option<Tensor>,
    name: String,
) -> Result<Linear> {
    let LayerConfig { precision, mode } = default_layer_config();
    let layer = RbeLinear::new(tensor, bias).with_precision(precision).with_mode(mode);
    let layer = layer.map_err(|error| error.in_tensor(name.clone()))?;
    register(name, layer.counters());
    Ok(Linear::of(Layer::Rbe(layer), weight))
}

/// The name in the file of what is `name` to `vb`.
pub(super) fn path(vb: &VarBuilder, name: &str) -> String {
    [&vb.prefix(), name].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(".")
}

/// The compressed tensor `name` under `vb`, itself and as a weight, or `None` where the file holds a dense one (or nothing, so that a
/// `VarMap` can initialise it). That `vb` has `name` itself says nothing: it may be ready to decode it.
///
/// # Errors
/// When the payload is damaged or has another shape than `expected`.
fn compressed(
    vb: &VarBuilder,
    name: &str,
    expected: impl Into<Shape>,
) -> Result<Option<(RbeTensor, Weight)>> {
    let payload_name = format!("{name}{RBE_SUFFIX}");
    if !vb.contains_tensor(&payload_name) {
        return Ok(None);
    }
    let payload = payload_tensor(vb, &payload_name)?;
    let read = match (Weight::read_before(&payload, vb.device()), payload_of(&payload)) {
        (Some(tensor), _) => Ok(tensor),
        (None, Some(payload)) => RbeTensor::read((*payload).clone(), vb.device()),
        (None, None) => on_bytes(&payload, |bytes| RbeTensor::from_bytes_on(bytes, vb.device()))?,
    };
    let tensor = read.map_err(|error| error.in_tensor(path(vb, name)))?;
    let expected = expected.into();
    if *tensor.shape() != expected {
        let reason = format!("expected {expected:?}, the file holds {:?}", tensor.shape());
        return Err(Error::shape(reason).in_tensor(path(vb, name)).into());
    }
    let weight = Weight::named(tensor.clone(), vb.dtype(), path(vb, name));
    weight.was_read_from(&payload);
    Ok(Some((tensor, weight)))
}

/// The tensor by which `vb` has a payload: its handle, or its bytes on the host; only what products need goes to the device.
fn payload_tensor(vb: &VarBuilder, payload_name: &str) -> Result<Tensor> {
    let handle_name = format!("{payload_name}{HANDLE_SUFFIX}");
    let asked = if vb.contains_tensor(&handle_name) { &handle_name } else { payload_name };
    vb.clone().set_device(Device::Cpu).get_unchecked_dtype(asked, DType::U8)
}

/// A payload of `vb` that nobody has looked into, where it lies; of a builder without handles a copy.
pub(super) fn unread(vb: &VarBuilder, payload_name: &str) -> Result<Unread> {
    let payload = payload_tensor(vb, payload_name)?;
    match payload_of(&payload) {
        Some(payload) => Ok((*payload).clone()),
        None => on_bytes(&payload, |bytes| Unread { bytes: bytes.to_vec().into(), origin: None }),
    }
}

/// What `read` makes of a payload that is a tensor on the host.
fn on_bytes<T>(payload: &Tensor, read: impl FnOnce(&[u8]) -> T) -> Result<T> {
    let payload = payload.flatten_all()?.contiguous()?;
    let (storage, layout) = payload.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        candle_core::bail!("a payload on {:?}; it is read on the host", payload.device().location())
    };
    let (start, len) = (layout.start_offset(), layout.shape().elem_count());
    Ok(read(&storage.as_slice::<u8>()?[start..start + len]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Encoder, EncoderConfig, Rate};
    use std::collections::HashMap;
    use std::sync::Arc;

    #[test]
    fn a_payload_is_read_once_while_a_weight_has_it() -> anyhow::Result<()> {
        let table = Tensor::randn(0f32, 0.1, (96, 64), &Device::Cpu)?;
        let payload =
            Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(4.5)))?.encode(&table)?.to_bytes()?;
        let payload = Tensor::from_vec(payload.clone(), payload.len(), &Device::Cpu)?;
        let other = payload.copy()?;
        let tensors = [("embed", &payload), ("head", &payload), ("other", &other)];
        let tensors = tensors.map(|(name, payload)| (format!("{name}.weight.rbe"), payload.clone()));
        let vb = VarBuilder::from_tensors(HashMap::from(tensors), DType::F32, &Device::Cpu);
        let embedding = embedding(96, 64, vb.pp("embed"))?;
        let head = linear_no_bias(64, 96, vb.pp("head"))?;
        let other = linear_no_bias(64, 96, vb.pp("other"))?;
        let at = |weight: &Weight| weight.rbe().and_then(|tensor| tensor.on_cpu().ok()).map(Arc::as_ptr);
        assert_eq!(at(embedding.embeddings()), at(head.weight()));
        assert_ne!(at(embedding.embeddings()), at(other.weight()));
        // What nobody has any more is read again.
        drop((embedding, head));
        assert!(Weight::read_before(&payload, &Device::Cpu).is_none());
        assert!(linear_no_bias(64, 96, vb.pp("head")).is_ok());
        Ok(())
    }
}
