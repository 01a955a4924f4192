//! How far a decoded matrix lies from its original: as a whole, in its worst row and in its worst block.
//!
//! An error over the whole hides one that destroys a part: a row of 32,000 that became zero is 0.6 % of the error. So rows and
//! blocks are measured too, each relative to its own norm.

use super::layout::Layout;

/// How many times the error of the matrix a row's or a block's may be before it is worth a word.
const UNEVEN: f32 = 3.0;

/// The errors that a payload records: what its encoder measured by decoding.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Errors {
    /// `|W - W^| / |W|` in the Frobenius norm.
    pub relative: f32,
    /// The largest `|w - w^| / |w|` of a row `w` of the stored matrix, rows of zeros left out; 0 where it is not known.
    pub worst_row: f32,
    /// The same of a block.
    pub worst_block: f32,
}

impl From<f32> for Errors {
    /// The error of the whole, of which no more is known.
    fn from(relative: f32) -> Self {
        Self { relative, ..Self::default() }
    }
}

impl Errors {
    /// Whether a payload may record them: finite, none of them negative.
    pub fn are_valid(&self) -> bool {
        [self.relative, self.worst_row, self.worst_block]
            .iter()
            .all(|error| error.is_finite() && *error >= 0.0)
    }

    /// A sentence where a row or a block has more than three times the matrix's error.
    pub fn warning(&self) -> Option<String> {
        let (what, error) = match (self.has_a_bad_row(), self.has_a_bad_block()) {
            (true, _) => ("row", self.worst_row),
            (false, true) => ("block", self.worst_block),
            (false, false) => return None,
        };
        Some(format!(
            "has a {what} with a relative error of {error:.3}, and one of {:.3} as a whole",
            self.relative
        ))
    }

    /// Whether a row has more than three times the matrix's error: its weights are much smaller than those it shares scales
    /// with, or they were lost.
    pub fn has_a_bad_row(&self) -> bool {
        self.worst_row > UNEVEN * self.relative
    }

    /// Whether a block has more than three times the matrix's error.
    pub fn has_a_bad_block(&self) -> bool {
        self.worst_block > UNEVEN * self.relative
    }
}

/// A sum of squared errors and one of the squares that they are of.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    error: f64,
    energy: f64,
}

impl Part {
    fn add(&mut self, other: Part) {
        self.error += other.error;
        self.energy += other.energy;
    }

    /// Relative to its own norm; nothing of zeros.
    fn relative(self) -> Option<f64> {
        (self.energy > 0.0).then(|| (self.error / self.energy).sqrt())
    }
}

/// One block row, compared.
#[derive(Clone, Debug)]
pub struct BlockRowErrors {
    rows: Vec<Part>,
    blocks: Vec<Part>,
}

impl BlockRowErrors {
    /// Compares block row `i`, decoded into `(rows of the block row, cols)`, with `original(row, col)`.
    pub fn new(layout: Layout, i: usize, original: impl Fn(usize, usize) -> f64, decoded: &[f32]) -> Self {
        let mut blocks = vec![Part::default(); layout.block_cols()];
        let rows = layout.row_range(i).zip(decoded.chunks_exact(layout.cols())).map(|(row, decoded)| {
            let mut whole = Part::default();
            for (cols, block) in layout.col_cut().iter().zip(&mut blocks) {
                let mut part = Part::default();
                for col in cols {
                    let value = original(row, col);
                    part.error += (value - f64::from(decoded[col])).powi(2);
                    part.energy += value * value;
                }
                block.add(part);
                whole.add(part);
            }
            whole
        });
        let rows = rows.collect();
        Self { rows, blocks }
    }
}

/// The relative error of each row of some block rows one after another; `None` of zeros.
pub fn row_errors(block_rows: &[BlockRowErrors]) -> Vec<Option<f64>> {
    block_rows.iter().flat_map(|band| &band.rows).map(|part| part.relative()).collect()
}

/// A matrix compared with its original.
#[derive(Clone, Copy, Debug)]
pub struct Comparison {
    /// `|W - W^|^2`.
    pub squared_error: f64,
    /// `|W|^2`.
    pub squared_norm: f64,
    /// The row with the largest relative error, and that error; none in a matrix of zeros.
    pub worst_row: Option<(usize, f64)>,
    /// The same of the blocks, in row-major order.
    pub worst_block: Option<(usize, f64)>,
}

