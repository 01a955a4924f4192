//! Products in which a matrix's numbers are variables: `W(p) = sum_n p_n M_n`, as `codec`'s `Matrix::parameters`
//! orders them, in F32, and the gradients of all of them.
//!
//! For training there are many vectors, so every coefficient is unpacked once and multiplied with all of them:
//!
//! - planes and trellis ([`dense`]): tiles of coefficients, a dense product each. The gradient of a scale comes out of
//!   the product that the input's gradient needs anyway: with `h_s = U_s' g^`, the scale group `s` without its scale, the
//!   input's share is `scale h_s` and the scale's gradient `<h_s, x^_s>`;
//! - sparse: sixteen vectors in the lanes of a register, one multiply-add an entry;
//! - basis: moments, as in the product.
//!
//! Sums are in a fixed order, whatever the number of threads.

mod dense;
mod sparse;
#[cfg(test)]
mod tests;

use super::kernels::Kernels;
use super::loaded::{Loaded, PackedMatrix};
use super::packed::basis::{self, BasisProduct};
use super::pool::{Pool, Shared};
use super::spmm::InLanes;
use super::{axis, kernels};
use crate::codec::Block;
use crate::codec::axis::Axis;
use crate::codec::sizes::expect_len;
use crate::codec::term::basis::Basis;
use crate::codec::term::trellis::GROUP_COLS;

/// Vectors that one item of work takes.
const BATCH_TILE: usize = 64;

/// A term and its parameters.
struct Part<'a> {
    term: &'a Loaded,
    parameters: &'a [f32],
    /// Where each block's parameters begin; one more than there are blocks.
    starts: Vec<usize>,
}

impl<'a> Part<'a> {
    /// The first of `parameters` are the term's.
    fn new(matrix: &PackedMatrix, term: &'a Loaded, parameters: &'a [f32]) -> Self {
        let mut starts = vec![0];
        let mut end = 0;
        for block in matrix.layout().iter() {
            end += parameters_in(term, block);
            starts.push(end);
        }
        Self { term, parameters: &parameters[..end], starts }
    }

    fn of(&self, block: Block) -> &[f32] {
        &self.parameters[self.starts[block.index]..self.starts[block.index + 1]]
    }
}

impl PackedMatrix {
    /// How many of `codec`'s `Matrix::parameters` each term has, with its name: `residual_trellis` for a trellis that
    /// follows another.
    pub fn parameter_groups(&self) -> Vec<(&'static str, usize)> {
        let count = |term| self.layout().iter().map(|block| parameters_in(term, block)).sum();
        let mut groups: Vec<(&'static str, usize)> = Vec::with_capacity(self.terms.len());
        for term in &self.terms {
            let follows = groups.iter().any(|(before, _)| *before == name(term));
            groups.push((if follows { "residual_trellis" } else { name(term) }, count(term)));
        }
        groups
    }

    /// Cuts parameters into those of each term.
    fn parts<'a>(&'a self, parameters: &'a [f32]) -> Vec<Part<'a>> {
        let mut rest = parameters;
        let parts = self
            .terms
            .iter()
            .map(|term| {
                let part = Part::new(self, term, rest);
                rest = &rest[part.parameters.len()..];
                part
            })
            .collect();
        assert!(rest.is_empty(), "more parameters than the matrix has");
        parts
    }
}

/// Adds the share of a term that has every coefficient, with its own scales, to `out`: for many vectors the product of
/// [`dense`] is the fastest in F32.
#[allow(clippy::too_many_arguments)]
pub(super) fn add_dense(
    kernels: &Kernels,
    matrix: &PackedMatrix,
    term: &Loaded,
    transposed: bool,
    x: &[f32],
    batch: usize,
    out: &mut [f32],
    pool: &dyn Pool,
) {
    let scales = match term {
        Loaded::Planes(tiles) => tiles.scales(),
        Loaded::Trellis(trellis) => trellis.scales(),
        Loaded::Basis(_) | Loaded::Sparse(_) => return,
    };
    let part = Part::new(matrix, term, &scales);
    dense::product(kernels, &part, matrix.layout(), transposed, x, batch, out, pool);
}

fn name(term: &Loaded) -> &'static str {
    match term {
        Loaded::Basis(_) => "basis",
        Loaded::Sparse(_) => "sparse",
        Loaded::Planes(_) => "planes",
        Loaded::Trellis(_) => "trellis",
    }
}

