//! What the encoder is asked for.

use crate::error::{Error, Result};

/// What a compressed tensor must reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// At most this many bits per weight, everything counted, in the file or in memory as [`Budget`] says. Where it makes the output better, the weights'
    /// own error is not quite the smallest (the trellis term's scales are unbiased).
    BitsPerWeight(f64),
    /// At most this `|W - W^| / |W|` (Frobenius), in the fewest bytes.
    RelativeError(f64),
    /// At most this root mean square of `W - W^`, in the fewest bytes.
    Rmse(f64),
    /// The K largest coefficients of every full block (and as large a part of smaller ones).
    Coefficients(usize),
}

impl Rate {
    /// # Errors
    /// When the number makes no sense.
    pub(super) fn check(self) -> Result<()> {
        match self {
            Rate::BitsPerWeight(bits) if !(bits > 0.0 && bits.is_finite()) => {
                Err(Error::config(format!("{bits} bits per weight; it must be positive")))
            }
            Rate::RelativeError(error) if !(error > 0.0 && error < 1.0) => {
                Err(Error::config(format!("relative error {error}; it must lie between 0 and 1")))
            }
            Rate::Rmse(rmse) if !(rmse > 0.0 && rmse.is_finite()) => {
                Err(Error::config(format!("RMSE {rmse}; it must be positive")))
            }
            Rate::Coefficients(k) if !(1..=65535).contains(&k) => {
                Err(Error::config(format!("{k} coefficients per block; it must be 1 to 65535")))
            }
            _ => Ok(()),
        }
    }

    /// The same for weights that are multiplied by `factor`.
    pub(super) fn for_weights_times(self, factor: f64) -> Self {
        match self {
            Rate::Rmse(rmse) => Rate::Rmse(rmse * factor),
            Rate::BitsPerWeight(_) | Rate::RelativeError(_) | Rate::Coefficients(_) => self,
        }
    }

    /// The rate for a tensor of `elements` whose squares sum to `energy`.
    pub(super) fn target(self, elements: usize, energy: f64) -> Target {
        match self {
            Rate::BitsPerWeight(bits) => Target::Bits((bits * elements as f64) as usize),
            Rate::RelativeError(error) => Target::SquaredError(error * error * energy),
            Rate::Rmse(rmse) => Target::SquaredError(rmse * rmse * elements as f64),
            Rate::Coefficients(k) => Target::PerBlock(k),
        }
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Rate::BitsPerWeight(bits) => write!(f, "{bits} bits per weight"),
            Rate::RelativeError(error) => write!(f, "a relative error of {error}"),
            Rate::Rmse(rmse) => write!(f, "an RMSE of {rmse}"),
            Rate::Coefficients(k) => write!(f, "{k} coefficients per block"),
        }
    }
}

/// A [`Rate`] in the encoder's own units.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Target {
    /// Bits of the whole payload.
    Bits(usize),
    /// Sum of squared differences.
    SquaredError(f64),
    /// Coefficients per full block.
    PerBlock(usize),
}

/// Named rates, for people who do not want to choose a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quality {
    /// 8 bits: no difference that a reader could tell.
    UltraHigh,
    /// 6 bits.
    High,
    /// 4 bits.
    Balanced,
    /// 3 bits.
    Fast,
}

impl From<Quality> for Rate {
    fn from(quality: Quality) -> Self {
        let bits: u8 = match quality {
            Quality::UltraHigh => 8,
            Quality::High => 6,
            Quality::Balanced => 4,
            Quality::Fast => 3,
        };
        Rate::BitsPerWeight(f64::from(bits) + SIDE_BITS)
    }
}

/// Bits per weight that leave room for the scales and counts beside whole planes at block edges of 64 and
/// more, in matrices of 128x256 and more.
pub(super) const SIDE_BITS: f64 = 0.02;

/// Whose bytes [`Rate::BitsPerWeight`] counts, and the other rates keep few.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Budget {
    /// The file's, where terms are entropy coded. Planes then have a finer step and take about one bit more in memory:
    /// 5 bits of a file are six planes, with two thirds of the error that five planes have.
    #[default]
    File,
    /// Those of the terms as they are, which products read from memory (and files hold that are not entropy coded). The
    /// file is smaller still: four planes take about 3.6 bits of it.
    Memory,
}

/// How many coefficients a term holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// Every one.
    All,
    /// The few that matter most.
    Few,
}

/// The choices of a term: each with its name, what is said of it on the command line, and how many coefficients it holds.
macro_rules! term_choices {
    ($($(#[$meta:meta])* $Choice:ident, $name:literal, $title:literal, $holds:expr;)*) => {
        /// Which term carries the coefficients.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub enum TermChoice {
            $($(#[$meta])* $Choice,)*
        }

        impl TermChoice {
            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$Choice,)*];

            /// The name used on the command line.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$Choice => $name,)*
                }
            }

            /// A few words on what it is.
            pub fn title(self) -> &'static str {
                match self {
                    $(Self::$Choice => $title,)*
                }
            }

            /// How many coefficients the term holds, where one is chosen.
            pub(super) fn holds(self) -> Option<Holds> {
                match self {
                    $(Self::$Choice => $holds,)*
                }
            }
        }
    };
}
term_choices! {
    /// Whichever has the smaller error at the rate, or the fewer bytes at the error; planes in place of two trellises where they are nearly as good,
    /// since their products are faster.
    #[default]
    Auto, "auto", "Whichever is smaller at the error, or better at the size; the faster of two that are as good", None;
    /// Every coefficient at n bits.
    Planes, "planes", "Every coefficient at n bits, in bit-planes", Some(Holds::All);
    /// The largest coefficients.
    Sparse, "sparse", "The K largest coefficients", Some(Holds::Few);
    /// Every coefficient at up to 8 bits, trellis-coded (beyond 4 in two terms): the smallest error there is, and the
    /// longest time to encode.
    Trellis, "trellis", "Every coefficient at 1 to 8 bits that it shares with others", Some(Holds::All);
}
