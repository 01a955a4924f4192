//! Fewer coefficients after the fact: small ones go, and what the basis functions can say of them stays.

use crate::codec::basis::{Basis, FUNCTIONS, Fit};
use crate::codec::term::sparse::Entry;
use crate::codec::term::{Sparse, Term};
use crate::codec::{Block, Matrix};
use crate::error::{Error, Result};

/// Removes the sparse term's coefficients of magnitude below `threshold` and absorbs their least-squares share
/// into the basis parameters (a basis term is added where there is none).
///
/// The recorded relative error is no longer that of the new matrix; the triangle inequality bounds the change
/// by the removed part's norm, and whoever has the original measures it.
///
/// # Errors
/// When the matrix has no sparse term.
pub fn prune(matrix: &Matrix, threshold: f32) -> Result<Matrix> {
    let layout = matrix.layout();
    let sparse =
        matrix.terms().iter().find_map(|term| if let Term::Sparse(s) = term { Some(s) } else { None });
    let Some(sparse) = sparse else {
        return Err(Error::config("only a sparse term can be pruned; this matrix has none"));
    };
    let old_basis =
        matrix.terms().iter().find_map(|term| if let Term::Basis(b) = term { Some(b) } else { None });

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
    let mut terms = vec![
        Term::Basis(Basis::new(layout, &theta, false)),
        Term::Sparse(Sparse::pack(layout, sparse.format(), &kept)?),
    ];
    terms.extend(matrix.terms().iter().filter(|t| !matches!(t, Term::Basis(_) | Term::Sparse(_))).cloned());
    Ok(Matrix::new(layout, matrix.transform(), matrix.seed(), terms, matrix.relative_error()))
}

/// A block's weights from some of its coefficients.
fn weights(matrix: &Matrix, block: Block, entries: &[Entry]) -> Vec<f32> {
    let mut tile = vec![0.0; block.len()];
    for entry in entries {
        tile[usize::from(entry.row) * block.width + usize::from(entry.col)] = entry.value;
    }
    matrix.axes().synthesize_tile(block, &mut tile, &mut vec![0.0; matrix.axes().scratch_len()]);
    tile
}
