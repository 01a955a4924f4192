//! Errors of columns handed on to those that can make up for them.
//!
//! With `A_in H A_in' = (I + U) D (I + U)'`, `U` strictly upper triangular and `D` diagonal, the error `F = S - S^` of the
//! coefficients, where inputs have the second moments `H`, weighs
//!
//! ```text
//!     tr(F A_in H A_in' F')  =  sum_c  D_c |F_c + sum_(i < c) U_ic F_i|^2          F_c: column c of F
//! ```
//!
//! so a quantiser that takes the columns from the left to the right and aims with column `c` at
//! `S_c + sum_(i < c) U_ic F_i` makes what the sum counts its own rounding error (LDLQ of QuIP, arXiv 2307.13304, which
//! is GPTQ's step, arXiv 2210.17323). `D_c` says what that error weighs: little where the columns to the right can still
//! make up for it, most in the last. Bits are shared out by it, within a matrix and between matrices.
//!
//! Rows do not mix, so block rows are swept side by side. In each the columns go scale group by scale group: inside a scale group errors
//! are handed on at once, to all columns on the right of it when it is done (GPTQ's lazy batches).

use super::calibrate::LayerStatistics;
use super::spectrum::{Spectrum, energy};
use crate::codec::axis::Axis;
use crate::codec::term::trellis::{GROUP_COLS, scale_groups};
use crate::codec::{Block, Layout};
use rayon::prelude::*;

/// Columns of the factor found before the rest is updated.
const PANEL: usize = 64;

/// `A_in H A_in' = (I + U) D (I + U)'`, and what the error of each block row weighs.
#[derive(Clone, Debug)]
pub(super) struct Feedback {
    len: usize,
    /// `U'`, `len x len`, row-major; of row `c` the first `c` elements.
    weights: Vec<f32>,
    /// `D`, in units of which the mean of `H`'s diagonal is 1.
    importance: Vec<f64>,
    /// Nats that one of that unit is, in each block row.
    rows: Vec<f64>,
}

impl Feedback {
    /// The factors of a layer's statistics in the coefficient domain.
    ///
    /// # Panics
    /// When the statistics are those of a weight of another shape.
    pub(super) fn new(statistics: &LayerStatistics, layout: Layout, axis: &Axis) -> Self {
        assert_eq!(statistics.shape(), (layout.rows(), layout.cols()));
        let len = layout.cols();
        let (mut h, unit) = statistics.rotate(axis);
        // Where all inputs are zero none matters more than another.
        if unit <= 0.0 {
            (0..len).for_each(|i| h[i * (len + 1)] = 1.0);
        }
        let importance = factorize(&mut h, len);
        let weights = h.into_par_iter().map(|value| value as f32).collect();
        let row = |i| unit * statistics.sensitivity(layout.row_range(i));
        Self { len, weights, importance, rows: (0..layout.block_rows()).map(row).collect() }
    }

    /// `U_ic` for `i < c`.
    pub(super) fn weights(&self, c: usize) -> &[f32] {
        &self.weights[c * self.len..][..c]
    }
}

/// Writes `U'` below the diagonal of the symmetric `h` and returns `D`.
pub(super) fn factorize(h: &mut [f64], len: usize) -> Vec<f64> {
    let mut diagonal = vec![0.0; len];
    for start in (0..len).step_by(PANEL).rev() {
        let end = (start + PANEL).min(len);
        let (before, panel) = h[..end * len].split_at_mut(start * len);
        for c in (start..end).rev() {
            let (above, row) = panel.split_at_mut((c - start) * len);
            let row = &mut row[..c + 1];
            diagonal[c] = row[c];
            row[..c].iter_mut().for_each(|value| *value /= diagonal[c]);
            for (j, other) in (start..).zip(above.chunks_exact_mut(len)) {
                subtract(&mut other[..=j], row[j] * diagonal[c], row);
            }
        }
        before.par_chunks_exact_mut(len).enumerate().for_each(|(j, other)| {
            for (row, diagonal) in panel.chunks_exact(len).zip(&diagonal[start..end]) {
                subtract(&mut other[..=j], row[j] * diagonal, row);
            }
        });
    }
    diagonal
}

fn subtract(values: &mut [f64], factor: f64, others: &[f64]) {
    values.iter_mut().zip(others).for_each(|(value, other)| *value -= factor * other);
}

/// The squares of a part of a block summed up, each times what its error weighs.
pub(super) fn weighed_energy(spectrum: &Spectrum, feedback: Option<&Feedback>, part: Block) -> f64 {
    let columns = spectrum.columns(part);
    let Some(feedback) = feedback else { return energy(&columns) };
    let importance = &feedback.importance[part.col..][..part.width];
    let columns = columns.chunks_exact(part.height).zip(importance);
    let sum: f64 = columns.map(|(column, importance)| energy(column) * importance).sum();
    sum * feedback.rows[spectrum.layout.row_cut().block_of(part.row)]
}

/// A scale group on its way: what its columns aim at, and what became of those that are done.
pub(super) struct GroupTargets<'a> {
    pub place: Block,
    feedback: Option<&'a Feedback>,
    /// The coefficients, column after column, and the same with the errors to the left of the scale group handed on.
    originals: &'a [f32],
    targets: &'a [f32],
    /// To be filled column after column, in their order.
    pub decoded: Vec<f32>,
}

