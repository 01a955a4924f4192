//! Which scales of rows and columns a matrix gets.
//!
//! Noise of one size in all of `N = D_r^-1 W D_c^-1` is `r_i c_j` in `W`. Where the error of column `j` weighs `H_j` and that of
//! row `i` `G_i`, it costs `sum_j H_j c_j^2 * sum_j W_j / c_j^2` for columns whose squares sum to `W_j`, and likewise for rows: least at
//! `c_j^4 ~ W_j / H_j` (Cauchy and Schwarz). `H_j` is the mean square of input `j` where it is known, else 1.
//!
//! | | rows | columns |
//! |---|---|---|
//! | of a projection, inputs known | `W_i^(1/4)`, of the smallest the root | `(W_j / H_j)^(1/4)`, `W_j` summed over all layers of the same input |
//! | of a projection, weights alone | `W_i^(1/4)` | `W_j^(1/4)`, likewise |
//! | of a token table or head, a row being a token | `W_i^(1/2)` | `(W_j / H_j)^(1/4)` of a head, else none |
//!
//! A table's rows are outputs or inputs of their own: each is to be as good as the others, whatever its norm.

use super::calibrate::LayerStatistics;
use super::matrix_ref::MatrixRef;
use crate::codec::AxisScales;
#[cfg(doc)]
use crate::codec::errors::Errors;
use rayon::prelude::*;

/// Scales that a matrix is to have in front of a trellis or planes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scaling {
    /// Those of rows, found as the matrix is encoded; `None` for none.
    pub rows: Option<RowScales>,
    /// Those of columns. Layers that share an input share its transform only where these are the same.
    pub cols: Option<AxisScales>,
}

/// By what power of its root mean square a row is scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowScales {
    /// By the square root: the least error of the whole matrix.
    SquareRoot,
    /// By itself: the same relative error of every row.
    Full,
}

/// Bits of a scale in a payload, and of a step.
const SCALE_BITS: f64 = 4.0;
const STEP_BITS: f64 = 8.0;

/// Scales of columns with these sums of squares over `rows` rows in all and, where they are known, these mean squares of the
/// inputs; `None` where they cost more bits than they save.
///
/// # Panics
/// When the slices differ in length.
pub fn column_scales(squares: &[f64], inputs: Option<&[f64]>, rows: usize) -> Option<AxisScales> {
    let even = vec![1.0; squares.len()];
    axis_scales(squares, inputs.unwrap_or(&even), rows)
}

/// The scales `(W / H)^(1/4)` of one axis, across which there are `others`; `None` where they do not pay.
fn axis_scales(squares: &[f64], weights: &[f64], others: usize) -> Option<AxisScales> {
    assert_eq!(squares.len(), weights.len());
    // What is never seen is as good as seen a little.
    let floor = FLOOR * weights.iter().sum::<f64>() / weights.len() as f64;
    let pairs = || squares.iter().zip(weights).map(|(square, weight)| (*square, weight.max(floor)));
    let root: f64 = pairs().map(|(square, weight)| (square * weight).sqrt()).sum();
    let (all, weight) = pairs().fold((0.0, 0.0), |sums, (s, w)| (sums.0 + s, sums.1 + w));
    let octaves: Vec<f64> = pairs().map(|(square, weight)| 0.25 * (square / weight).log2()).collect();
    if_they_pay(&octaves, -0.5 * (root * root / (all * weight)).log2(), others)
}

/// The scales `W^(1/4)` of rows, but no more than is right for the row's own error: with noise of one size in all of `N` that is as the
/// scale to the row's size in `W` itself, before the columns' scales (`own`), and is kept at [`WORST`]. Where a row would lose
/// [`UNEVEN`] without scales, they are there whatever they save.
fn row_scales(squares: &[f64], own: &[f64], others: usize) -> Option<AxisScales> {
    let sizes = |squares: &[f64]| -> Vec<f64> {
        let mean = squares.iter().sum::<f64>() / squares.len() as f64;
        squares.iter().map(|square| 0.5 * (square / mean).log2()).collect()
    };
    let own = sizes(own);
    let scales = sizes(squares).into_iter().zip(&own);
    let octaves: Vec<f64> = scales.map(|(size, own)| (0.5 * size).min(own + WORST)).collect();
    if own.iter().any(|size| size.is_finite() && *size < -UNEVEN) {
        return from_octaves(&octaves);
    }
    let (count, sum) = (squares.len() as f64, squares.iter().sum::<f64>());
    let root: f64 = squares.iter().map(|square| square.sqrt()).sum();
    if_they_pay(&octaves, -0.5 * (root * root / (sum * count)).log2(), others)
}

