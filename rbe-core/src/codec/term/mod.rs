//! The terms of the sum. A new term is one new file here, one line in `terms!`, and one file per back-end.

pub mod basis;
pub mod planes;
pub mod sparse;
pub mod trellis;

pub use basis::Basis;
pub use planes::Planes;
pub use sparse::Sparse;
pub use trellis::Trellis;

use super::layout::{Block, Layout};
use super::parameters::ParameterKind;
use super::payload::{Compression, Reader, Writer};
use crate::error::{Error, Result};
use half::f16;
use std::ops::Range;

/// This bit of a term's code says that what follows the term's head is entropy coded.
const CODED: u8 = 0x80;

/// The list of terms, in the order that they have in a matrix: each with its code in a payload.
macro_rules! terms {
    ($($(#[$doc:meta])* $code:literal => $Term:ident,)*) => {
        /// One summand of a compressed matrix.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Term {
            $($(#[$doc])* $Term($Term),)*
        }

        impl Term {
            fn summand(&self) -> &dyn Summand {
                match self {
                    $(Term::$Term(term) => term,)*
                }
            }

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

/// What a term's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// Weights themselves.
    Weights,
    /// Coefficients of the axes' transforms.
    Coefficients,
}

/// What defines a term: [`Term`] states each method's contract where it is public.
pub(crate) trait Summand {
    /// What the parameters are called.
    fn name(&self) -> &'static str;

    /// What they are called where the term follows another of its kind and codes what that leaves; `None` where it may not.
    fn residual_name(&self) -> Option<&'static str> {
        None
    }

    fn domain(&self) -> Domain {
        Domain::Coefficients
    }

    fn layout(&self) -> Layout;

    fn add_rows(&self, block: Block, rows: Range<usize>, out: &mut [f32]);

    fn stored_numbers(&self) -> usize {
        self.layout().elements()
    }

    fn parameter_kind(&self) -> ParameterKind {
        ParameterKind::Scales
    }

    fn parameters(&self) -> Vec<f32>;

    fn parameters_in(&self, block: Block) -> usize;

    fn with_parameters(&self, parameters: &[f32]) -> Result<Term>;

    fn add_gradient(&self, block: Block, g: &[f32], gradient: &mut [f32]);

    fn times_power_of_two(&self, exponent: i32) -> Result<Term>;

    /// The coarser quantiser of the first planes, of a term that has planes.
    fn first_planes(&self, _limit: u8) -> Option<Result<Term>> {
        None
    }

    /// Bytes in a payload, the term's code not counted.
    fn size_in_bytes(&self) -> usize;

    fn summary(&self) -> String;

    fn write(&self, writer: &mut Writer);

    /// The term entropy coded, where it can be and is smaller so.
    fn coded(&self) -> Option<Writer> {
        None
    }
}

/// A term that payloads hold.
trait Stored: Sized {
    /// Whether payloads hold it entropy coded too.
    const CAN_BE_CODED: bool = false;

    /// Reads what follows the term's code.
    fn read(reader: &mut Reader, layout: Layout, compression: Compression) -> Result<Self>;
}

impl Term {
    /// The domain that [`add_rows`](Self::add_rows) adds in.
    pub fn domain(&self) -> Domain {
        self.summand().domain()
    }

    /// Adds this term's share of rows of a block to `out` (`rows.len() x block.width`, row-major).
    pub fn add_rows(&self, block: Block, rows: Range<usize>, out: &mut [f32]) {
        self.summand().add_rows(block, rows, out);
    }

    /// What the numbers of [`parameters`](Self::parameters) are called.
    pub fn name(&self) -> &'static str {
        self.summand().name()
    }

    /// What they are called of a second term of this kind, which codes what the first leaves; `None` where there may be none.
    pub(super) fn residual_name(&self) -> Option<&'static str> {
        self.summand().residual_name()
    }

    /// Numbers that a product multiplies with.
    pub(crate) fn stored_numbers(&self) -> usize {
        self.summand().stored_numbers()
    }

    /// What the numbers of [`parameters`](Self::parameters) are.
    pub fn parameter_kind(&self) -> ParameterKind {
        self.summand().parameter_kind()
    }

    /// The numbers in which this term is linear, block after block: the basis functions' parameters, the sparse
    /// coefficients in row-major order, the scales of planes (of rows) and scale groups. Positions and codes are fixed.
    pub fn parameters(&self) -> Vec<f32> {
        self.summand().parameters()
    }

    /// How many of the parameters are a block's.
    pub fn parameters_in(&self, block: Block) -> usize {
        self.summand().parameters_in(block)
    }

    /// The same term with other parameters, as precise as its format holds them.
    ///
    /// # Errors
    /// When one is not finite, or larger than the format holds; when a scale of planes or of a trellis is negative.
    ///
    /// # Panics
    /// When there are not as many as [`parameters`](Self::parameters) gives.
    pub fn with_parameters(&self, parameters: &[f32]) -> Result<Self> {
        self.summand().with_parameters(parameters)
    }

    /// How the term is cut into blocks.
    pub(super) fn layout(&self) -> Layout {
        self.summand().layout()
    }

    /// The term times `2^exponent`, to the bit: positions, codes and F16 numbers stay.
    ///
    /// # Errors
    /// When its unit leaves what a payload may hold.
    pub fn times_power_of_two(&self, exponent: i32) -> Result<Self> {
        self.summand().times_power_of_two(exponent)
    }

    /// The first `limit` bit-planes of a term that has planes; `None` of another.
    ///
    /// # Errors
    /// When a scale of so few planes is larger than the format holds.
    pub fn first_planes(&self, limit: u8) -> Option<Result<Self>> {
        self.summand().first_planes(limit)
    }

    /// Adds `d <g, term> / d parameters` of one block to `gradient`, the block's parameters; `g` (`height x width`) is in
    /// the term's own [`domain`](Self::domain).
    pub fn add_gradient(&self, block: Block, g: &[f32], gradient: &mut [f32]) {
        assert_eq!(gradient.len(), self.parameters_in(block));
        self.summand().add_gradient(block, g, gradient);
    }

    /// Bytes this term takes in a payload as it is, not entropy coded.
    pub fn size_in_bytes(&self) -> usize {
        1 + self.summand().size_in_bytes()
    }

    /// Bytes this term takes in a payload, entropy coded where that is smaller: as slow as writing it.
    pub fn coded_size_in_bytes(&self) -> usize {
        1 + self.summand().coded().map_or_else(|| self.summand().size_in_bytes(), |coded| coded.len())
    }

    /// A few words for reports, such as `planes 4 bits`.
    pub fn summary(&self) -> String {
        self.summand().summary()
    }

    /// Writes the term as `compression` says.
    pub(super) fn write(&self, writer: &mut Writer, compression: Compression) {
        let coded = if compression == Compression::Entropy { self.summand().coded() } else { None };
        match coded {
            Some(coded) => {
                writer.u8(self.code() | CODED);
                writer.append(coded);
            }
            None => {
                writer.u8(self.code());
                self.summand().write(writer);
            }
        }
    }
}

/// An inner product in F64.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// The largest power of two that keeps 65504, F16's maximum, times 2^8 within F32: no decoded value overflows.
pub(crate) const LARGEST_UNIT: f32 = (1u128 << 103) as f32;

/// Whether F16 numbers may be multiplied by this: a power of two that is not too large.
pub(super) fn is_unit(unit: f32) -> bool {
    unit.is_normal() && unit > 0.0 && unit.to_bits() & 0x7f_ffff == 0 && unit <= LARGEST_UNIT
}

/// A unit times `2^exponent`.
///
/// # Errors
/// When it leaves what a payload may hold.
pub(super) fn scaled_unit(unit: f32, exponent: i32) -> Result<f32> {
    let scaled = f64::from(unit) * 2f64.powi(exponent);
    if !(f64::from(f32::MIN_POSITIVE)..=f64::from(LARGEST_UNIT)).contains(&scaled) {
        let reason =
            format!("a unit of {scaled:e}; it must lie between {:e} and {LARGEST_UNIT:e}", f32::MIN_POSITIVE);
        return Err(Error::config(reason));
    }
    Ok(scaled as f32)
}

/// The power of two by which F16 numbers are multiplied so that the largest magnitude lies in
/// `2^top .. 2^(top + 1)`: tiny weights do not fall into F16's subnormals, huge ones do not overflow. Magnitudes of
/// `2^(104 + top)` and more are above that; [`in_units`] knows which are too large.
pub(crate) fn unit_for(values: impl Iterator<Item = f32>, top: i32) -> f32 {
    let largest = values.fold(0f32, |largest, value| largest.max(value.abs()));
    if largest == 0.0 {
        return 1.0;
    }
    let exponent = f64::from(largest).log2().floor() as i32 - top;
    2f32.powi(exponent.clamp(-126, LARGEST_UNIT.log2() as i32))
}

/// Values as F16 numbers times a unit; `what` names one of them.
///
/// # Errors
/// When one is not finite or too large.
pub(super) fn in_units(values: &[f32], unit: f32, what: &str) -> Result<Vec<f16>> {
    let half = |(index, value): (usize, &f32)| {
        let half = f16::from_f32(value / unit);
        match half.is_finite() {
            true => Ok(half),
            false => Err(too_large(&format!("{what} {index}"), *value)),
        }
    };
    values.iter().enumerate().map(half).collect()
}

/// The error of a number that no unit makes an F16 of.
fn too_large(what: &str, value: f32) -> Error {
    let largest = f16::MAX.to_f32() * LARGEST_UNIT;
    Error::config(format!("{what} is {value:e}; it must be finite and at most {largest:e}"))
}

/// Scales as F16 numbers times the unit that suits them; `what` names one of them.
///
/// # Errors
/// When one is negative, not finite or too large.
pub(super) fn scales_in_units(scales: &[f32], what: &str) -> Result<(f32, Vec<f16>)> {
    if let Some(index) = scales.iter().position(|scale| *scale < 0.0) {
        return Err(Error::config(format!(
            "{what} {index} is {}; a scale cannot be negative",
            scales[index]
        )));
    }
    // A zero with a sign is one without.
    let scales: Vec<f32> = scales.iter().map(|scale| scale.abs()).collect();
    let unit = unit_for(scales.iter().copied().filter(|scale| scale.is_finite()), 7);
    Ok((unit, in_units(&scales, unit, what)?))
}

/// What payloads may hold as scales, and kernels rely on.
///
/// # Panics
/// When the unit or a scale is no such.
pub(super) fn expect_scales(what: &str, unit: f32, scales: impl IntoIterator<Item = f16>) {
    assert!(
        is_unit(unit),
        "the unit of the {what} is {unit:e}; it must be a power of two from 2^-126 to 2^103"
    );
    for scale in scales {
        assert!(
            scale.is_finite() && scale.is_sign_positive(),
            "a scale of the {what} is {scale}; it must be finite and have no sign"
        );
    }
}
