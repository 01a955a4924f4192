//! Layers that are dense or compressed **per tensor**, by what the file holds.
//!
//! A weight `NAME` is compressed when the builder has a `U8` tensor `NAME.rbe`. The constructors have Candle's names and
//! signatures and take Candle's own `VarBuilder`. For a compressed file it is best made by
//! [`archive::open`](fn@crate::archive::open): it answers for `NAME` too, which code outside of these layers asks for.
//!
//! | to | layer |
//! |---|---|
//! | run dense or compressed weights, by what the file holds | [`Linear`], [`Embedding`], [`Conv1d`], [`Conv2d`]; their [`Weight`] |
//! | see what was decoded all the same, and why | [`decoded_weights`] |
//! | run a compressed weight | [`RbeLinear`] |
//! | choose how the weight is used, and see what was done | [`DecodeMode`], [`LayerConfig`], [`layer_counts`] |
//! | share the transform of an input among layers | [`forward_all`] |
//! | look for what makes a forward fail before it does | [`RbeLinear::forward_checked`] |
//! | train a compressed weight's numbers | [`TrainableLinear`] |
//! | fine-tune on top of a frozen layer | [`SpectralAdapter`] |
//! | gather what calibration needs to know of a model | [`Calibrate`], [`Calibration`] |
//! | see what goes through a layer, or change it | [`ForwardHook`] |
//! | build a transformer | [`RbeAttention`] with a [`KvCache`], [`RbeMlp`], [`RbeLayerNorm`], [`RbeRmsNorm`], [`RbeDropout`] |

mod activation;
mod adapter;
mod attention;
mod cache;
mod causal;
mod checked;
mod conv;
mod counters;
pub(crate) mod decoded;
mod dropout;
mod embedding;
pub(crate) mod handle;
mod inputs;
mod layer;
mod linear;
mod load;
mod mlp;
mod mode;
mod norm;
mod recorder;
mod rope;
mod rope_parameters;
mod shared_input;
mod stack;
mod step;
pub(crate) mod token;
mod trainable;
mod weight;

pub use activation::Activation;
pub use adapter::{AdapterConfig, Positions, SpectralAdapter};
pub(crate) use attention::AttentionStep;
pub use attention::{AttentionPass, Projections, QueryKeyNorm, RbeAttention, Scoring};
pub use cache::KvCache;
pub use checked::{ForwardChecks, ForwardCounts};
pub use conv::{Conv1d, Conv2d};
pub use counters::{Counts, LayerCounts, layer_counts, reset_layer_counts};
pub use decoded::{DecodeReason, DecodedWeight, decoded_weights, reset_decoded_weights};
pub use dropout::RbeDropout;
pub use embedding::Embedding;
pub use layer::{ForwardHook, Layer, Linear};
pub use linear::RbeLinear;
pub use load::{
    conv1d, conv1d_no_bias, conv2d, conv2d_no_bias, embedding, linear, linear_b, linear_conv1d,
    linear_no_bias,
};
pub(crate) use mlp::MlpStep;
pub use mlp::RbeMlp;
pub use mode::{DecodeMode, LayerConfig, default_layer_config, set_default_layer_config};
pub use norm::{RbeLayerNorm, RbeRmsNorm, layer_norm, rms_norm, rms_norm_around_one};
pub use recorder::{Calibrate, Calibration, Gathered, Recorder};
pub use rope::{Rope, RopeScaling};
pub(crate) use rope_parameters::{RopeContext, RopeParameters};
pub use shared_input::forward_all;
pub(crate) use stack::Stack;
pub(crate) use step::Find;
pub use trainable::TrainableLinear;
pub use weight::Weight;

/// What a compressed tensor's name ends with in a file.
pub const RBE_SUFFIX: &str = ".rbe";