/// The roots of these mean squares, with which every row has the same relative error: they save what the rows' geometric mean is
/// below the arithmetic one.
fn full_scales(squares: &[f64], others: usize) -> Option<AxisScales> {
    let octaves: Vec<f64> = squares.iter().map(|square| 0.5 * square.log2()).collect();
    let known: Vec<f64> = octaves.iter().copied().filter(|octave| octave.is_finite()).collect();
    let (mean, count) = (squares.iter().sum::<f64>() / squares.len() as f64, known.len() as f64);
    if_they_pay(&octaves, 0.5 * mean.log2() - known.iter().sum::<f64>() / count, others)
}

/// Scales by their logarithms, where the bits that each saves of every weight are more than it takes. A factor of four in the
/// squared error is worth a bit a weight.
fn if_they_pay(octaves: &[f64], saved: f64, others: usize) -> Option<AxisScales> {
    let pays = saved * others as f64 > SCALE_BITS + STEP_BITS / octaves.len() as f64;
    if pays { from_octaves(octaves) } else { None }
}

/// Scales by their logarithms.
fn from_octaves(octaves: &[f64]) -> Option<AxisScales> {
    // A few that lie far off would make the steps of all coarse.
    let middle = middle(octaves);
    let near = |octave: &f64| octave.clamp(middle - FARTHEST, middle + FARTHEST);
    // The logarithm of nothing stays: there is no scale for it.
    let scale = |octave: &f64| if octave.is_finite() { near(octave).exp2() as f32 } else { 0.0 };
    AxisScales::new(&octaves.iter().map(scale).collect::<Vec<_>>())
}

/// The mean of those that there are.
fn middle(octaves: &[f64]) -> f64 {
    let finite = || octaves.iter().copied().filter(|octave| octave.is_finite());
    finite().sum::<f64>() / finite().count() as f64
}

/// The least weight of an error, as a part of the mean weight.
const FLOOR: f64 = 1e-4;
/// How many octaves the relative error of a row is above the matrix' at most, and from where on rows are scaled for it: what is said of
/// a row begins at three times ([`Errors::warning`]).
const WORST: f64 = 1.0;
const UNEVEN: f64 = 1.5;
/// How many octaves a scale is from the middle at most: 15 steps for twice as many leave it a seventh off at most.
const FARTHEST: f64 = 3.0;

/// How many times the error of the matrix that of a mended row is to be. What is [said](Errors::warning) of a row begins at three;
/// those that are nearly there would come out worse the next time by chance.
const GOOD: f64 = 1.5;
/// Octaves that are worth another search.
const WORTH: f64 = 0.2;

/// Scales of one side or of both.
#[derive(Clone)]
pub(super) struct Scales {
    pub rows: Option<AxisScales>,
    pub cols: Option<AxisScales>,
}

impl Scales {
    /// Those of a matrix; `None` where there are none.
    pub(super) fn new(scaling: &Scaling, weights: MatrixRef) -> Option<Self> {
        let col_scales = scaling.cols.as_ref().map(AxisScales::values);
        let squares = |col_scales: &Option<Vec<f32>>| -> Vec<f64> {
            let scale = |col: usize| f64::from(col_scales.as_ref().map_or(1.0, |scales| scales[col]));
            let squares = |row: &[f32]| {
                row.iter().enumerate().map(|(col, value)| (f64::from(*value) / scale(col)).powi(2)).sum()
            };
            (0..weights.rows()).map(|row| squares(weights.row(row))).collect()
        };
        let own = || squares(&None);
        let rows = scaling.rows.and_then(|power| {
            // Of what the columns' scales leave.
            let squares = squares(&col_scales);
            match power {
                RowScales::SquareRoot => row_scales(&squares, &own(), weights.cols()),
                RowScales::Full => full_scales(&squares, weights.cols()),
            }
        });
        let scales = Self { rows, cols: scaling.cols.clone() };
        (scales.rows.is_some() || scales.cols.is_some()).then_some(scales)
    }

