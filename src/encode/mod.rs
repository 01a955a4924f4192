//! From a matrix to terms.
use crate::codec::transform::Transform;

/// What the encoder is asked to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// Bits per weight, all side information counted.
    BitsPerWeight(f64),
    /// `|W - W^| / |W|` in the Frobenius norm.
    RelativeError(f64),
    /// Root mean square of `W - W^`.
    Rmse(f64),
    /// K: coefficients kept per full block (sparse term).
    Coefficients(usize),
}

/// Named rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quality { UltraHigh, High, Balanced, Fast }

/// Which term carries the coefficients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TermChoice {
    /// Whatever has the smaller error at the rate (or fewer bytes at the error).
    #[default]
    Auto,
    /// Bit-planes: every coefficient at n bits.
    Planes,
    /// The K largest coefficients.
    Sparse,
}

/// How to encode.
#[derive(Clone, Debug)]
pub struct EncoderConfig {
    /// What to reach.
    pub rate: Rate,
    /// Which term.
    pub term: TermChoice,
    /// Block edge (32, 64, 128 or 256), or `None` to try them all.
    pub block: Option<usize>,
    /// Transform.
    pub transform: Transform,
}
impl Default for EncoderConfig {
    fn default() -> Self {
        Self { rate: Rate::BitsPerWeight(4.05), term: TermChoice::Auto, block: None, transform: Transform::Dct }
    }
}

/// Turns matrices into compressed tensors.
#[derive(Clone, Debug)]
pub struct Encoder { config: EncoderConfig }

impl Encoder {
    /// Checks the configuration.
    pub fn new(config: EncoderConfig) -> crate::Result<Self> { Ok(Self { config }) }
    /// The configuration.
    pub fn config(&self) -> &EncoderConfig { &self.config }
}
