//! The linear layer of a model, `y = x W' + b`: dense or compressed, by what the file holds, or trained on top of that.
//!
//! `x` is `(.., in)`, `W` `(out, in)`, `b` `(out)`, `y` `(.., out)`. To let a Candle model use compressed
//! weights, change one line: `use candle_nn::{linear, Linear}` becomes `use candle_rbe::{linear, Linear}`.
//!
//! ```
//! use candle_core::{DType, Device, Result, Tensor};
//! use candle_nn::{Module, VarBuilder};
//! use candle_rbe::{Linear, linear}; // was: use candle_nn::{Linear, linear};
//!
//! struct Mlp { up: Linear, down: Linear }
//!
//! impl Mlp {
//!     fn new(vb: VarBuilder) -> Result<Self> {
//!         Ok(Self { up: linear(64, 256, vb.pp("up"))?, down: linear(256, 64, vb.pp("down"))? })
//!     }
//!     fn forward(&self, x: &Tensor) -> Result<Tensor> {
//!         self.down.forward(&self.up.forward(x)?.gelu()?)
//!     }
//! }
//!
//! # fn main() -> Result<()> {
//! use candle_rbe::{Encoder, EncoderConfig, Rate};
//! use std::collections::HashMap;
//!
//! let device = Device::Cpu;
//! let up = Tensor::randn(0f32, 0.1, (256, 64), &device)?;
//! let mut tensors = HashMap::from([
//!     ("up.weight".to_string(), up.clone()),
//!     ("up.bias".to_string(), Tensor::zeros(256, DType::F32, &device)?),
//!     ("down.weight".to_string(), Tensor::randn(0f32, 0.1, (64, 256), &device)?),
//!     ("down.bias".to_string(), Tensor::zeros(64, DType::F32, &device)?),
//! ]);
//! let x = Tensor::randn(0f32, 1., (3, 64), &device)?;
//! let dense = Mlp::new(VarBuilder::from_tensors(tensors.clone(), DType::F32, &device))?.forward(&x)?;
//!
//! // Where the file holds `up.weight.rbe`, the same model runs on the compressed form.
//! let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(8.2)))?;
//! let payload = encoder.encode(&up)?.to_bytes()?;
//! tensors.remove("up.weight");
//! tensors.insert("up.weight.rbe".to_string(), Tensor::from_vec(payload.clone(), payload.len(), &device)?);
//! let model = Mlp::new(VarBuilder::from_tensors(tensors, DType::F32, &device))?;
//! let difference = (model.forward(&x)? - &dense)?.sqr()?.sum_all()?.to_scalar::<f32>()?;
//! let size = dense.sqr()?.sum_all()?.to_scalar::<f32>()?;
//! assert!((difference / size).sqrt() < 0.02);
//! # Ok(()) }
//! ```

use super::mode::default_layer_config;
use super::step::{self, Find};
use super::{DecodeReason, RbeLinear, SpectralAdapter, TrainableLinear, Weight};
use crate::ops;
use crate::step::Projection;
use candle_core::{DType, Result, Tensor};
use candle_nn::Module;
use std::sync::Arc;

/// A linear layer with all that `candle_nn::Linear` has, over a weight that is dense or compressed.
#[derive(Clone, Debug)]
pub struct Linear {
    layer: Layer,
    /// Shares its memory with the layer.
    weight: Weight,
    hooks: Vec<Arc<dyn ForwardHook>>,
}

/// What a [`Linear`] multiplies with.
#[derive(Clone, Debug)]
pub enum Layer {
    /// Candle's own layer, multiplied on the threads of the compressed ones.
    Dense(candle_nn::Linear),
    /// The compressed layer.
    Rbe(RbeLinear),
    /// A compressed layer whose numbers are variables.
    Trainable(TrainableLinear),
    /// A frozen layer and a sparse term that is trained.
    Adapted(SpectralAdapter),
}

/// Sees every forward of a layer, as PyTorch's forward hooks do: to observe it, or to change its output.
pub trait ForwardHook: std::fmt::Debug + Send + Sync {
    /// From the layer's input `x` `(.., in)` and its output `y` `(.., out)` to what the layer returns.
    ///
    /// # Errors
    /// End the forward.
    fn after(&self, x: &Tensor, y: Tensor) -> Result<Tensor>;
}

impl Linear {
    /// A layer with a weight `(out, in)`, a `Tensor`, an [`RbeTensor`](crate::RbeTensor) or another layer's [`Weight`], and
    /// a bias `(out)`, as `candle_nn::Linear::new`. A compressed weight stays compressed and is shared with its other users;
    /// activations are taken at the [process's](super::set_default_layer_config) precision.
    pub fn new(weight: impl Into<Weight>, bias: Option<Tensor>) -> Self {
        let weight = weight.into();
        let layer = match weight.rbe() {
            Some(compressed) => {
                let precision = default_layer_config().precision;
                Layer::Rbe(RbeLinear::new(compressed.clone(), bias).with_precision(precision))
            }
            None => Layer::Dense(candle_nn::Linear::new(weight.clone().into(), bias)),
        };
        Self::of(layer, weight)
    }