    /// The same with smaller ones of rows that came out too bad beside the others, with these errors where that of all is `whole`; `None` where
    /// none did whose scale may be smaller.
    pub(super) fn mended(&self, row_errors: &[Option<f64>], whole: f64) -> Option<Self> {
        let rows = self.rows.as_ref().map_or_else(|| vec![1.0; row_errors.len()], AxisScales::values);
        let mut octaves: Vec<f64> = rows.iter().map(|scale| f64::from(*scale).log2()).collect();
        let least = middle(&octaves) - FARTHEST;
        let mut any = false;
        for (octave, error) in octaves.iter_mut().zip(row_errors) {
            let times = error.map_or(0.0, |error| error / whole);
            let mended = (*octave - (times / GOOD).log2()).max(least);
            if mended < *octave - WORTH {
                *octave = mended;
                any = true;
            }
        }
        let rows = any.then(|| from_octaves(&octaves))??;
        Some(Self { rows: Some(rows), cols: self.cols.clone() })
    }

    /// What they take in a payload.
    pub(super) fn bits(&self) -> usize {
        [&self.rows, &self.cols].into_iter().flatten().map(|scales| 8 * scales.size_in_bytes()).sum()
    }

    /// Statistics of the layer whose weight is what is left to be coded.
    pub(super) fn scaled(&self, statistics: &LayerStatistics) -> LayerStatistics {
        let values = |scales: &Option<AxisScales>| scales.as_ref().map(AxisScales::values);
        statistics.scaled(values(&self.rows).as_deref(), values(&self.cols).as_deref())
    }

