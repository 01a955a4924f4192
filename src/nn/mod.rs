//! Layers that are dense or compressed **per tensor**, by what the file holds.
//!
//! A weight `NAME` is compressed when the builder has a `U8` tensor `NAME.rbe`. The constructors have Candle's names and
//! signatures and take Candle's own `VarBuilder`. For a compressed file it is best made by
//! [`archive::open`](fn@crate::archive::open): it answers for `NAME` too, which code outside of these layers asks for.
//!
//! | to | layer |
//! |---|---|
//! | run compressed weights | [`RbeLinear`], [`RbeEmbedding`], and [`Linear`], [`Embedding`], which are either |
//! | choose how the weight is used, and see what was done | [`DecodeMode`], [`LayerConfig`], [`layer_counts`] |
//! | share the transform of an input among layers | [`forward_all`] |
//! | look for what makes a forward fail before it does | [`RbeLinear::forward_checked`] |
//! | train a compressed weight's numbers | [`TrainableLinear`] |
//! | fine-tune on top of a frozen layer | [`SpectralAdapter`] |
//! | gather what calibration needs to know of a model | [`Calibrate`], [`Calibration`] |
//! | build a transformer | [`RbeAttention`] with a [`KvCache`], [`RbeMlp`], [`RbeLayerNorm`], [`RbeRmsNorm`], [`RbeDropout`] |

mod activation;
mod adapter;
mod attention;
mod cache;
mod checked;
mod counters;
mod dropout;
mod embedding;
mod inputs;
mod linear;
mod mlp;
mod mode;
mod norm;
mod recorder;
mod rope;
mod shared_input;
mod trainable;

pub use activation::Activation;
pub use adapter::{AdapterConfig, Positions, SpectralAdapter};
pub use attention::{AttentionPass, Projections, RbeAttention};
pub use cache::KvCache;
pub use checked::{ForwardChecks, ForwardCounts};
pub use counters::{Counts, LayerCounts, layer_counts, reset_layer_counts};
pub use dropout::RbeDropout;
pub use embedding::{Embedding, RbeEmbedding, embedding};
pub use linear::{Linear, RbeLinear, linear, linear_b, linear_conv1d, linear_no_bias};
pub use mlp::RbeMlp;
pub use mode::{DecodeMode, LayerConfig, default_layer_config, set_default_layer_config};
pub use norm::{RbeLayerNorm, RbeRmsNorm, layer_norm, rms_norm};
pub use recorder::{Calibrate, Calibration, Gathered, Recorded, Recorder};
pub(crate) use rope::RopeParameters;
pub use rope::{Rope, RopeScaling};
pub use shared_input::forward_all;
pub use trainable::TrainableLinear;

use crate::{Error, RbeTensor};
use candle_core::{DType, Device, Result, Shape};
use candle_nn::VarBuilder;

/// What a compressed tensor's name ends with in a file.
pub const RBE_SUFFIX: &str = ".rbe";

/// The compressed tensor `name` under `vb`, or `None` where the file holds a dense one (or nothing, so that a
/// `VarMap` can initialise it). That `vb` has `name` itself says nothing: it may be ready to decode it.
///
/// # Errors
/// When the payload is damaged or has another shape than `expected`.
fn compressed(vb: &VarBuilder, name: &str, expected: impl Into<Shape>) -> Result<Option<RbeTensor>> {
    let payload_name = format!("{name}{RBE_SUFFIX}");
    if !vb.contains_tensor(&payload_name) {
        return Ok(None);
    }
    let path =
        || [&vb.prefix(), name].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(".");
    // Payloads are read on the host; only what products need goes to the device.
    let on_host = vb.clone().set_device(Device::Cpu);
    let payload = on_host.get_unchecked_dtype(&payload_name, DType::U8)?.flatten_all()?.to_vec1::<u8>()?;
    let tensor = RbeTensor::from_bytes(&payload)
        .and_then(|tensor| tensor.to_device(vb.device()))
        .map_err(|error| error.in_tensor(path()))?;
    let expected = expected.into();
    if *tensor.shape() != expected {
        let reason = format!("expected {expected:?}, the file holds {:?}", tensor.shape());
        return Err(Error::shape(reason).in_tensor(path()).into());
    }
    Ok(Some(tensor))
}
