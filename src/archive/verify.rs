//! A compressed model held against its original, tensor by tensor.

use super::{Archive, Entry, NonFinite, measure};
use crate::Result;
use crate::clock::Instant;
use rbe_core::codec::errors::{BlockRowErrors, Comparison};
use std::path::Path;

/// How far a measured relative error may lie from the recorded one: encoder and decoder round in F32, in different
/// orders.
const ERROR_TOLERANCE: f64 = 1e-3;

/// Errors below this are rounding: there is nothing to compare.
const ERROR_FLOOR: f64 = 1e-6;

/// One tensor of the two models.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct CheckedTensor {
    /// Its name.
    pub name: String,
    /// Whether it is compressed.
    pub compressed: bool,
    /// `|W - W^| / |W|`, measured now; absent for dense tensors, which must agree to the bit.
    pub relative_error: Option<f64>,
    /// The same as the encoder recorded it.
    pub recorded_error: Option<f64>,
    /// The row of the stored matrix with the largest error relative to itself, and that error; rows of zeros have none. Of a stack, in
    /// the matrix that has it.
    pub worst_row: Option<(usize, f64)>,
    /// The same of the blocks, counted in row-major order.
    pub worst_block: Option<(usize, f64)>,
    /// What may matter and is not wrong: a row or a block with more than three times the error of the whole.
    pub warning: Option<String>,
    /// Of a dense tensor, its values that are not finite. NaN is a problem; infinities may be meant, as in a mask.
    pub non_finite: Option<NonFinite>,
    /// What is wrong; absent where nothing is.
    pub problem: Option<String>,
}

/// Both models, compared.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Every tensor of either model, in the order of names.
    pub tensors: Vec<CheckedTensor>,
    /// How many of them have a problem.
    pub problems: usize,
    /// The largest relative error of any tensor.
    pub largest_relative_error: f64,
    /// `|W - W^| / |W|` over all compressed tensors together.
    pub relative_error: f64,
    /// Wall time.
    pub seconds: f64,
}

