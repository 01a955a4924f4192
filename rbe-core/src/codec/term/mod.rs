//! The terms of the sum. A new term is one new file here, one line in each `match` below, and one file per
//! back-end.

pub mod basis;
pub mod planes;
pub mod sparse;
pub mod trellis;

pub use basis::Basis;
pub use planes::Planes;
pub use sparse::Sparse;
pub use trellis::Trellis;

use super::layout::{Block, Layout};
use super::payload::{Compression, Reader, Writer};
use crate::error::{Error, Result};
use half::f16;
use std::ops::Range;

/// One summand of a compressed matrix.
#[derive(Clone, Debug, PartialEq)]
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

    /// What the numbers of [`parameters`](Self::parameters) are called.
    pub fn name(&self) -> &'static str {
        match self {
            Term::Basis(_) => "basis",
            Term::Sparse(_) => "sparse",
            Term::Planes(_) => "planes",
            Term::Trellis(_) => "trellis",
        }
    }

    /// The numbers in which this term is linear, block after block: the basis functions' parameters, the sparse
    /// coefficients in row-major order, the scales of planes (of rows) and scale groups. Positions and codes are fixed.
    pub fn parameters(&self) -> Vec<f32> {
        match self {
            Term::Basis(basis) => basis.parameters(),
            Term::Sparse(sparse) => {
                let layout = sparse.layout();
                layout
                    .iter()
                    .flat_map(|block| sparse.entries(block).into_iter().map(|entry| entry.value))
                    .collect()
            }
            Term::Planes(planes) => {
                planes.scales().iter().map(|scale| scale.to_f32() * planes.unit()).collect()
            }
            Term::Trellis(trellis) => trellis.scales(),
        }
    }

    /// How many of the parameters are a block's.
    pub fn parameters_in(&self, block: Block) -> usize {
        match self {
            Term::Basis(_) => basis::FUNCTIONS,
            Term::Sparse(sparse) => sparse.count(block),
            Term::Planes(planes) => planes.group().scales_in(block),
            Term::Trellis(_) => block.width.div_ceil(trellis::GROUP_COLS),
        }
    }

    /// The same term with other parameters, as precise as its format holds them.
    ///
    /// # Errors
    /// When one is not finite, or larger than the format holds; when a scale of planes or of a trellis is negative.
    ///
    /// # Panics
    /// When there are not as many as [`parameters`](Self::parameters) gives.
    pub fn with_parameters(&self, parameters: &[f32]) -> Result<Self> {
        Ok(match self {
            Term::Basis(basis) => Term::Basis(basis.with_parameters(parameters)?),
            Term::Sparse(sparse) => Term::Sparse(sparse.with_values(parameters)?),
            Term::Planes(planes) => Term::Planes(planes.with_scales(parameters)?),
            Term::Trellis(trellis) => Term::Trellis(trellis.with_scales(parameters)?),
        })
    }

    /// How the term is cut into blocks.
    pub(super) fn layout(&self) -> Layout {
        match self {
            Term::Basis(basis) => basis.layout(),
            Term::Sparse(sparse) => sparse.layout(),
            Term::Planes(planes) => planes.layout(),
            Term::Trellis(trellis) => trellis.layout(),
        }
    }

    /// The term times `2^exponent`, to the bit: positions, codes and F16 numbers stay.
    ///
    /// # Errors
    /// When its unit leaves what a payload may hold.
    pub fn times_power_of_two(&self, exponent: i32) -> Result<Self> {
        Ok(match self {
            Term::Basis(basis) => Term::Basis(basis.times_power_of_two(exponent)?),
            Term::Sparse(sparse) => Term::Sparse(sparse.times_power_of_two(exponent)?),
            Term::Planes(planes) => Term::Planes(planes.times_power_of_two(exponent)?),
            Term::Trellis(trellis) => Term::Trellis(trellis.times_power_of_two(exponent)?),
        })
    }

    /// Adds `d <g, term> / d parameters` of one block to `gradient`, the block's parameters; `g` (`height x width`) is in
    /// the term's own [`domain`](Self::domain).
    pub fn add_gradient(&self, block: Block, g: &[f32], gradient: &mut [f32]) {
        assert_eq!(gradient.len(), self.parameters_in(block));
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        match self {
            Term::Basis(basis) => {
                gradient.iter_mut().zip(basis.gradient(block, g)).for_each(|(sum, d)| *sum += d);
            }
            Term::Sparse(sparse) => {
                let mut sums = gradient.iter_mut();
                sparse.for_each(block, 0..block.height, |row, col, _| {
                    if let Some(sum) = sums.next() {
                        *sum += g[row * block.width + col];
                    }
                });
            }
            Term::Planes(planes) => {
                let per_scale = block.height / gradient.len();
                let mut levels = vec![0.0; block.width];
                for (row, g) in g.chunks_exact(block.width).enumerate() {
                    planes.levels(block, row, planes::MAX_PLANES, &mut levels);
                    gradient[row / per_scale] += 0.5 * dot(g, &levels) as f32;
                }
            }
            Term::Trellis(trellis) => {
                for col in 0..block.width {
                    let Some((column, _)) = trellis.column(block, col) else { continue };
                    let product =
                        |row: usize| f64::from(g[row * block.width + col]) * f64::from(column.value(row));
                    gradient[col / trellis::GROUP_COLS] += (0..block.height).map(product).sum::<f64>() as f32;
                }
            }
        }
    }

    /// Bytes this term takes in a payload as it is, not entropy coded.
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

    /// Bytes this term takes in a payload, entropy coded where that is smaller. It takes as long to know as to do.
    pub fn coded_size_in_bytes(&self) -> usize {
        match self {
            Term::Sparse(sparse) => 1 + sparse.coded_size_in_bytes(),
            Term::Planes(planes) => 1 + planes.coded_size_in_bytes(),
            _ => self.size_in_bytes(),
        }
    }

    /// Writes the term as `compression` says.
    pub(super) fn write(&self, writer: &mut Writer, compression: Compression) {
        // The bits of a trellis are as good as random, the parameters of a basis few.
        let coded = match (compression, self) {
            (Compression::Entropy, Term::Sparse(sparse)) => sparse.coded(),
            (Compression::Entropy, Term::Planes(planes)) => planes.coded(),
            _ => None,
        };
        if let Some(coded) = coded {
            writer.u8(self.code() | CODED);
            return writer.append(coded);
        }
        writer.u8(self.code());
        match self {
            Term::Basis(basis) => basis.write(writer),
            Term::Sparse(sparse) => {
                sparse.write_head(writer);
                sparse.write_entries(writer);
            }
            Term::Planes(planes) => {
                planes.write_head(writer);
                planes.write_planes(writer);
            }
            Term::Trellis(trellis) => trellis.write(writer),
        }
    }

    pub(super) fn read(reader: &mut Reader, layout: Layout) -> Result<Self> {
        match reader.u8("term code")? {
            1 => Basis::read(reader, layout).map(Term::Basis),
            2 => Sparse::read_head(reader, layout)?.read_entries(reader).map(Term::Sparse),
            SPARSE_CODED => Sparse::read_head(reader, layout)?.read_coded(reader).map(Term::Sparse),
            3 => Planes::read_head(reader, layout)?.read_planes(reader).map(Term::Planes),
            PLANES_CODED => Planes::read_head(reader, layout)?.read_coded(reader).map(Term::Planes),
            4 => Trellis::read(reader, layout).map(Term::Trellis),
            other => Err(Error::payload(format!("unknown term {other}; it was written by a newer version"))),
        }
    }
}

/// This bit of a term's code says that what follows the term's head is entropy coded.
const CODED: u8 = 0x80;
const SPARSE_CODED: u8 = 2 | CODED;
const PLANES_CODED: u8 = 3 | CODED;

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
