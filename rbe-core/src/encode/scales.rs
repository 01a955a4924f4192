//! Which scales of rows and columns a matrix gets: the square roots of their root mean squares, where they pay.

use crate::codec::scales::squared_error_ratio;
use crate::codec::{AxisScales, Layout};
use crate::error::Result;

/// Edge of the blocks over which noise is taken to be even: the largest.
const EDGE: usize = 256;

/// Scales of one side or of both.
pub(super) struct Scales {
    pub rows: Option<AxisScales>,
    pub cols: Option<AxisScales>,
}

impl Scales {
    /// What they take in a payload.
    pub(super) fn bits(&self) -> usize {
        [&self.rows, &self.cols].into_iter().flatten().map(|scales| 8 * scales.size_in_bytes()).sum()
    }

    /// The matrix that is left to be coded.
    pub(super) fn even(&self, values: &[f32], cols: usize) -> Vec<f32> {
        let (row_scales, col_scales) = (self.rows.as_ref(), self.cols.as_ref());
        let row_scales = row_scales.map(AxisScales::values);
        let col_scales = col_scales.map_or_else(|| vec![1.0; cols], AxisScales::values);
        let even = values.chunks_exact(cols).enumerate().flat_map(|(row, values)| {
            let scale = row_scales.as_ref().map_or(1.0, |scales| scales[row]);
            values.iter().zip(&col_scales).map(move |(value, own)| value / (scale * own)).collect::<Vec<_>>()
        });
        even.collect()
    }
}

/// The scales that save the most bits beyond what they take themselves; `None` where all cost more than they save.
///
/// A bit a weight is worth a factor of four in the squared error.
pub(super) fn choose(values: &[f32], rows: usize, cols: usize) -> Result<Option<Scales>> {
    let layout = Layout::new(rows, cols, EDGE)?;
    let (mut of_rows, mut of_cols) = (vec![0f64; rows], vec![0f64; cols]);
    for (values, of_row) in values.chunks_exact(cols).zip(&mut of_rows) {
        for (value, of_col) in values.iter().zip(&mut of_cols) {
            let square = f64::from(*value).powi(2);
            *of_row += square;
            *of_col += square;
        }
    }
    // The fourth root of a mean square.
    let wanted = |sums: &[f64], count: usize| {
        AxisScales::new(&sums.iter().map(|sum| (sum / count as f64).powf(0.25) as f32).collect::<Vec<_>>())
    };
    let (of_rows, of_cols) = (wanted(&of_rows, cols), wanted(&of_cols, rows));
    let choices = [(true, true), (false, true), (true, false)].map(|(with_rows, with_cols)| Scales {
        rows: of_rows.clone().filter(|_| with_rows),
        cols: of_cols.clone().filter(|_| with_cols),
    });
    let saved = |scales: &Scales| {
        let [rows, cols] = [&scales.rows, &scales.cols].map(|scales| scales.as_ref().map(AxisScales::values));
        let (row_cut, col_cut) = (layout.row_cut(), layout.col_cut());
        let ratio = squared_error_ratio(values, (row_cut, rows.as_deref()), (col_cut, cols.as_deref()));
        -0.5 * ratio.log2() * layout.elements() as f64 - scales.bits() as f64
    };
    let choices =
        choices.into_iter().map(|scales| (saved(&scales), scales)).filter(|(saved, _)| *saved > 0.0);
    Ok(choices.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, scales)| scales))
}
