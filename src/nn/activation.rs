//! The nonlinearity of a feed-forward layer.

use crate::{Error, Result};
use candle_core::Tensor;
use candle_nn::Module;
use serde::Deserialize;

/// An elementwise function, read from the name that Hugging Face's configurations use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Activation {
    /// `silu` or `swish`: `x / (1 + exp(-x))`.
    Silu,
    /// `gelu`: `x * Phi(x)` with the normal distribution function itself (Hendrycks and Gimpel, arXiv 1606.08415).
    Gelu,
    /// `gelu_new` or `gelu_pytorch_tanh`: that paper's approximation,
    /// `x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `relu`: `max(x, 0)`.
    Relu,
}

impl TryFrom<String> for Activation {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        match name.as_str() {
            "silu" | "swish" => Ok(Self::Silu),
            "gelu" => Ok(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Ok(Self::GeluTanh),
            "relu" => Ok(Self::Relu),
            _ => Err(Error::unsupported(format!(
                "activation function {name:?}; supported are silu, swish, gelu, gelu_new, gelu_pytorch_tanh, relu"
            ))),
        }
    }
}

impl Module for Activation {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Silu => x.silu(),
            Self::Gelu => x.gelu_erf(),
            Self::GeluTanh => x.gelu(),
            Self::Relu => x.relu(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// The formulas at -2, -1, 0.5 and 3, worked out apart to six digits.
    #[test]
    fn each_name_is_its_function() -> Result<()> {
        let x = Tensor::new(&[-2f32, -1., 0.5, 3.], &Device::Cpu)?;
        for (name, expected) in [
            ("silu", [-0.238406, -0.268941, 0.311230, 2.857722]),
            ("gelu", [-0.045500, -0.158655, 0.345731, 2.99595]),
            ("gelu_new", [-0.045402, -0.158808, 0.345714, 2.996363]),
            ("relu", [0., 0., 0.5, 3.]),
        ] {
            let ours = Activation::try_from(name.to_owned())?.forward(&x)?.to_vec1::<f32>()?;
            for (a, b) in ours.iter().zip(expected) {
                assert!((a - b).abs() < 2e-6, "{name}: {a} {b}");
            }
        }
        Ok(())
    }
}
