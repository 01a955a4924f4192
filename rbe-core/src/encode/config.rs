//! What an encoder is told.

use super::rate::{Budget, Quality, Rate, SIDE_BITS, TermChoice};
use crate::codec::Transform;
use crate::codec::term::trellis::STATE_BITS;

/// How to encode. `None` leaves a choice to the encoder, which tries all.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    /// What to reach.
    pub rate: Rate,
    /// Whose bytes count.
    pub budget: Budget,
    /// Which term carries the coefficients.
    pub term: TermChoice,
    /// Block edge: 32, 64, 128 or 256. With [`Rate::Coefficients`], `None` is 64: K belongs to an edge.
    pub block: Option<usize>,
    /// Bits of a trellis state, 12 to 16: 14 take up to 1 % off the error and twice as long, 16 take 1 to 2 % off and five to
    /// eight times as long.
    pub trellis_state_bits: u8,
    /// The orthonormal transform.
    pub transform: Transform,
    /// Random signs in front of the transform.
    pub signs: Option<bool>,
    /// A basis term.
    pub basis: Option<bool>,
    /// Scales of rows and columns ([`AxisScales`](crate::codec::AxisScales)) in front of a trellis or planes, where bits are asked
    /// for and they save more than they cost; without an [`Importance`](super::Importance) that says which, the square roots of the rows' and
    /// columns' root mean squares.
    pub scales: bool,
    /// Whether the matrices of a model share [`Rate::BitsPerWeight`] as a budget of all, token tables and heads with more
    /// of it than projections; without, each has the rate for itself. Of a single matrix it says nothing.
    pub mix: bool,
    /// What the random signs are drawn from. Layers that share an input must share the seed to share its
    /// transform.
    pub seed: u64,
}

impl Default for EncoderConfig {
    fn default() -> Self {
        Self {
            rate: Rate::BitsPerWeight(4.0 + SIDE_BITS),
            budget: Budget::File,
            term: TermChoice::Auto,
            block: None,
            trellis_state_bits: *STATE_BITS.start(),
            transform: Transform::Dct,
            signs: None,
            basis: None,
            scales: true,
            mix: true,
            seed: 0x5242_4531,
        }
    }
}

impl From<Rate> for EncoderConfig {
    fn from(rate: Rate) -> Self {
        Self { rate, ..Self::default() }
    }
}

impl From<Quality> for EncoderConfig {
    fn from(quality: Quality) -> Self {
        Rate::from(quality).into()
    }
}
