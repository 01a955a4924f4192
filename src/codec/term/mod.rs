//! The terms of the sum. A new term is one new file here, one line in each `match` below, and one file per
//! back-end.

pub mod planes;
pub mod sparse;
pub mod trellis;

pub use super::basis::Basis;
pub use planes::Planes;
pub use sparse::Sparse;
pub use trellis::Trellis;

use super::layout::{Block, Layout};
use super::payload::{Reader, Writer};
use crate::error::{Error, Result};
use std::ops::Range;

/// One summand of a compressed matrix.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Term {
    /// Eight smooth functions per block, in the weight domain.
    Basis(Basis),
    /// The largest coefficients, in bit fields.
    Sparse(Sparse),
    /// Every coefficient, as bit-planes.
    Planes(Planes),
    /// Every coefficient, trellis-coded.
    Trellis(Trellis),
}

/// What a term's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// Weights themselves.
    Weights,
    /// Coefficients of the axes' transforms.
    Coefficients,
}

impl Term {
    /// The domain that [`add_rows`](Self::add_rows) adds in.
    pub fn domain(&self) -> Domain {
        match self {
            Term::Basis(_) => Domain::Weights,
            Term::Sparse(_) | Term::Planes(_) | Term::Trellis(_) => Domain::Coefficients,
        }
    }

    /// Adds this term's share of rows of a block to `out` (`rows.len() x block.width`, row-major).
    pub fn add_rows(&self, block: Block, rows: Range<usize>, out: &mut [f32]) {
        match self {
            Term::Basis(basis) => basis.add_rows(block, rows, out),
            Term::Sparse(sparse) => sparse.add_rows(block, rows, out),
            Term::Planes(planes) => planes.add_rows(block, rows, out),
            Term::Trellis(trellis) => trellis.add_rows(block, rows, out),
        }
    }

    /// Bytes this term takes in a payload.
    pub fn size_in_bytes(&self) -> usize {
        1 + match self {
            Term::Basis(basis) => basis.size_in_bytes(),
            Term::Sparse(sparse) => sparse.size_in_bytes(),
            Term::Planes(planes) => planes.size_in_bytes(),
            Term::Trellis(trellis) => trellis.size_in_bytes(),
        }
    }

    /// A few words for reports, such as `planes 4 bits`.
    pub fn summary(&self) -> String {
        match self {
            Term::Basis(basis) => basis.summary(),
            Term::Sparse(sparse) => sparse.summary(),
            Term::Planes(planes) => planes.summary(),
            Term::Trellis(trellis) => trellis.summary(),
        }
    }

    /// The code of this term in a payload.
    pub(super) fn code(&self) -> u8 {
        match self {
            Term::Basis(_) => 1,
            Term::Sparse(_) => 2,
            Term::Planes(_) => 3,
            Term::Trellis(_) => 4,
        }
    }

    pub(super) fn write(&self, writer: &mut Writer) {
        writer.u8(self.code());
        match self {
            Term::Basis(basis) => basis.write(writer),
            Term::Sparse(sparse) => sparse.write(writer),
            Term::Planes(planes) => planes.write(writer),
            Term::Trellis(trellis) => trellis.write(writer),
        }
    }

    pub(super) fn read(reader: &mut Reader, layout: Layout) -> Result<Self> {
        match reader.u8("term code")? {
            1 => Basis::read(reader, layout).map(Term::Basis),
            2 => Sparse::read(reader, layout).map(Term::Sparse),
            3 => Planes::read(reader, layout).map(Term::Planes),
            4 => Trellis::read(reader, layout).map(Term::Trellis),
            other => Err(Error::payload(format!("unknown term {other}; it was written by a newer version"))),
        }
    }
}

/// The power of two by which F16 numbers are multiplied so that the largest magnitude lies in
/// `2^top .. 2^(top + 1)`: tiny weights do not fall into F16's subnormals, huge ones do not overflow.
pub(crate) fn unit_for(values: impl Iterator<Item = f32>, top: i32) -> f32 {
    let largest = values.fold(0f32, |largest, value| largest.max(value.abs()));
    if largest == 0.0 {
        return 1.0;
    }
    let exponent = f64::from(largest).log2().floor() as i32 - top;
    2f32.powi(exponent.clamp(-126, 127))
}