/// As `codec`'s `Term::parameters_in`.
fn parameters_in(term: &Loaded, block: Block) -> usize {
    match term {
        Loaded::Basis(_) => crate::codec::term::basis::FUNCTIONS,
        Loaded::Sparse(sparse) => sparse.count(block),
        Loaded::Planes(tiles) => tiles.group().scales_in(block),
        Loaded::Trellis(_) => block.width.div_ceil(GROUP_COLS),
    }
}

/// `y = x W(p)'`, or `y = x W(p)` when transposed: `x` holds `vectors` rows of the matrix's `cols` (`rows`), `y` as many of
/// its `rows` (`cols`).
///
/// # Panics
/// When a slice has another length.
pub fn parametric_product(
    matrix: &PackedMatrix,
    parameters: &[f32],
    transposed: bool,
    x: &[f32],
    batch: usize,
    y: &mut [f32],
    pool: &dyn Pool,
) {
    product(Kernels::get(), matrix, parameters, transposed, x, batch, y, pool);
}

/// The gradients of `<g, y>` with `y` as [`parametric_product`] has it: that of `x` is written to `dx` where it is asked
/// for, those of the parameters to `gradients`.
///
/// # Panics
/// When a slice has another length.
#[allow(clippy::too_many_arguments)]
pub fn parametric_gradients(
    matrix: &PackedMatrix,
    parameters: &[f32],
    transposed: bool,
    x: &[f32],
    g: &[f32],
    batch: usize,
    dx: Option<&mut [f32]>,
    gradients: &mut [f32],
    pool: &dyn Pool,
) {
    backward(Kernels::get(), matrix, parameters, transposed, x, g, batch, dx, gradients, pool);
}

/// The lengths of an input and an output.
fn lengths(matrix: &PackedMatrix, transposed: bool) -> (usize, usize) {
    let (rows, cols) = (matrix.layout().rows(), matrix.layout().cols());
    if transposed { (rows, cols) } else { (cols, rows) }
}

#[allow(clippy::too_many_arguments)]
pub(super) fn product(
    kernels: &Kernels,
    matrix: &PackedMatrix,
    parameters: &[f32],
    transposed: bool,
    x: &[f32],
    batch: usize,
    y: &mut [f32],
    pool: &dyn Pool,
) {
    let (in_len, out_len) = lengths(matrix, transposed);
    expect_len("the input", x.len(), &[batch, in_len]);
    expect_len("the output", y.len(), &[batch, out_len]);
    let parts = matrix.parts(parameters);
    if batch == 0 {
        return;
    }
    if matrix.spectral().next().is_none() {
        y.fill(0.0);
    } else {
        let (in_axis, out_axis) = axes(matrix, transposed);
        let spectrum = forward(kernels, in_axis, x, pool);
        let mut out = vec![0.0; y.len()];
        for part in &parts {
            match part.term {
                Loaded::Basis(_) => {}
                Loaded::Sparse(term) => {
                    let spectrum = InLanes::new(kernels, &spectrum, in_len, batch, pool);
                    sparse::product(kernels, term, part, transposed, &spectrum, &mut out, pool);
                }
                _ => dense::product(
                    kernels,
                    part,
                    matrix.layout(),
                    transposed,
                    &spectrum,
                    batch,
                    &mut out,
                    pool,
                ),
            }
        }
        axis::inverse(kernels, out_axis, &out, y, pool);
    }
    for part in parts {
        if let Loaded::Basis(_) = part.term {
            let basis = Basis::new(matrix.layout(), part.parameters.as_chunks().0, false);
            BasisProduct::new(&basis, matrix.layout(), transposed, x, batch).add(y, pool);
        }
    }
}

