//! The feed-forward layer of a transformer.

use super::step::Find;
use super::{Activation, Linear, forward_all};
use crate::ops;
use crate::step::{Nonlinearity, Projection};
use candle_core::{D, DType, Result, Tensor};
use candle_nn::Module;

/// `down(act(up(x)))`, or with a gate `down(act(gate(x)) * up(x))`: a gated linear unit (Shazeer, arXiv 2002.05202), with
/// [`Activation::Silu`] SwiGLU.
#[doc(alias = "RBEMLP")]
#[derive(Clone, Debug)]
pub struct RbeMlp {
    inner: Inner,
    down: Linear,
    act: Activation,
}

/// The layers in front of the nonlinearity.
#[derive(Clone, Debug)]
// There is one a layer of a model, beside weights of megabytes.
#[allow(clippy::large_enum_variant)]
enum Inner {
    Plain(Linear),
    Gated {
        gate: Linear,
        up: Linear,
    },
    /// Both in one, the gate's outputs first.
    Joined(Linear),
}

/// A feed-forward layer as a token's step takes it.
pub(crate) struct MlpStep<M> {
    pub inner: Vec<Projection<M>>,
    pub is_gated: bool,
    pub nonlinearity: Nonlinearity,
    pub down: Projection<M>,
}

impl RbeMlp {
    /// Two layers, `(inner, hidden)` and `(hidden, inner)`.
    pub fn new(up: Linear, down: Linear, act: Activation) -> Self {
        Self { inner: Inner::Plain(up), down, act }
    }

    /// Three layers, `gate` of `up`'s shape.
    pub fn gated(gate: Linear, up: Linear, down: Linear, act: Activation) -> Self {
        Self { inner: Inner::Gated { gate, up }, down, act }
    }

    /// Two layers, the first of both the gate and what it scales: `(2 inner, hidden)`, the gate's rows first, and
    /// `(hidden, inner)`.
    pub fn gated_by_joined(gate_up: Linear, down: Linear, act: Activation) -> Self {
        Self { inner: Inner::Joined(gate_up), down, act }
    }

    /// The layer as a token's step takes it: what is in front of the nonlinearity, whether there is a gate, the nonlinearity and the output;
    /// `None` where a part is not compressed, or trained.
    pub(crate) fn step<M>(&self, find: &Find<M>) -> Result<Option<MlpStep<M>>> {
        let (inner, is_gated) = match &self.inner {
            Inner::Plain(only) => (vec![only], false),
            Inner::Joined(both) => (vec![both], true),
            Inner::Gated { gate, up } => (vec![gate, up], true),
        };
        let inner = inner.into_iter().map(|linear| linear.projection(find)).collect::<Result<Vec<_>>>()?;
        let (Some(inner), Some(down)) = (inner.into_iter().collect(), self.down.projection(find)?) else {
            return Ok(None);
        };
        Ok(Some(MlpStep { inner, is_gated, nonlinearity: self.act.into(), down }))
    }

    /// Counts a token that went through its linear layers elsewhere.
    #[cfg(feature = "cuda")]
    pub(crate) fn count_token(&self) {
        match &self.inner {
            Inner::Plain(only) | Inner::Joined(only) => only.count_token(),
            Inner::Gated { gate, up } => [gate, up].into_iter().for_each(Linear::count_token),
        }
        self.down.count_token();
    }

    /// The layers in the order of the constructor.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut linears = match &mut self.inner {
            Inner::Plain(only) | Inner::Joined(only) => vec![only],
            Inner::Gated { gate, up } => vec![gate, up],
        };
        linears.push(&mut self.down);
        linears
    }
}

impl RbeMlp {
    /// All but the last layer: `(.., hidden)` to `(.., inner)`, the input of [`output`](Self::output).
    ///
    /// # Errors
    /// When the shape does not fit.
    pub fn inner(&self, x: &Tensor) -> Result<Tensor> {
        match &self.inner {
            Inner::Plain(up) => self.act.forward(&up.forward(x)?),
            Inner::Gated { gate, up } => {
                let [gate, up] = forward_all([gate, up], x)?;
                gated(self.act, &gate, &up)
            }
            Inner::Joined(gate_up) => {
                let both = gate_up.forward(x)?.chunk(2, D::Minus1)?;
                gated(self.act, &both[0].contiguous()?, &both[1].contiguous()?)
            }
        }
    }

    /// The last layer alone: from what [`inner`](Self::inner) returns to the output.
    ///
    /// # Errors
    /// When the shape does not fit.
    pub fn output(&self, inner: &Tensor) -> Result<Tensor> {
        self.down.forward(inner)
    }
}

/// `act(gate) * up`.
fn gated(act: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    // Other types round what the function gives before they multiply.
    match act == Activation::Silu && gate.device().is_cpu() && gate.dtype() == DType::F32 {
        true => ops::silu_mul(gate, up),
        false => act.forward(gate)? * up,
    }
}

impl Module for RbeMlp {
    /// `(.., hidden)` to `(.., hidden)`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.output(&self.inner(x)?)
    }
}
