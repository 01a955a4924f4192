//! Linear layer.
use crate::RbeTensor;
use candle_core::{Result, Tensor};
use candle_nn::{Module, VarBuilder};

/// A linear layer over a compressed weight of shape (out, in).
#[derive(Clone, Debug)]
pub struct RbeLinear { weight: RbeTensor, bias: Option<Tensor> }
impl RbeLinear {
    /// weight (out, in), bias (out).
    pub fn new(weight: RbeTensor, bias: Option<Tensor>) -> Self { Self { weight, bias } }
    /// The compressed weight.
    pub fn weight(&self) -> &RbeTensor { &self.weight }
}
impl Module for RbeLinear { fn forward(&self, _x: &Tensor) -> Result<Tensor> { todo!() } }

/// Dense or compressed.
#[derive(Clone, Debug)]
pub enum Linear {
    /// Candle's own layer.
    Dense(candle_nn::Linear),
    /// The compressed layer.
    Rbe(RbeLinear),
}
impl Linear {
    /// As `candle_nn::Linear::new`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self { Self::Dense(candle_nn::Linear::new(weight, bias)) }
}
impl Module for Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self { Self::Dense(l) => l.forward(x), Self::Rbe(l) => l.forward(x) }
    }
}
/// As candle_nn::linear.
pub fn linear(in_dim: usize, out_dim: usize, vb: VarBuilder) -> Result<Linear> { Ok(Linear::Dense(candle_nn::linear(in_dim, out_dim, vb)?)) }
/// As candle_nn::linear_no_bias.
pub fn linear_no_bias(in_dim: usize, out_dim: usize, vb: VarBuilder) -> Result<Linear> { Ok(Linear::Dense(candle_nn::linear_no_bias(in_dim, out_dim, vb)?)) }
/// As candle_nn::linear_b.
pub fn linear_b(in_dim: usize, out_dim: usize, bias: bool, vb: VarBuilder) -> Result<Linear> { if bias { linear(in_dim, out_dim, vb) } else { linear_no_bias(in_dim, out_dim, vb) } }
/// GPT-2's `Conv1D`: the weight is stored (in, out).
pub fn linear_conv1d(in_dim: usize, out_dim: usize, vb: VarBuilder) -> Result<Linear> {
    let w = vb.get((in_dim, out_dim), "weight")?.t()?.contiguous()?;
    Ok(Linear::new(w, Some(vb.get(out_dim, "bias")?)))
}