    /// The same under the name that `candle_transformers`' `with_tracing` gives it.
    pub fn from_weights(weight: impl Into<Weight>, bias: Option<Tensor>) -> Self {
        Self::new(weight, bias)
    }

    /// A layer and its weight, which are of one tensor.
    pub(super) fn of(layer: Layer, weight: Weight) -> Self {
        Self { layer, weight, hooks: Vec::new() }
    }

    /// The weight, `(out, in)`; of a layer that is being trained, the one before.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// The bias, `(out)`; of a layer that is being trained, the one before.
    pub fn bias(&self) -> Option<&Tensor> {
        match &self.layer {
            Layer::Dense(linear) => linear.bias(),
            Layer::Rbe(linear) => linear.bias(),
            Layer::Trainable(linear) => linear.start_bias(),
            Layer::Adapted(adapter) => adapter.base().bias(),
        }
    }

    /// What it multiplies with.
    pub fn layer(&self) -> &Layer {
        &self.layer
    }

    /// What it multiplies with, without the hooks.
    pub fn into_layer(self) -> Layer {
        self.layer
    }

    /// Lets `hook` see every forward from now on, after those that were added before.
    pub fn add_forward_hook(&mut self, hook: Arc<dyn ForwardHook>) {
        self.hooks.push(hook);
    }

    /// The layer as a token's step takes it; `None` where it is not compressed, is watched or trained, or is on another device.
    pub(super) fn projection<M>(&self, find: &Find<M>) -> Result<Option<Projection<M>>> {
        let Layer::Rbe(layer) = &self.layer else { return Ok(None) };
        if self.has_hooks() || !layer.is_direct() || self.weight.dtype() == DType::F64 {
            return Ok(None);
        }
        let Some(matrix) = find(layer) else { return Ok(None) };
        let bias = layer.bias().map(step::numbers).transpose()?;
        let is_trained = matches!(bias, Some(None));
        let transposed = layer.weight().is_transposed();
        Ok((!is_trained).then_some(Projection { matrix, transposed, bias: bias.flatten() }))
    }

    /// Counts a token that went through it elsewhere.
    #[cfg(feature = "cuda")]
    pub(super) fn count_token(&self) {
        if let Layer::Rbe(layer) = &self.layer {
            layer.count_tokens(1, std::time::Duration::ZERO);
        }
    }

    /// Whether the output is the layer's own.
    pub(super) fn has_hooks(&self) -> bool {
        !self.hooks.is_empty()
    }
}

impl Module for Linear {
    /// `(.., in)` to `(.., out)`, of the input's type. A compressed layer takes F32, F16 and BF16; one from a builder of F64, which takes
    /// F64, is decoded at its first forward ([`DecodeReason::DoublePrecision`]).
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match &self.layer {
            Layer::Dense(linear) => ops::dense_forward(linear, x),
            Layer::Rbe(linear) if in_f64(x, &self.weight) => {
                let weight = self.weight.tensor_for(DecodeReason::DoublePrecision)?;
                candle_nn::Linear::new(weight.clone(), linear.bias().cloned()).forward(x)
            }
            Layer::Rbe(linear) => linear.forward(x),
            Layer::Trainable(linear) => linear.forward(x),
            Layer::Adapted(adapter) => adapter.forward(x),
        };
        self.hooks.iter().try_fold(y?, |y, hook| hook.after(x, y))
    }
}

/// Whether a product of these is one in F64.
pub(super) fn in_f64(x: &Tensor, weight: &Weight) -> bool {
    (x.dtype(), weight.dtype()) == (DType::F64, DType::F64)
}

impl From<RbeLinear> for Linear {
    fn from(linear: RbeLinear) -> Self {
        let weight = linear.weight().clone().into();
        Self::of(Layer::Rbe(linear), weight)
    }
}

impl From<TrainableLinear> for Linear {
    fn from(linear: TrainableLinear) -> Self {
        let weight = linear.weight().clone().into();
        Self::of(Layer::Trainable(linear), weight)
    }
}

impl From<SpectralAdapter> for Linear {
    fn from(adapter: SpectralAdapter) -> Self {
        let weight = adapter.base().weight().clone();
        Self::of(Layer::Adapted(adapter), weight)
    }
}

impl From<candle_nn::Linear> for Linear {
    fn from(linear: candle_nn::Linear) -> Self {
        let weight = linear.weight().clone().into();
        Self::of(Layer::Dense(linear), weight)
    }
}
