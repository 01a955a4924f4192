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

use super::{SpectralAdapter, TrainableLinear, compressed};
use crate::cpu::Precision;
use crate::{RbeTensor, ops};
use candle_core::{Result, Tensor};
use candle_nn::{Module, VarBuilder};

/// A linear layer over a compressed weight.
///
/// The product runs on the compressed form; no dense copy of the weight exists. Differentiable in its input.
#[doc(alias = "RBELinear")]
#[derive(Clone, Debug)]
pub struct RbeLinear {
    weight: RbeTensor,
    bias: Option<Tensor>,
    precision: Precision,
}

impl RbeLinear {
    /// A layer with a weight of shape `(out, in)` and a bias of shape `(out)`.
    pub fn new(weight: RbeTensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias, precision: Precision::default() }
    }

    /// The same layer with activations taken at this precision.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The precision of activations.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The compressed weight, `(out, in)`.
    pub fn weight(&self) -> &RbeTensor {
        &self.weight
    }

    /// The bias, `(out)`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

impl Module for RbeLinear {
    /// `(.., in)` to `(.., out)`, of the input's type: F32, F16 or BF16.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = ops::matmul(x, &self.weight, self.precision)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
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
        }
    }
}

/// A linear layer from `weight` (or `weight.rbe`) of shape `(out_dim, in_dim)` and `bias` of shape `(out_dim)`, as
/// `candle_nn::linear`.
///
/// # Errors
/// When a tensor is missing or has another shape, when a payload is damaged, and when a compressed weight is asked
/// for on another device than the CPU.
pub fn linear(in_dim: usize, out_dim: usize, vb: VarBuilder) -> Result<Linear> {
    match compressed(&vb, "weight", (out_dim, in_dim))? {
        Some(weight) => Ok(RbeLinear::new(weight, Some(vb.get(out_dim, "bias")?)).into()),
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
        Some(weight) => Ok(RbeLinear::new(weight, None).into()),
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
/// whose `bias` has the shape `(out_dim)`.
///
/// # Errors
/// As [`linear`].
#[doc(alias = "Conv1D")]
pub fn linear_conv1d(in_dim: usize, out_dim: usize, vb: VarBuilder) -> Result<Linear> {
    let bias = Some(vb.get(out_dim, "bias")?);
    match compressed(&vb, "weight", (in_dim, out_dim))? {
        Some(weight) => Ok(RbeLinear::new(weight.t()?, bias).into()),
        None => Ok(Linear::new(vb.get((in_dim, out_dim), "weight")?.t()?.contiguous()?, bias)),
    }
}