#[allow(clippy::too_many_arguments)]
pub(super) fn backward(
    kernels: &Kernels,
    matrix: &PackedMatrix,
    parameters: &[f32],
    transposed: bool,
    x: &[f32],
    g: &[f32],
    batch: usize,
    mut dx: Option<&mut [f32]>,
    gradients: &mut [f32],
    pool: &dyn Pool,
) {
    let (in_len, out_len) = lengths(matrix, transposed);
    expect_len("the input", x.len(), &[batch, in_len]);
    expect_len("the output's gradient", g.len(), &[batch, out_len]);
    assert!(dx.as_ref().is_none_or(|dx| dx.len() == x.len()));
    assert_eq!(gradients.len(), parameters.len());
    gradients.fill(0.0);
    let parts = matrix.parts(parameters);
    if batch == 0 {
        return;
    }
    let mut rest = gradients;
    let gradients: Vec<&mut [f32]> =
        parts.iter().map(|part| rest.split_off_mut(..part.parameters.len()).unwrap_or_default()).collect();
    let spectral = matrix.spectral().next().is_some();
    let (in_axis, out_axis) = axes(matrix, transposed);
    let (x_spectrum, g_spectrum) = if spectral {
        (forward(kernels, in_axis, x, pool), forward(kernels, out_axis, g, pool))
    } else {
        (Vec::new(), Vec::new())
    };
    let mut dx_spectrum = (spectral && dx.is_some()).then(|| vec![0.0; x.len()]);
    // Vectors on the matrix's own sides, whichever way it is seen.
    let sides = |x, g| if transposed { (g, x) } else { (x, g) };
    for (part, gradient) in parts.iter().zip(gradients) {
        match part.term {
            Loaded::Basis(basis) => {
                let (u, v) = sides(x, g);
                basis::gradient(basis, matrix.layout(), u, v, batch, gradient, pool);
            }
            Loaded::Sparse(term) => {
                let x = InLanes::new(kernels, &x_spectrum, in_len, batch, pool);
                let g = InLanes::new(kernels, &g_spectrum, out_len, batch, pool);
                let (u, v) = if transposed { (&g, &x) } else { (&x, &g) };
                sparse::gradient(kernels, term, part, u, v, gradient, pool);
                if let Some(dx) = &mut dx_spectrum {
                    sparse::product(kernels, term, part, !transposed, &g, dx, pool);
                }
            }
            _ => {
                let (u, v) = sides(&x_spectrum[..], &g_spectrum[..]);
                let dx = dx_spectrum.as_deref_mut();
                dense::backward(kernels, part, matrix.layout(), transposed, u, v, batch, dx, gradient, pool);
            }
        }
    }
    let Some(dx) = dx.as_mut() else { return };
    match dx_spectrum {
        Some(spectrum) => axis::inverse(kernels, in_axis, &spectrum, dx, pool),
        None => dx.fill(0.0),
    }
    for part in &parts {
        if let Loaded::Basis(_) = part.term {
            let basis = Basis::new(matrix.layout(), part.parameters.as_chunks().0, false);
            BasisProduct::new(&basis, matrix.layout(), !transposed, g, batch).add(dx, pool);
        }
    }
}

/// The operators of an input and an output.
fn axes(matrix: &PackedMatrix, transposed: bool) -> (&Axis, &Axis) {
    let axes = matrix.axes();
    if transposed { (&axes.rows, &axes.cols) } else { (&axes.cols, &axes.rows) }
}

/// Every vector into the coefficient domain.
fn forward(kernels: &kernels::Kernels, axis: &Axis, x: &[f32], pool: &dyn Pool) -> Vec<f32> {
    let mut spectrum = vec![0.0; x.len()];
    let shared = Shared::new(&mut spectrum);
    axis::forward(kernels, axis, x, pool, &|vector, block, segment| {
        let start = vector * axis.len() + axis.cut().range(block).start;
        // SAFETY: each vector's blocks are its own, and each is taken once.
        unsafe { shared.part(start..start + segment.len()) }.copy_from_slice(segment);
    });
    spectrum
}
