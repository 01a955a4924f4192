//! The projections of a layer, as files store them.

use super::config::{MlpConfig, MlpInputs, Stored};
use crate::nn::{Linear, RbeMlp, linear_b, linear_conv1d};
use candle_core::Result;
use candle_nn::VarBuilder;

/// A projection with sides (in, out).
pub(super) fn linear(sides: (usize, usize), stored: Stored, bias: bool, vb: VarBuilder) -> Result<Linear> {
    match stored {
        Stored::OutIn => linear_b(sides.0, sides.1, bias, vb),
        Stored::InOut => linear_conv1d(sides.0, sides.1, vb),
    }
}

/// A feed-forward layer or an expert, whose layers are under `vb`.
pub(super) fn mlp(config: &MlpConfig, hidden: usize, vb: &VarBuilder) -> Result<RbeMlp> {
    let &MlpConfig { stored, bias, intermediate_size: inner, activation, .. } = config;
    let input = |size: usize, name: &str| linear((hidden, size), stored, bias, vb.pp(name));
    let output = || linear((inner, hidden), stored, bias, vb.pp(config.output));
    Ok(match config.inputs {
        MlpInputs::Plain(up) => RbeMlp::new(input(inner, up)?, output()?, activation),
        MlpInputs::Gated { gate, up } => {
            RbeMlp::gated(input(inner, gate)?, input(inner, up)?, output()?, activation)
        }
        MlpInputs::Joined(both) => RbeMlp::gated_by_joined(input(2 * inner, both)?, output()?, activation),
    })
}
