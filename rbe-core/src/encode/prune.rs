//! Fewer coefficients after the fact: small ones go, and what the basis functions can say of them stays.

use crate::codec::term::Sparse;
use crate::codec::term::basis::{Basis, FUNCTIONS, Fit};
use crate::codec::term::sparse::Entry;
use crate::codec::{Block, Matrix};
use crate::error::{Error, Result};

/// What pruning changed.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct PruneReport {
    /// Coefficients of the sparse term before.
    pub coefficients_before: usize,
    /// And after.
    pub coefficients_after: usize,
    /// Bytes of the payload before.
    pub bytes_before: usize,
    /// And after.
    pub bytes_after: usize,
    /// `|W^ - W^'| / |W^|`: how far the pruned weights are from those before.
    pub change: f64,
    /// `|W - W^| / |W|` before, as recorded.
    pub error_before: f64,
    /// And after: measured against the original where that was given, else the most that it can be.
    pub error_after: f64,
    /// Whether it was measured.
    pub measured: bool,
}

impl PruneReport {
    /// The report of two matrices and, where there is one, the original's weights.
    pub fn new(before: &Matrix, after: &Matrix, original: Option<&[f32]>) -> Self {
        let coefficients = |matrix: &Matrix| matrix.term::<Sparse>().map_or(0, Sparse::coefficients);
        let distance = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
        };
        let square = |a: &[f32]| -> f64 { a.iter().map(|a| f64::from(*a).powi(2)).sum() };
        // One block row in memory at a time: |W^ - W^'|^2, |W^|^2, |W - W^'|^2, |W|^2.
        let layout = before.layout();
        let mut sums = [0.0; 4];
        for i in 0..layout.block_rows() {
            let rows = layout.row_range(i);
            let mut old = vec![0.0; rows.len() * layout.cols()];
            let mut new = old.clone();
            before.decode_block_row(i, &mut old);
            after.decode_block_row(i, &mut new);
            let original = original.map(|all| &all[rows.start * layout.cols()..rows.end * layout.cols()]);
            let missed = original.map_or([0.0; 2], |original| [distance(original, &new), square(original)]);
            let own = [distance(&old, &new), square(&old), missed[0], missed[1]];
            sums.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
        }
        let [moved, norm, missed, whole] = sums.map(f64::sqrt);
        let share = |part: f64, whole: f64| if part == 0.0 { 0.0 } else { part / whole };
        let error_before = f64::from(before.relative_error());
        let error_after = match original {
            Some(_) => share(missed, whole),
            // |W - W^'| <= |W - W^| + |W^ - W^'|, and |W| >= |W^| / (1 + error).
            None => error_before + share(moved * (1.0 + error_before), norm),
        };
        Self {
            coefficients_before: coefficients(before),
            coefficients_after: coefficients(after),
            bytes_before: before.size_in_bytes(),
            bytes_after: after.size_in_bytes(),
            change: share(moved, norm),
            error_before,
            error_after,
            measured: original.is_some(),
        }
    }
}

/// Removes the sparse term's coefficients of magnitude below `threshold` and absorbs their least-squares share
/// into the basis parameters (a basis term is added where there is none).
///
/// The recorded relative error is no longer that of the new matrix; the triangle inequality bounds the change
/// by the removed part's norm, and whoever has the original measures it.
///
/// # Errors
/// When the matrix has no sparse term, or what the basis functions absorb is not finite in F32.
pub fn prune(matrix: &Matrix, threshold: f32) -> Result<Matrix> {
    let layout = matrix.layout();
    let Some(sparse) = matrix.term::<Sparse>() else {
        return Err(Error::config("only a sparse term can be pruned; this matrix has none"));
    };
    let old_basis = matrix.term::<Basis>();

    let (mut kept, mut theta) = (Vec::new(), Vec::new());
    let mut fits: Vec<((usize, usize), Fit)> = Vec::new();
    for block in layout.iter() {
        let (large, small): (Vec<_>, Vec<_>) =
            sparse.entries(block).into_iter().partition(|entry| entry.value.abs() >= threshold);
        let mut parameters = old_basis.map_or([0.0; FUNCTIONS], |basis| basis.theta(block));
        if !small.is_empty() {
            let size = (block.height, block.width);
            if fits.iter().all(|(known, _)| *known != size) {
                fits.push((size, Fit::new(block.height, block.width)));
            }
            let removed = weights(matrix, block, &small);
            if let Some((_, fit)) = fits.iter().find(|(known, _)| *known == size) {
                parameters.iter_mut().zip(fit.solve(&removed)).for_each(|(p, share)| *p += share);
            }
        }
        kept.push(large);
        theta.push(parameters);
    }
    let basis = Basis::checked(layout, &theta, false)?;
    let sparse = Sparse::pack(layout, sparse.format(), &kept)?;
    Ok(matrix.with_term(basis, matrix.errors()).with_term(sparse, matrix.errors()))
}

/// A block's weights from some of its coefficients.
fn weights(matrix: &Matrix, block: Block, entries: &[Entry]) -> Vec<f32> {
    let mut tile = vec![0.0; block.len()];
    for entry in entries {
        tile[usize::from(entry.row) * block.width + usize::from(entry.col)] = entry.value;
    }
    matrix.axes().inverse_block(block, &mut tile, &mut vec![0.0; matrix.axes().scratch_len()]);
    tile
}
