//! How the commands that run a model make its layers.

use candle_rbe::{DecodeMode, LayerConfig, Precision, set_default_layer_config};
use clap::{Args, ValueEnum};

/// [`Precision`] on the command line.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(crate) enum Activations {
    /// One signed byte where a weight's own error dwarfs what that loses (up to about five bits a weight), else two
    Auto,
    /// One signed byte, as Candle's quantised products have them
    Int8,
    /// Two signed bytes
    Int16,
    /// Three signed bytes: F32's own resolution, to judge the weights alone
    Exact,
}

impl Activations {
    pub(crate) fn precision(self) -> Precision {
        match self {
            Activations::Auto => Precision::Auto,
            Activations::Int8 => Precision::Int8,
            Activations::Int16 => Precision::Int16,
            Activations::Exact => Precision::Exact,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Activations::Auto => "auto",
            Activations::Int8 => "int8",
            Activations::Int16 => "int16",
            Activations::Exact => "exact",
        }
    }
}

/// Options of every command that runs a compressed model.
#[derive(Args)]
pub(crate) struct Layers {
    /// How activations are taken by compressed layers
    #[arg(long, value_name = "PRECISION", default_value = "auto")]
    activations: Activations,
    /// How compressed weights are used: direct, full:MIB (decoded blocks in a cache of so many MiB a layer),
    /// planes:N (the first N planes alone)
    #[arg(long, value_name = "MODE", default_value = "direct", value_parser = mode)]
    mode: DecodeMode,
}

fn mode(text: &str) -> Result<DecodeMode, String> {
    let number = |text: &str| text.parse::<usize>().ok().filter(|number| *number > 0);
    match text.split_once(':') {
        None if text == "direct" => Some(DecodeMode::Direct),
        Some(("full", mib)) => number(mib)
            .and_then(|mib| mib.checked_mul(1 << 20))
            .map(|cache_bytes| DecodeMode::Full { cache_bytes }),
        Some(("planes", planes)) => number(planes)
            .and_then(|planes| u8::try_from(planes).ok())
            .map(|planes| DecodeMode::Progressive { planes }),
        _ => None,
    }
    .ok_or_else(|| "a mode is direct, full:MIB or planes:N, such as full:64 or planes:4".to_owned())
}

impl Layers {
    /// Layers that are loaded from now on are made this way.
    pub(crate) fn apply(&self) {
        set_default_layer_config(LayerConfig { precision: self.activations.precision(), mode: self.mode });
    }
}
