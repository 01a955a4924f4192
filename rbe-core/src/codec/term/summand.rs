//! What a term defines, whichever it is.

use crate::codec::bytes::{Reader, Writer};
use crate::codec::layout::{Block, Layout};
use crate::error::Result;
use std::ops::Range;

/// How terms are written. What is read is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    /// Each term as it is, or entropy coded where that takes fewer bytes.
    Entropy,
    /// Each term as it is.
    None,
}

/// What the parameters of a term are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterKind {
    /// Positive factors of what is quantised.
    Scales,
    /// Coefficients of the orthonormal transform: those of a random matrix are as large as its weights.
    Coefficients,
    /// Factors of smooth functions of the weights' place, near zero where weights are not smooth.
    Functions,
}

/// What a term's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// Weights themselves.
    Weights,
    /// Coefficients of the axes' transforms.
    Coefficients,
}

/// What defines a term: [`Term`](super::Term) states each method's contract where it is public.
pub(crate) trait Summand: Sized {
    /// Whether payloads hold it entropy coded too.
    const CAN_BE_CODED: bool = false;

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

    fn with_parameters(&self, parameters: &[f32]) -> Result<Self>;

    fn add_gradient(&self, block: Block, g: &[f32], gradient: &mut [f32]);

    fn times_power_of_two(&self, exponent: i32) -> Result<Self>;

    /// The coarser quantiser of the first planes, of a term that has planes.
    fn first_planes(&self, _limit: u8) -> Option<Result<Self>> {
        None
    }

    /// Reads what follows the term's code in a payload.
    fn read(reader: &mut Reader, layout: Layout, compression: Compression) -> Result<Self>;

    /// Bytes in a payload, the term's code not counted.
    fn size_in_bytes(&self) -> usize;

    fn summary(&self) -> String;

    fn write(&self, writer: &mut Writer);

    /// The term entropy coded, where it can be and is smaller so.
    fn coded(&self) -> Option<Writer> {
        None
    }
}

/// An inner product in F64.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
