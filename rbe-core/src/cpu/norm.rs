//! Norms over the last dimension, many rows at once.

use super::kernels::{Kernels, NormGradient, NormRow};
use super::pool::{Pool, Shared};

/// Rows that one item of work takes.
const ROWS_AT_ONCE: usize = 32;

/// Which norm: `(x - mean) / sqrt(variance + eps)`, or without the mean `x / sqrt(mean(x^2) + eps)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// What is added to the variance.
    pub eps: f32,
    /// Whether the mean is taken away first.
    pub centered: bool,
}

impl Norm {
    fn row<'a>(&self, x: &'a [f32], weight: &'a [f32]) -> NormRow<'a> {
        NormRow { x, weight, eps: self.eps, centered: self.centered }
    }
}

/// `out = norm(x) weight + bias` for every row of `x`, which are as long as `weight`; an empty bias is none.
///
/// # Panics
/// When a slice has another length.
pub fn norm(norm: Norm, x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32], pool: &dyn Pool) {
    let len = weight.len();
    assert!(x.len() == out.len() && x.len().is_multiple_of(len) && (bias.is_empty() || bias.len() == len));
    let (kernels, rows) = (Kernels::get(), x.len() / len);
    let out = Shared::new(out);
    pool.run(rows.div_ceil(ROWS_AT_ONCE), &|items| {
        for row in items.start * ROWS_AT_ONCE..(items.end * ROWS_AT_ONCE).min(rows) {
            // SAFETY: each row is one item's.
            let out = unsafe { out.part(row * len..(row + 1) * len) };
            kernels.norm(norm.row(&x[row * len..(row + 1) * len], weight), bias, out);
        }
    });
}

/// The gradients of `<g, norm(x) weight + bias>`: those of `x` are written to `dx`, those of weight and bias returned. Sums
/// over rows are in a fixed order.
///
/// # Panics
/// When a slice has another length.
pub fn norm_gradients(
    norm: Norm,
    x: &[f32],
    weight: &[f32],
    g: &[f32],
    dx: &mut [f32],
    pool: &dyn Pool,
) -> (Vec<f32>, Vec<f32>) {
    let len = weight.len();
    assert!(x.len() == g.len() && x.len() == dx.len() && x.len().is_multiple_of(len));
    let (kernels, rows) = (Kernels::get(), x.len() / len);
    let items = rows.div_ceil(ROWS_AT_ONCE);
    let mut shares = vec![0.0; items * 2 * len];
    let (dx, shared) = (Shared::new(dx), Shared::new(&mut shares));
    pool.run(items, &|range| {
        for item in range {
            // SAFETY: here and below, each item's shares and rows are its own.
            let shares = unsafe { shared.part(item * 2 * len..(item + 1) * 2 * len) };
            let (dweight, dbias) = shares.split_at_mut(len);
            for row in item * ROWS_AT_ONCE..((item + 1) * ROWS_AT_ONCE).min(rows) {
                let at = row * len..(row + 1) * len;
                // SAFETY: as above.
                let dx = unsafe { dx.part(at.clone()) };
                let row = norm.row(&x[at.clone()], weight);
                kernels.norm_gradient(row, &g[at], NormGradient { x: dx, weight: dweight, bias: dbias });
            }
        }
    });
    let mut sums = vec![0.0; 2 * len];
    for share in shares.chunks_exact(2 * len) {
        sums.iter_mut().zip(share).for_each(|(sum, share)| *sum += share);
    }
    let dbias = sums.split_off(len);
    (sums, dbias)
}