impl GroupTargets<'_> {
    /// Targets of all columns, without what the scale group's own columns hand on.
    pub(super) fn targets(&self) -> &[f32] {
        self.targets
    }

    /// Writes what column `n` aims at, once the columns before it are decoded.
    pub(super) fn target(&self, n: usize, target: &mut [f32]) {
        let height = self.place.height;
        target.copy_from_slice(&self.targets[n * height..][..height]);
        for (weight, (original, decoded)) in self.weights(n).iter().zip(self.columns()) {
            for (target, (original, decoded)) in target.iter_mut().zip(original.iter().zip(decoded)) {
                *target += weight * (original - decoded);
            }
        }
    }

    /// Originals less what is decoded.
    pub(super) fn errors(&self) -> Vec<f32> {
        self.originals.iter().zip(&self.decoded).map(|(original, decoded)| original - decoded).collect()
    }

    /// `U_ic` of column `n` for the columns of the scale group before it.
    fn weights(&self, n: usize) -> &[f32] {
        let col = self.place.col;
        self.feedback.map_or(&[], |feedback| &feedback.weights(col + n)[col..])
    }

    /// Originals and decoded values of each column.
    fn columns(&self) -> impl Iterator<Item = (&[f32], &[f32])> {
        let height = self.place.height;
        self.originals.chunks_exact(height).zip(self.decoded.chunks_exact(height))
    }

    /// `<t, v>`, `<v, v>` and `<t, t>`, columns weighing as their errors do, of the integers `v` that a
    /// scale `a` multiplies and what they aim at, once `base` is decoded: the rounding error `t - a v` of column `c` is
    /// linear in the scale, `t = (targets - base)_c + sum U_ic (originals - base)_i` and `v = values_c + sum U_ic values_i`.
    pub(super) fn products(&self, base: &[f32], values: &[i8]) -> [f64; 3] {
        let height = self.place.height;
        let mut products = [0.0; 3];
        let (mut t, mut v) = (vec![0f32; height], vec![0f32; height]);
        for n in 0..self.place.width {
            let own = n * height..(n + 1) * height;
            let targets = self.targets[own.clone()].iter().zip(&base[own.clone()]);
            t.iter_mut().zip(targets).for_each(|(t, (target, base))| *t = target - base);
            v.iter_mut().zip(&values[own]).for_each(|(v, value)| *v = f32::from(*value));
            let left = self.originals.chunks_exact(height).zip(base.chunks_exact(height));
            let columns = left.zip(values.chunks_exact(height));
            for (weight, ((original, base), value)) in self.weights(n).iter().zip(columns) {
                for (t, (original, base)) in t.iter_mut().zip(original.iter().zip(base)) {
                    *t += weight * (original - base);
                }
                v.iter_mut().zip(value).for_each(|(v, value)| *v += weight * f32::from(*value));
            }
            let importance = self.feedback.map_or(1.0, |f| f.importance[self.place.col + n]);
            for (t, v) in t.iter().zip(&v) {
                let (t, v) = (f64::from(*t), f64::from(*v));
                products[0] += importance * t * v;
                products[1] += importance * v * v;
                products[2] += importance * t * t;
            }
        }
        products
    }
}

/// Calls `quantize` on every scale group, and returns what it makes of them in their order.
pub(super) fn sweep<S: Default, T: Send>(
    spectrum: &Spectrum,
    feedback: Option<&Feedback>,
    quantize: impl Fn(&mut S, &mut GroupTargets) -> T + Sync,
) -> Vec<T> {
    let layout = spectrum.layout;
    let places: Vec<Block> = scale_groups(layout).collect();
    let Some(feedback) = feedback else {
        let scale_group = |scratch: &mut S, place: &Block| {
            let originals = spectrum.columns(*place);
            let decoded = vec![0.0; originals.len()];
            let (originals, targets) = (&originals[..], &originals[..]);
            quantize(
                scratch,
                &mut GroupTargets { place: *place, feedback: None, originals, targets, decoded },
            )
        };
        return places.par_iter().map_init(S::default, scale_group).collect();
    };
    let row = |scratch: &mut S, places: &[Block]| {
        let originals: Vec<f32> = places.iter().flat_map(|place| spectrum.columns(*place)).collect();
        let mut targets = originals.clone();
        let scale_group = |place: &Block| {
            let height = place.height;
            let (targets, rest) = targets[place.col * height..].split_at_mut(place.len());
            let originals = &originals[place.col * height..][..place.len()];
            let decoded = vec![0.0; place.len()];
            let mut scale_group =
                GroupTargets { place: *place, feedback: Some(feedback), originals, targets, decoded };
            let made = quantize(scratch, &mut scale_group);
            let errors = scale_group.errors();
            let first = place.col + place.width;
            rest.par_chunks_exact_mut(height).enumerate().for_each(|(n, target)| {
                let weights = &feedback.weights(first + n)[place.col..first];
                for (weight, error) in weights.iter().zip(errors.chunks_exact(height)) {
                    target.iter_mut().zip(error).for_each(|(target, error)| *target += weight * error);
                }
            });
            made
        };
        places.iter().map(scale_group).collect::<Vec<_>>()
    };
    let per_row = layout.cols().div_ceil(GROUP_COLS);
    places.par_chunks(per_row).map_init(S::default, row).flatten_iter().collect()
}