impl Comparison {
    /// All block rows, in their order.
    pub fn new(block_rows: &[BlockRowErrors]) -> Self {
        let worst = |parts: &mut dyn Iterator<Item = Part>| {
            let errors = parts.enumerate().filter_map(|(n, part)| Some((n, part.relative()?)));
            errors.max_by(|a, b| a.1.total_cmp(&b.1))
        };
        let mut all = Part::default();
        block_rows.iter().flat_map(|band| &band.rows).for_each(|part| all.add(*part));
        Self {
            squared_error: all.error,
            squared_norm: all.energy,
            worst_row: worst(&mut block_rows.iter().flat_map(|band| band.rows.iter().copied())),
            worst_block: worst(&mut block_rows.iter().flat_map(|band| band.blocks.iter().copied())),
        }
    }

    /// `|W - W^| / |W|`; 0 without an error.
    pub fn relative_error(&self) -> f64 {
        if self.squared_error == 0.0 { 0.0 } else { (self.squared_error / self.squared_norm).sqrt() }
    }

    /// A sentence where a row or a block has much more than the matrix's error.
    pub fn warning(&self) -> Option<String> {
        let (errors, whole) = (self.errors(), self.relative_error());
        let text = |what: &str, (n, error): (usize, f64)| {
            format!("{what} {n} has a relative error of {error:.3}, the whole one of {whole:.3}")
        };
        let row = self.worst_row.filter(|_| errors.has_a_bad_row()).map(|worst| text("row", worst));
        row.or(self.worst_block.filter(|_| errors.has_a_bad_block()).map(|worst| text("block", worst)))
    }

    /// As a payload records them.
    pub fn errors(&self) -> Errors {
        let finite = |error: f64| (error as f32).min(f32::MAX);
        let of = |worst: Option<(usize, f64)>| worst.map_or(0.0, |(_, error)| finite(error));
        Errors {
            // Of zeros nothing is lost, and what is made of them has no measure.
            relative: if self.squared_norm > 0.0 { finite(self.relative_error()) } else { 0.0 },
            worst_row: of(self.worst_row),
            worst_block: of(self.worst_block),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(layout: Layout, original: &[f64], decoded: &[f32]) -> Comparison {
        let cols = layout.cols();
        let bands: Vec<_> = (0..layout.block_rows())
            .map(|i| {
                let rows = layout.row_range(i);
                let decoded = &decoded[rows.start * cols..rows.end * cols];
                BlockRowErrors::new(layout, i, |row, col| original[row * cols + col], decoded)
            })
            .collect();
        Comparison::new(&bands)
    }

    #[test]
    fn a_lost_row_is_seen_however_many_there_are() {
        let layout = Layout::new(1000, 40, 32).unwrap();
        let original: Vec<f64> = (0..40_000).map(|n| 1.0 + (n % 7) as f64).collect();
        let mut decoded: Vec<f32> = original.iter().map(|value| *value as f32 * 1.01).collect();
        decoded[700 * 40..701 * 40].fill(0.0);
        let comparison = compare(layout, &original, &decoded);
        let errors = comparison.errors();
        assert_eq!(comparison.worst_row, Some((700, 1.0)));
        assert!(errors.relative < 0.035 && errors.has_a_bad_row(), "{errors:?}");
        // The row is one of 32 in a block that is as wide as the matrix.
        assert_eq!(comparison.worst_block.unwrap().0, 700 / 32);
        assert!((errors.worst_block - (1.0f32 / 32.0).sqrt()).abs() < 0.01 && errors.has_a_bad_block());
    }

    #[test]
    fn zeros_have_no_relative_error() {
        let layout = Layout::new(40, 40, 32).unwrap();
        let mut original = vec![0.0; 1600];
        assert_eq!(compare(layout, &original, &[0.5; 1600]).errors(), Errors::default());
        original[3] = 1.0;
        let comparison = compare(layout, &original, &[0.0; 1600]);
        assert_eq!((comparison.worst_row, comparison.relative_error()), (Some((0, 1.0)), 1.0));
        assert!(!comparison.errors().has_a_bad_row());
    }
}