    /// The matrix that is left to be coded.
    pub(super) fn even(&self, weights: MatrixRef) -> Vec<f32> {
        let (row_scales, col_scales) = (self.rows.as_ref(), self.cols.as_ref());
        let row_scales = row_scales.map(AxisScales::values);
        let col_scales = col_scales.map_or_else(|| vec![1.0; weights.cols()], AxisScales::values);
        let mut even = weights.values().to_vec();
        even.par_chunks_exact_mut(weights.cols()).enumerate().for_each(|(row, values)| {
            let scale = row_scales.as_ref().map_or(1.0, |scales| scales[row]);
            values.iter_mut().zip(&col_scales).for_each(|(value, own)| *value /= scale * own);
        });
        even
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix whose rows have the scales `2^(n / 16)`, otherwise of ones.
    fn stairs(rows: usize, cols: usize) -> Vec<f32> {
        (0..rows * cols).map(|n| ((n / cols) as f32 / 16.0).exp2()).collect()
    }

    #[test]
    fn columns_follow_the_weights_and_what_they_meet() {
        // Sixteen times the squares, or a sixteenth of the inputs' squares: twice the scale.
        let squares: Vec<f64> = (0..64).map(|n| if n % 2 == 0 { 1.0 } else { 16.0 }).collect();
        let inverse: Vec<f64> = squares.iter().map(|square| square.recip()).collect();
        let even = vec![1.0; 64];
        for (squares, inputs) in [(&squares, None), (&even, Some(&inverse[..]))] {
            let scales = column_scales(squares, inputs, 64).unwrap().values();
            assert!((scales[1] / scales[0] - 2.0).abs() < 0.05, "{scales:?}");
        }
        // Columns that are larger as their inputs are: each is as exact as it should be.
        assert_eq!(column_scales(&squares, Some(&squares), 64), None);
        // Two rows save less than the scales take.
        assert_eq!(column_scales(&squares, None, 2), None);
        // An input that is never seen has a scale all the same.
        let unseen: Vec<f64> = (0..64).map(|n| f64::from(n > 0)).collect();
        let scales = column_scales(&squares, Some(&unseen), 64).unwrap().values();
        assert!(scales.iter().all(|scale| (0.1..10.0).contains(scale)), "{scales:?}");
    }

    #[test]
    fn rows_are_scaled_by_their_size_or_its_root() {
        let values: Vec<f32> = stairs(64, 48).into_iter().map(f32::sqrt).collect();
        for (power, octaves) in [(RowScales::SquareRoot, 1.0), (RowScales::Full, 2.0)] {
            let scaling = Scaling { rows: Some(power), cols: None };
            let scales = Scales::new(&scaling, MatrixRef::new(&values, values.len() / 48, 48)).unwrap();
            let rows = scales.rows.as_ref().unwrap().values();
            assert!(((rows[63] / rows[0]).log2() - octaves * 63.0 / 64.0).abs() < 0.2, "{power:?}");
            let even = scales.even(MatrixRef::new(&values, values.len() / 48, 48));
            assert_eq!(even[48 * 7 + 3], values[48 * 7] / rows[7]);
        }
        let even = vec![1.0; 64 * 48];
        assert!(
            Scales::new(
                &Scaling { rows: Some(RowScales::Full), cols: None },
                MatrixRef::new(&even, even.len() / 48, 48)
            )
            .is_none()
        );
        assert!(Scales::new(&Scaling::default(), MatrixRef::new(&values, values.len() / 48, 48)).is_none());
    }

    #[test]
    fn rows_that_are_much_smaller_are_nearly_as_exact_as_the_others() {
        let mut values = vec![1.0; 64 * 48];
        values[..48].fill(1.0 / 12.0);
        let scaling = Scaling { rows: Some(RowScales::SquareRoot), cols: None };
        let rows = Scales::new(&scaling, MatrixRef::new(&values, 64, 48)).unwrap().rows.unwrap().values();
        // By the root alone its error, relative to it, would be 3.5 times that of the others.
        let ratio = 12.0 * rows[0] / rows[1];
        assert!((1.6..2.4).contains(&ratio), "{ratio}");
    }

    #[test]
    fn rows_that_live_in_small_columns_are_nearly_as_exact_as_the_others() {
        // The first row is of the usual size where columns have been made even, and a sixteenth of it in the matrix.
        let (rows, cols) = (64, 48);
        let small = |col: usize| if col < cols / 2 { 1.0 } else { 1.0 / 16.0 };
        let mut values: Vec<f32> = (0..rows * cols).map(|n| small(n % cols)).collect();
        values[..cols / 2].fill(0.0);
        let weights = MatrixRef::new(&values, rows, cols);
        let col_scales = AxisScales::new(&(0..cols).map(small).collect::<Vec<_>>()).unwrap();
        let scaling = Scaling { rows: Some(RowScales::SquareRoot), cols: Some(col_scales) };
        let rows = Scales::new(&scaling, weights).unwrap().rows.unwrap().values();
        // Without a bound it would have nearly the others' scale, and sixteen times their error.
        let ratio = 16.0 * rows[0] / rows[1];
        assert!((1.6..2.4).contains(&ratio), "{ratio}");
    }

    #[test]
    fn a_row_that_is_far_off_leaves_the_others_their_steps() {
        let mut values = stairs(64, 48);
        values[..48].fill(1e-20);
        values[48..96].fill(0.0);
        let scaling = Scaling { rows: Some(RowScales::Full), cols: None };
        let rows = Scales::new(&scaling, MatrixRef::new(&values, values.len() / 48, 48))
            .unwrap()
            .rows
            .unwrap()
            .values();
        for row in 2..64 {
            let off = (rows[row] / rows[63]).log2() - (row as f32 - 63.0) / 16.0;
            assert!(off.abs() < 0.45, "row {row}: {off} octaves");
        }
    }

    #[test]
    fn rows_that_came_out_bad_have_smaller_scales() {
        let scales = Scales { rows: None, cols: None };
        let mut errors = vec![Some(0.1); 64];
        assert!(scales.mended(&errors, 0.1).is_none());
        errors[5] = Some(0.4);
        errors[6] = None;
        let mended = scales.mended(&errors, 0.1).unwrap();
        let rows = mended.rows.as_ref().unwrap().values();
        assert!((rows[5] / rows[4] - 0.375).abs() < 0.03, "{rows:?}");
        assert!(rows.iter().enumerate().all(|(n, scale)| n == 5 || *scale == rows[4]), "{rows:?}");
        // Next to nothing beside the others: as small as a scale may be, and no smaller the next time.
        errors[5] = Some(1e4);
        let mended = scales.mended(&errors, 0.1).unwrap();
        let rows = mended.rows.as_ref().unwrap().values();
        assert!((rows[5] / rows[4] * 8.0 - 1.0).abs() < 0.1, "{rows:?}");
        assert!(mended.mended(&errors, 0.1).is_none());
    }
}
