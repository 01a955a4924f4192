//! The linear layer, `y = x W' + b`.
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
//! let payload = encoder.encode(&up)?.to_bytes();
//! tensors.remove("up.weight");
//! tensors.insert("up.weight.rbe".to_string(), Tensor::from_vec(payload.clone(), payload.len(), &device)?);
//! let model = Mlp::new(VarBuilder::from_tensors(tensors, DType::F32, &device))?;
//! let difference = (model.forward(&x)? - &dense)?.sqr()?.sum_all()?.to_scalar::<f32>()?;
//! let size = dense.sqr()?.sum_all()?.to_scalar::<f32>()?;
//! assert!((difference / size).sqrt() < 0.02);
//! # Ok(()) }
//! ```

use super::counters::{Counters, Counts, register};
use super::mode::{BlockCache, DecodeMode, LayerConfig, default_layer_config};
use super::{Recorded, SpectralAdapter, TrainableLinear, compressed};
use crate::clock::Instant;
use crate::{RbeTensor, ops};
use candle_core::{Result, Tensor, bail};
use candle_nn::{Init, Module, VarBuilder};
use rbe_core::cpu::Precision;
use std::sync::Arc;
use std::time::Duration;

/// A linear layer over a compressed weight.
///
/// Unless [`with_mode`](Self::with_mode) says otherwise the product runs on the compressed form, and no dense copy of the
/// weight exists. Differentiable in its input. Clones share the weight, the cache of decoded blocks and the counts.
#[doc(alias = "RBELinear")]
#[derive(Clone, Debug)]
pub struct RbeLinear {
    weight: RbeTensor,
    bias: Option<Tensor>,
    config: LayerConfig,
    decoded: Decoded,
    counters: Arc<Counters>,
}

/// What a mode holds beside the weight.
#[derive(Clone, Debug)]
enum Decoded {
    Nothing,
    Blocks(Arc<BlockCache>),
    FirstPlanes(RbeTensor),
}

impl RbeLinear {
    /// A layer with a weight of shape `(out, in)` and a bias of shape `(out)`.
    pub fn new(weight: RbeTensor, bias: Option<Tensor>) -> Self {
        let (config, decoded) = (LayerConfig::default(), Decoded::Nothing);
        Self { weight, bias, config, decoded, counters: Arc::default() }
    }

    /// As `config` says, and listed under the weight's path.
    fn from_file(weight: RbeTensor, bias: Option<Tensor>, vb: &VarBuilder) -> Result<Self> {
        let LayerConfig { precision, mode } = default_layer_config();
        let layer = Self::new(weight, bias).with_precision(precision).with_mode(mode);
        let layer = layer.map_err(|error| error.in_tensor(vb.prefix()))?;
        register(vb.prefix(), &layer.counters);
        Ok(layer)
    }

    /// The same layer with activations taken at this precision.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.config.precision = precision;
        self
    }

    /// The same layer with its weight used in this way.
    ///
    /// # Errors
    /// [`DecodeMode::Full`] with a cache smaller than a block; [`DecodeMode::Progressive`] with 0 or more than 8 planes,
    /// or of a weight without a planes term.
    pub fn with_mode(mut self, mode: DecodeMode) -> crate::Result<Self> {
        self.decoded = match mode {
            DecodeMode::Direct => Decoded::Nothing,
            DecodeMode::Full { cache_bytes } => {
                Decoded::Blocks(Arc::new(BlockCache::new(&self.weight, cache_bytes)?))
            }
            DecodeMode::Progressive { planes } => Decoded::FirstPlanes(self.weight.first_planes(planes)?),
        };
        self.config.mode = mode;
        Ok(self)
    }

    /// The precision of activations and how the weight is used.
    pub fn config(&self) -> LayerConfig {
        self.config
    }

    /// The compressed weight, `(out, in)`.
    pub fn weight(&self) -> &RbeTensor {
        &self.weight
    }

    /// The bias, `(out)`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// What the layer and its clones have done so far.
    pub fn counts(&self) -> Counts {
        self.counters.counts()
    }

    /// Writes the output into `y`, a contiguous F32 tensor `(.., out)` on the CPU that no variable's gradient goes through,
    /// from an `x` that is one too. Once as many tokens have passed before, nothing is allocated here.
    ///
    /// ```
    /// # use candle_core::{DType, Device, Result, Tensor};
    /// # use candle_nn::Module;
    /// # use candle_rbe::{Encoder, EncoderConfig, RbeLinear, Rate};
    /// # fn main() -> Result<()> {
    /// # let weight = Tensor::randn(0f32, 0.1, (96, 64), &Device::Cpu)?;
    /// # let compressed = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(4.2)))?.encode(&weight)?;
    /// let layer = RbeLinear::new(compressed, None);
    /// let y = Tensor::zeros((3, 96), DType::F32, &Device::Cpu)?;
    /// for _ in 0..2 {
    ///     let x = Tensor::randn(0f32, 1., (3, 64), &Device::Cpu)?;
    ///     layer.forward_into(&x, &y)?;
    ///     assert_eq!(y.to_vec2::<f32>()?, layer.forward(&x)?.to_vec2::<f32>()?);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// When a shape or type is another, a tensor is on another device, the weight is transposed, or the mode is
    /// [`DecodeMode::Full`].
    pub fn forward_into(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        let start = Instant::now();
        let weight = match &self.decoded {
            Decoded::Nothing => &self.weight,
            Decoded::FirstPlanes(first) => first,
            Decoded::Blocks(_) => {
                bail!("forward_into multiplies with compressed weights, not decoded blocks")
            }
        };
        ops::matmul_into(x, weight, self.bias.as_ref(), self.config.precision, y)?;
        self.count(x, start.elapsed());
        Ok(())
    }

    /// Whether the product runs on all of the compressed weight.
    pub(super) fn is_direct(&self) -> bool {
        matches!(self.decoded, Decoded::Nothing)
    }

    fn product(&self, x: &Tensor) -> Result<Tensor> {
        let start = Instant::now();
        let precision = self.config.precision;
        let y = match &self.decoded {
            Decoded::Nothing => ops::matmul(x, &self.weight, precision)?,
            Decoded::FirstPlanes(first) => ops::matmul_with_gradient(x, first, &self.weight, precision)?,
            Decoded::Blocks(cache) => cache.product(&self.weight, x, &self.counters)?,
        };
        self.count(x, start.elapsed());
        Ok(y)
    }

    /// Counts a forward pass with this input.
    pub(super) fn count(&self, x: &Tensor, time: Duration) {
        let layout = self.weight.packed().layout();
        let tokens = x.elem_count() / x.dims().last().map_or(1, |last| (*last).max(1));
        let (multiply_adds, bytes) = match &self.decoded {
            Decoded::Blocks(_) => (layout.elements(), size_of::<f32>() * layout.elements()),
            Decoded::FirstPlanes(first) => (first.stored_coefficients(), first.memory_in_bytes()),
            Decoded::Nothing => (self.weight.stored_coefficients(), self.weight.memory_in_bytes()),
        };
        if !matches!(self.decoded, Decoded::Blocks(_)) {
            self.counters.unpack(multiply_adds);
        }
        self.counters.call(tokens, tokens * multiply_adds, bytes, time);
    }

    /// The output for a product, which it takes.
    pub(super) fn with_bias(&self, product: Tensor) -> Result<Tensor> {
        match &self.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }
}

