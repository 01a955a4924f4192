//! The terms of the sum. A new term is one new file here, one line in `terms!`, and one file per back-end.

pub mod basis;
pub mod planes;
pub mod sparse;
pub(crate) mod summand;
pub mod trellis;

pub use basis::Basis;
pub use planes::Planes;
pub use sparse::Sparse;
pub use summand::{Domain, ParameterKind};
pub use trellis::Trellis;

use super::bytes::{Reader, Writer};
use super::layout::{Block, Layout};
use crate::error::{Error, Result};
use std::ops::Range;
use summand::{Compression, Summand};

/// This bit of a term's code says that what follows the term's head is entropy coded.
const CODED: u8 = 0x80;

/// The list of terms, in the order that they have in a matrix: each with its code in a payload.
macro_rules! terms {
    ($($(#[$doc:meta])* $code:literal => $Term:ident,)*) => {
        /// What an expression of the term is, whichever it is.
        macro_rules! each {
            ($of:expr, $term:ident => $result:expr) => {
                match $of {
                    $(Term::$Term($term) => $result,)*
                }
            };
        }

        /// One summand of a compressed matrix.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Term {
            $($(#[$doc])* $Term($Term),)*
        }

        impl Term {
            /// The code of this term in a payload.
            pub(super) fn code(&self) -> u8 {
                match self {
                    $(Term::$Term(_) => $code,)*
                }
            }

            pub(super) fn read(reader: &mut Reader, layout: Layout) -> Result<Self> {
                let code = reader.u8("term code")?;
                let is_coded = code & CODED != 0;
                let compression = if is_coded { Compression::Entropy } else { Compression::None };
                match code & !CODED {
                    $($code if $Term::CAN_BE_CODED || !is_coded => {
                        $Term::read(reader, layout, compression).map(Term::$Term)
                    })*
                    _ => Err(Error::payload(format!("unknown term {code}; it was written by a newer version"))),
                }
            }
        }

        $(
            impl From<$Term> for Term {
                fn from(term: $Term) -> Self {
                    Term::$Term(term)
                }
            }

            impl Kind for $Term {
                fn of(term: &Term) -> Option<&Self> {
                    if let Term::$Term(term) = term { Some(term) } else { None }
                }
            }
        )*
    };
}
terms! {
    /// Eight smooth functions per block, in the weight domain.
    1 => Basis,
    /// The largest coefficients, in bit fields.
    2 => Sparse,
    /// Every coefficient, as bit-planes.
    3 => Planes,
    /// Every coefficient, trellis-coded.
    4 => Trellis,
}

/// A kind of term.
pub trait Kind: Sized {
    /// The term, where it is of this kind.
    fn of(term: &Term) -> Option<&Self>;
}

impl Term {
    /// The domain that [`add_rows`](Self::add_rows) adds in.
    pub fn domain(&self) -> Domain {
        each!(self, term => term.domain())
    }

    /// Adds this term's share of rows of a block to `out` (`rows.len() x block.width`, row-major).
    pub fn add_rows(&self, block: Block, rows: Range<usize>, out: &mut [f32]) {
        each!(self, term => term.add_rows(block, rows, out));
    }

    /// What the numbers of [`parameters`](Self::parameters) are called.
    pub fn name(&self) -> &'static str {
        each!(self, term => term.name())
    }

    /// What they are called of a second term of this kind, which codes what the first leaves; `None` where there may be none.
    pub(super) fn residual_name(&self) -> Option<&'static str> {
        each!(self, term => term.residual_name())
    }

    /// Numbers that a product multiplies with.
    pub(crate) fn stored_numbers(&self) -> usize {
        each!(self, term => term.stored_numbers())
    }

    /// What the numbers of [`parameters`](Self::parameters) are.
    pub fn parameter_kind(&self) -> ParameterKind {
        each!(self, term => term.parameter_kind())
    }

    /// The numbers in which this term is linear, block after block: the basis functions' parameters, the sparse
    /// coefficients in row-major order, the scales of planes (of rows) and scale groups. Positions and codes are fixed.
    pub fn parameters(&self) -> Vec<f32> {
        each!(self, term => term.parameters())
    }

    /// How many of the parameters are a block's.
    pub fn parameters_in(&self, block: Block) -> usize {
        each!(self, term => term.parameters_in(block))
    }

    /// The same term with other parameters, as precise as its format holds them.
    ///
    /// # Errors
    /// When one is not finite, or larger than the format holds; when a scale of planes or of a trellis is negative.
    ///
    /// # Panics
    /// When there are not as many as [`parameters`](Self::parameters) gives.
    pub fn with_parameters(&self, parameters: &[f32]) -> Result<Self> {
        each!(self, term => term.with_parameters(parameters).map(Self::from))
    }

    /// How the term is cut into blocks.
    pub(super) fn layout(&self) -> Layout {
        each!(self, term => term.layout())
    }

    /// The term times `2^exponent`, to the bit: positions, codes and F16 numbers stay.
    ///
    /// # Errors
    /// When its unit leaves what a payload may hold.
    pub fn times_power_of_two(&self, exponent: i32) -> Result<Self> {
        each!(self, term => term.times_power_of_two(exponent).map(Self::from))
    }

    /// The first `limit` bit-planes of a term that has planes; `None` of another.
    ///
    /// # Errors
    /// When a scale of so few planes is larger than the format holds.
    pub fn first_planes(&self, limit: u8) -> Option<Result<Self>> {
        each!(self, term => term.first_planes(limit).map(|cut| cut.map(Self::from)))
    }

    /// Adds `d <g, term> / d parameters` of one block to `gradient`, the block's parameters; `g` (`height x width`) is in
    /// the term's own [`domain`](Self::domain).
    pub fn add_gradient(&self, block: Block, g: &[f32], gradient: &mut [f32]) {
        assert_eq!(gradient.len(), self.parameters_in(block));
        each!(self, term => term.add_gradient(block, g, gradient));
    }

    /// Bytes this term takes in a payload as it is, not entropy coded.
    pub fn size_in_bytes(&self) -> usize {
        1 + each!(self, term => term.size_in_bytes())
    }

    /// Bytes this term takes in a payload, entropy coded where that is smaller: as slow as writing it.
    pub fn coded_size_in_bytes(&self) -> usize {
        1 + each!(self, term => term.coded().map_or_else(|| term.size_in_bytes(), |coded| coded.len()))
    }

    /// A few words for reports, such as `planes 4 bits`.
    pub fn summary(&self) -> String {
        each!(self, term => term.summary())
    }

    /// Writes the term as `compression` says.
    pub(super) fn write(&self, writer: &mut Writer, compression: Compression) {
        let coded =
            if compression == Compression::Entropy { each!(self, term => term.coded()) } else { None };
        match coded {
            Some(coded) => {
                writer.u8(self.code() | CODED);
                writer.append(coded);
            }
            None => {
                writer.u8(self.code());
                each!(self, term => term.write(writer));
            }
        }
    }
}