/// Checks every tensor of a compressed model: its checksum, its shape, its error against the original, and that no dense
/// one holds NaN.
///
/// What is wrong with a tensor is told in the report, so that one damaged tensor does not hide another; only files
/// that cannot be opened are errors.
pub fn verify(compressed: impl AsRef<Path>, original: impl AsRef<Path>) -> Result<VerifyReport> {
    let start = Instant::now();
    let compressed = Archive::open(compressed)?;
    let original = Archive::open(original)?;
    let mut report = VerifyReport {
        tensors: vec![],
        problems: 0,
        largest_relative_error: 0.0,
        relative_error: 0.0,
        seconds: 0.0,
    };
    let (mut squared_error, mut squared_norm) = (0.0, 0.0);
    for entry in compressed.entries() {
        let mut line = CheckedTensor {
            name: entry.name.clone(),
            compressed: entry.compressed,
            relative_error: None,
            recorded_error: None,
            worst_row: None,
            worst_block: None,
            warning: None,
            non_finite: NonFinite::of(&compressed, entry),
            problem: None,
        };
        match compare(&compressed, entry, &original) {
            Ok(None) => {}
            Ok(Some(measured)) => {
                let Measured { comparison, .. } = measured;
                line.relative_error = Some(comparison.relative_error());
                line.recorded_error = Some(measured.recorded_error);
                line.worst_row = comparison.worst_row;
                line.worst_block = comparison.worst_block;
                line.warning = comparison.warning();
                line.problem = measured.problem();
                report.largest_relative_error =
                    report.largest_relative_error.max(comparison.relative_error());
                squared_error += comparison.squared_error;
                squared_norm += comparison.squared_norm;
            }
            Err(problem) => line.problem = Some(problem),
        }
        if let (None, Some(found)) = (&line.problem, line.non_finite.as_ref().filter(|found| found.nan > 0)) {
            line.problem = Some(found.to_string());
        }
        report.tensors.push(line);
    }
    for entry in original.entries().filter(|entry| compressed.get(&entry.name).is_none()) {
        report.tensors.push(CheckedTensor {
            name: entry.name.clone(),
            compressed: false,
            relative_error: None,
            recorded_error: None,
            worst_row: None,
            worst_block: None,
            warning: None,
            non_finite: None,
            problem: Some(format!("is missing from {}", compressed.path().display())),
        });
    }
    report.tensors.sort_by(|a, b| a.name.cmp(&b.name));
    report.problems = report.tensors.iter().filter(|tensor| tensor.problem.is_some()).count();
    report.relative_error = ratio(squared_error, squared_norm);
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

struct Measured {
    comparison: Comparison,
    recorded_error: f64,
}

impl Measured {
    /// Both together.
    fn and(self, other: Self) -> Self {
        let (a, b) = (&self.comparison, &other.comparison);
        let recorded = |part: &Self| part.recorded_error.powi(2) * part.comparison.squared_norm;
        let worst = |a: Option<(usize, f64)>, b: Option<(usize, f64)>| {
            a.into_iter().chain(b).max_by(|a, b| a.1.total_cmp(&b.1))
        };
        let comparison = Comparison {
            squared_error: a.squared_error + b.squared_error,
            squared_norm: a.squared_norm + b.squared_norm,
            worst_row: worst(a.worst_row, b.worst_row),
            worst_block: worst(a.worst_block, b.worst_block),
        };
        let recorded_error = ratio(recorded(&self) + recorded(&other), comparison.squared_norm);
        Self { comparison, recorded_error }
    }

    fn problem(&self) -> Option<String> {
        let (measured, recorded) = (self.comparison.relative_error(), self.recorded_error);
        // Written so that a NaN on either side is a problem too.
        let agree = (measured - recorded).abs() <= ERROR_TOLERANCE * recorded + ERROR_FLOOR;
        (!agree).then(|| format!("has a relative error of {measured:.3e}, and {recorded:.3e} is recorded"))
    }
}

fn ratio(squared_error: f64, squared_norm: f64) -> f64 {
    if squared_error == 0.0 { 0.0 } else { (squared_error / squared_norm).sqrt() }
}

/// The error of one tensor, `None` for a dense one that is the same; or what is wrong with it.
fn compare(compressed: &Archive, entry: &Entry, original: &Archive) -> Result<Option<Measured>, String> {
    let Some(before) = original.get(&entry.name) else {
        return Err(format!("is not in {}", original.path().display()));
    };
    if before.compressed {
        return Err("is compressed in the original too; give the dense model".into());
    }
    if before.shape != entry.shape || before.dtype != entry.dtype {
        return Err(format!(
            "is {} of shape {:?}, and was {} of shape {:?}",
            entry.dtype, entry.shape, before.dtype, before.shape
        ));
    }
    if !entry.compressed {
        return match compressed.bytes(entry) == original.bytes(before) {
            true => Ok(None),
            false => Err("differs from the original, and is not compressed".into()),
        };
    }
    let mut whole: Option<Measured> = None;
    for index in 0..entry.parts() {
        let part = compare_part((compressed, entry), (original, before), index)?;
        if let Some(problem) = part.problem().filter(|_| entry.stacked) {
            return Err(format!("matrix {index} {problem}"));
        }
        whole = Some(match whole {
            None => part,
            Some(whole) => whole.and(part),
        });
    }
    Ok(whole)
}

fn compare_part(
    (compressed, entry): (&Archive, &Entry),
    (original, before): (&Archive, &Entry),
    index: usize,
) -> Result<Measured, String> {
    let text = |error: crate::Error| error.to_string();
    let tensor = compressed.part(entry, index).map_err(text)?;
    // As the matrix is stored: its rows are those that share nothing with one another.
    let transposed = tensor.is_transposed();
    let stored = if transposed { tensor.t().map_err(text)? } else { tensor.clone() };
    let decoded = stored.dequantize().map_err(text)?;
    let decoded = decoded.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).map_err(|e| e.to_string())?;
    let (bytes, layout) = (original.part_bytes(before, index), tensor.layout());
    let (rows, cols) = (layout.rows(), layout.cols());
    let value = |row: usize, col: usize| {
        let index = if transposed { col * rows + row } else { row * cols + col };
        measure::value(bytes, before.dtype, index)
    };
    let block_rows: Vec<_> = (0..layout.block_rows())
        .map(|i| {
            let rows = layout.row_range(i);
            BlockRowErrors::new(layout, i, value, &decoded[rows.start * cols..rows.end * cols])
        })
        .collect();
    Ok(Measured { comparison: Comparison::new(&block_rows), recorded_error: tensor.relative_error() })
}