impl Module for RbeLinear {
    /// `(.., in)` to `(.., out)`, of the input's type: F32, F16 or BF16.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.with_bias(self.product(x)?)
    }
}

/// A linear layer whose weight is dense or compressed, by what the file held, or one that is trained on top of it.
#[derive(Clone, Debug)]
pub enum Linear {
    /// Candle's own layer.
    Dense(candle_nn::Linear),
    /// The compressed layer.
    Rbe(RbeLinear),
    /// A compressed layer whose numbers are variables.
    Trainable(TrainableLinear),
    /// A frozen layer and a sparse term that is trained.
    Adapted(SpectralAdapter),
    /// Any of them under the eyes of a [`Recorder`](super::Recorder).
    Recorded(Recorded),
}

impl Linear {
    /// A dense layer, as `candle_nn::Linear::new`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self::Dense(candle_nn::Linear::new(weight, bias))
    }

    /// The bias, `(out)`; of a layer that is being trained, the one before.
    pub fn bias(&self) -> Option<&Tensor> {
        match self {
            Linear::Dense(linear) => linear.bias(),
            Linear::Rbe(linear) => linear.bias(),
            Linear::Trainable(linear) => linear.start_bias(),
            Linear::Adapted(adapter) => adapter.base().bias(),
            Linear::Recorded(recorded) => recorded.layer().bias(),
        }
    }
}

impl From<RbeLinear> for Linear {
    fn from(linear: RbeLinear) -> Self {
        Linear::Rbe(linear)
    }
}

impl From<TrainableLinear> for Linear {
    fn from(linear: TrainableLinear) -> Self {
        Linear::Trainable(linear)
    }
}

impl From<SpectralAdapter> for Linear {
    fn from(adapter: SpectralAdapter) -> Self {
        Linear::Adapted(adapter)
    }
}

impl From<candle_nn::Linear> for Linear {
    fn from(linear: candle_nn::Linear) -> Self {
        Linear::Dense(linear)
    }
}

impl Module for Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Linear::Dense(linear) => linear.forward(x),
            Linear::Rbe(linear) => linear.forward(x),
            Linear::Trainable(linear) => linear.forward(x),
            Linear::Adapted(adapter) => adapter.forward(x),
            Linear::Recorded(recorded) => recorded.forward(x),
        }
    }
}

/// A linear layer from `weight` (or `weight.rbe`) of shape `(out_dim, in_dim)` and `bias` of shape `(out_dim)`, as
/// `candle_nn::linear`.
///
/// # Errors
/// When a tensor is missing or has another shape, when a payload is damaged, and when a compressed weight is asked
/// for on a device that this build has no kernels for.
pub fn linear(in_dim: usize, out_dim: usize, vb: VarBuilder) -> Result<Linear> {
    match compressed(&vb, "weight", (out_dim, in_dim))? {
        Some(weight) => Ok(RbeLinear::from_file(weight, Some(vb.get(out_dim, "bias")?), &vb)?.into()),
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
        Some(weight) => Ok(RbeLinear::from_file(weight, None, &vb)?.into()),
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
        Some(weight) => Ok(RbeLinear::from_file(weight.t()?, bias, &vb)?.into()),
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
