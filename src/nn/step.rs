//! Layers as a token's step takes them.

use super::{Activation, RbeLinear};
use crate::step::Nonlinearity;
use candle_core::{DType, Device, Result, Tensor};

/// What a step multiplies with in the place of a layer; `None` where it cannot.
pub(crate) type Find<'a, M> = dyn Fn(&RbeLinear) -> Option<M> + 'a;

/// A vector's numbers, unless it is being trained: what a step has of it would not follow.
pub(super) fn numbers(vector: &Tensor) -> Result<Option<Vec<f32>>> {
    if vector.is_variable() || vector.track_op() {
        return Ok(None);
    }
    let on_host = vector.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    Ok(Some(on_host.flatten_all()?.to_vec1()?))
}

impl From<Activation> for Nonlinearity {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::Silu => Self::Silu,
            Activation::Gelu => Self::Gelu,
            Activation::GeluTanh => Self::GeluTanh,
            Activation::Relu => Self::Relu,
        }
    }
}
