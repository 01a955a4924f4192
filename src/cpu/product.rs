//! Products, decoding and row gather over all cores.

use super::basis::BasisProduct;
use super::kernels::{Input, Kernels};
use crate::codec::Matrix;
use crate::codec::axis::Axis;
use crate::codec::term::{Domain, Term};
use crate::error::Result;
use rayon::prelude::*;

/// Multiply-adds below which one core is done before the others have woken up.
const WORTH_SHARING: usize = 1 << 16;

/// `y = x W'`: `x` holds `tokens` rows of the matrix's `cols`, `y` as many of its `rows`.
///
/// # Panics
/// When a slice has another length.
pub fn product(matrix: &Matrix, x: &[f32], tokens: usize, y: &mut [f32]) {
    run(Kernels::get(), matrix, Side::Forward, x, tokens, y);
}

/// `x = g W`: `g` holds `tokens` rows of the matrix's `rows`, `x` as many of its `cols`.
///
/// # Panics
/// When a slice has another length.
pub fn transposed_product(matrix: &Matrix, g: &[f32], tokens: usize, x: &mut [f32]) {
    run(Kernels::get(), matrix, Side::Transposed, g, tokens, x);
}

/// Which side of the matrix the input stands on.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Side {
    Forward,
    Transposed,
}

pub(super) fn run(kernels: &Kernels, matrix: &Matrix, side: Side, x: &[f32], tokens: usize, y: &mut [f32]) {
    let layout = matrix.layout();
    let (in_axis, out_axis) = match side {
        Side::Forward => (&matrix.axes().cols, &matrix.axes().rows),
        Side::Transposed => (&matrix.axes().rows, &matrix.axes().cols),
    };
    assert_eq!(x.len(), tokens * in_axis.len());
    assert_eq!(y.len(), tokens * out_axis.len());
    if tokens == 0 {
        return;
    }
    let share = tokens * layout.elements() >= WORTH_SHARING;
    let spectral: Vec<&Term> = terms(matrix, Domain::Coefficients).collect();
    let spectrum = if spectral.is_empty() { Vec::new() } else { analyze(in_axis, x, share) };
    let bases: Vec<BasisProduct> = terms(matrix, Domain::Weights)
        .filter_map(|term| match term {
            Term::Basis(basis) => Some(BasisProduct::new(basis, layout, side == Side::Transposed, x, tokens)),
            _ => None,
        })
        .collect();

    // One output block for all tokens: accumulate, come back, add what was never in the coefficient domain.
    let block_row = |index: usize, out: &mut [f32]| {
        out.fill(0.0);
        let out_len = out.len() / tokens;
        let in_blocks = in_axis.len().div_ceil(layout.block());
        for k in 0..in_blocks {
            for term in &spectral {
                let values = &spectrum[k * layout.block()..];
                let input = Input { values, stride: in_axis.len(), tokens };
                match side {
                    Side::Forward => kernels.product(term, layout.block_at(index, k), input, out),
                    Side::Transposed => {
                        kernels.transposed_product(term, layout.block_at(k, index), input, out);
                    }
                }
            }
        }
        if !spectral.is_empty() {
            let mut scratch = vec![0.0; out_axis.scratch_len()];
            for out in out.chunks_exact_mut(out_len) {
                out_axis.synthesize_block(index, out, &mut scratch);
            }
        }
        bases.iter().for_each(|basis| basis.add(index, out));
    };

    let edge = layout.block();
    if tokens == 1 {
        return for_each_chunk(y, edge, share, block_row);
    }
    // Block rows of several tokens are not contiguous in `y`: gather them apart, then lay them out.
    let mut blocks = vec![0.0; y.len()];
    for_each_chunk(&mut blocks, edge * tokens, share, block_row);
    let out_len = out_axis.len();
    for_each_chunk(y, out_len, share, |token, y| {
        for (index, y) in y.chunks_mut(edge).enumerate() {
            let block = &blocks[index * edge * tokens..];
            y.copy_from_slice(&block[token * y.len()..][..y.len()]);
        }
    });
}

fn terms(matrix: &Matrix, domain: Domain) -> impl Iterator<Item = &Term> {
    matrix.terms().iter().filter(move |term| term.domain() == domain)
}

/// Every vector of `x` in the coefficient domain.
fn analyze(axis: &Axis, x: &[f32], share: bool) -> Vec<f32> {
    let mut spectrum = x.to_vec();
    for_each_chunk(&mut spectrum, axis.len(), share, |_, vector| {
        axis.analyze(vector, &mut vec![0.0; axis.scratch_len()]);
    });
    spectrum
}

/// Calls `f(index, chunk)` for consecutive chunks, on all cores when `share` is set.
fn for_each_chunk(data: &mut [f32], chunk: usize, share: bool, f: impl Fn(usize, &mut [f32]) + Sync) {
    if share {
        data.par_chunks_mut(chunk).enumerate().for_each(|(index, chunk)| f(index, chunk));
    } else {
        data.chunks_mut(chunk).enumerate().for_each(|(index, chunk)| f(index, chunk));
    }
}

/// Decodes the whole matrix, row-major.
pub fn decode(matrix: &Matrix) -> Vec<f32> {
    let layout = matrix.layout();
    let mut weights = vec![0.0; layout.elements()];
    for_each_chunk(&mut weights, layout.block() * layout.cols(), true, |i, out| {
        matrix.decode_block_row(i, out)
    });
    weights
}

/// Decodes the given rows into `out` (`rows.len() x cols`).
///
/// # Errors
/// When the matrix has no such row.
pub fn gather(matrix: &Matrix, rows: &[usize], out: &mut [f32]) -> Result<()> {
    let cols = matrix.layout().cols();
    assert_eq!(out.len(), rows.len() * cols);
    out.par_chunks_mut(cols).zip(rows).try_for_each(|(out, row)| matrix.decode_row(*row, out))
}
