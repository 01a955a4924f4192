//! The feed-forward layer of a transformer.

use super::{Activation, Linear, forward_all};
use candle_core::{Result, Tensor};
use candle_nn::Module;

/// `down(act(up(x)))`, or with a gate `down(act(gate(x)) * up(x))`: a gated linear unit (Shazeer, arXiv 2002.05202), with
/// [`Activation::Silu`] SwiGLU.
#[doc(alias = "RBEMLP")]
#[derive(Clone, Debug)]
pub struct RbeMlp {
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
    act: Activation,
}

impl RbeMlp {
    /// Two layers, `(inner, hidden)` and `(hidden, inner)`.
    pub fn new(up: Linear, down: Linear, act: Activation) -> Self {
        Self { gate: None, up, down, act }
    }

    /// Three layers, `gate` of `up`'s shape.
    pub fn gated(gate: Linear, up: Linear, down: Linear, act: Activation) -> Self {
        Self { gate: Some(gate), up, down, act }
    }

    /// The layers in the order of the constructor.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        self.gate.iter_mut().chain([&mut self.up, &mut self.down]).collect()
    }
}

impl Module for RbeMlp {
    /// `(.., hidden)` to `(.., hidden)`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let inner = match &self.gate {
            Some(gate) => {
                let [gate, up] = forward_all([gate, &self.up], x)?;
                (self.act.forward(&gate)? * up)?
            }
            None => self.act.forward(&self.up.forward(x)?)?,
        };
        self.down.forward(&inner)
    }
}
