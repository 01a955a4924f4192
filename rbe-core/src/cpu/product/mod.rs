//! The products: into the coefficient domain once, through every term, back once.

mod terms;

use super::activations::{Activations, Digit, quantize};
use super::axis;
use super::kernels::Kernels;
use super::layout::{Precision, RowSums};
use super::loaded::{Loaded, LoadedMatrix};
use super::parametric::add_dense;
use super::pool::{Pool, Serial, Shared};
use super::sparse::{self, InLanes};
use super::tiles::TILE_COLS;
use crate::codec::Layout;
use crate::codec::sizes::expect_len;
use std::cell::RefCell;
use terms::{accumulate, planes, trellis};

/// Multiply-adds below which one thread is done before the others have begun.
const WORTH_SHARING: usize = 1 << 18;
/// Segments' elements below which one thread transforms alone.
const TRANSFORM_WORTH_SHARING: usize = 1 << 13;
/// Vectors from which on a transposed product unpacks whole tiles for a dense product.
const WORTH_DENSE: usize = 16;
/// Vectors from which on a transposed sparse product, which goes from entry to entry on every level, is faster in lanes.
const WORTH_LANES_TRANSPOSED: usize = 8;

/// One thread's memory between calls, so that a warm product allocates nothing.
#[derive(Default)]
struct Workspace {
    spectrum: Vec<f32>,
    in_lanes: InLanes,
    activations: Activations,
    partial: Vec<RowSums>,
    out: Vec<f32>,
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
}

/// `y = x W'`: `x` holds `vectors` rows of the matrix's `cols`, `y` as many of its `rows`.
///
/// # Panics
/// When a slice has another length.
pub fn product(
    matrix: &LoadedMatrix,
    x: &[f32],
    vectors: usize,
    y: &mut [f32],
    precision: Precision,
    pool: &dyn Pool,
) {
    products(&[matrix], x, vectors, &mut [y], precision, pool);
}

/// `y = x W'` for several matrices: as [`product`] for each. Neighbours that see their input through one operator (as
/// many columns, block edge, transform and seed alike) have it transformed once.
///
/// # Panics
/// When a slice has another length, or there are not as many outputs as matrices.
pub fn products(
    matrices: &[&LoadedMatrix],
    x: &[f32],
    vectors: usize,
    ys: &mut [&mut [f32]],
    precision: Precision,
    pool: &dyn Pool,
) {
    forward(Kernels::get(), matrices, x, vectors, ys, precision, pool);
}

/// `x = g W`: `g` holds `vectors` rows of the matrix's `rows`, `x` as many of its `cols`.
///
/// # Panics
/// When a slice has another length.
pub fn transposed_product(matrix: &LoadedMatrix, g: &[f32], vectors: usize, x: &mut [f32], pool: &dyn Pool) {
    transposed(Kernels::get(), matrix, g, vectors, x, pool);
}

pub(super) fn forward(
    kernels: &Kernels,
    matrices: &[&LoadedMatrix],
    x: &[f32],
    vectors: usize,
    ys: &mut [&mut [f32]],
    precision: Precision,
    pool: &dyn Pool,
) {
    assert_eq!(matrices.len(), ys.len());
    for (matrix, y) in matrices.iter().zip(&*ys) {
        let layout = matrix.layout();
        expect_len("the input", x.len(), &[vectors, layout.cols()]);
        expect_len("the output", y.len(), &[vectors, layout.rows()]);
    }
    if vectors == 0 {
        return;
    }
    WORKSPACE.with_borrow_mut(|workspace| {
        let mut ys = ys.iter_mut();
        for group in matrices.chunk_by(|a, b| a.shares_input(b)) {
            let in_pool = shared_if(pool, x.len(), TRANSFORM_WORTH_SHARING);
            into_spectrum(kernels, group, x, vectors, precision, in_pool, workspace);
            for (matrix, y) in group.iter().zip(&mut ys) {
                one_forward(kernels, matrix, vectors, y, pool, workspace);
                let pool = shared_if(pool, work(vectors, matrix.layout()), WORTH_SHARING);
                for basis in matrix.bases(false, x, vectors) {
                    basis.add(y, pool);
                }
            }
        }
    });
}

/// Multiply-adds of so many vectors with a dense matrix.
fn work(vectors: usize, layout: Layout) -> usize {
    vectors.saturating_mul(layout.elements())
}

/// A pool, or this thread alone where the work is too little.
fn shared_if(pool: &dyn Pool, work: usize, worth: usize) -> &dyn Pool {
    if work >= worth { pool } else { &Serial }
}

/// The terms in the coefficient domain of one matrix, on inputs that are there already.
fn one_forward(
    kernels: &Kernels,
    matrix: &LoadedMatrix,
    vectors: usize,
    y: &mut [f32],
    pool: &dyn Pool,
    workspace: &mut Workspace,
) {
    if matrix.spectral().next().is_none() {
        y.fill(0.0);
        return;
    }
    let Workspace { spectrum, in_lanes, activations, partial, out } = workspace;
    let out_pool = shared_if(pool, y.len(), TRANSFORM_WORTH_SHARING);
    let pool = shared_if(pool, work(vectors, matrix.layout()), WORTH_SHARING);
    out.clear();
    out.resize(y.len(), 0.0);
    for term in matrix.spectral() {
        match term {
            Loaded::Planes(tiles) => planes(kernels, tiles, activations, vectors, out, pool),
            Loaded::Trellis(strips) => trellis(kernels, strips, activations, vectors, partial, out, pool),
            Loaded::Sparse(slices) if vectors >= kernels.worth_lanes() => {
                let unpack =
                    |block, places: &mut _, values: &mut _| slices.unpack(block, false, places, values);
                sparse::product(kernels, matrix.layout(), &unpack, false, in_lanes, out, pool);
            }
            other => accumulate(kernels, matrix, other, false, spectrum, vectors, out, pool),
        }
    }
    axis::synthesize(kernels, &matrix.axes().rows, out, y, out_pool);
}

pub(super) fn transposed(
    kernels: &Kernels,
    matrix: &LoadedMatrix,
    g: &[f32],
    vectors: usize,
    x: &mut [f32],
    pool: &dyn Pool,
) {
    let layout = matrix.layout();
    expect_len("the input", g.len(), &[vectors, layout.rows()]);
    expect_len("the output", x.len(), &[vectors, layout.cols()]);
    if vectors == 0 {
        return;
    }
    let pool = shared_if(pool, work(vectors, layout), WORTH_SHARING);
    if matrix.spectral().next().is_none() {
        x.fill(0.0);
    } else {
        WORKSPACE.with_borrow_mut(|Workspace { spectrum, in_lanes, out, .. }| {
            spectrum.resize(g.len(), 0.0);
            let len = layout.rows();
            let shared = Shared::new(spectrum);
            axis::analyze(kernels, &matrix.axes().rows, g, pool, &|vector, block, segment| {
                let start = vector * len + layout.row_range(block).start;
                // SAFETY: each vector's blocks are its own, and each is taken once.
                unsafe { shared.part(start..start + segment.len()) }.copy_from_slice(segment);
            });
            out.clear();
            out.resize(x.len(), 0.0);
            for term in matrix.spectral() {
                match term {
                    Loaded::Planes(_) | Loaded::Trellis(_) if vectors >= WORTH_DENSE => {
                        add_dense(kernels, matrix, term, true, spectrum, vectors, out, pool);
                    }
                    Loaded::Sparse(slices) if vectors >= WORTH_LANES_TRANSPOSED => {
                        in_lanes.fill(kernels, spectrum, layout.rows(), vectors, pool);
                        let unpack = |block, places: &mut _, values: &mut _| {
                            slices.unpack(block, true, places, values)
                        };
                        sparse::product(kernels, layout, &unpack, true, in_lanes, out, pool);
                    }
                    _ => accumulate(kernels, matrix, term, true, spectrum, vectors, out, pool),
                }
            }
            axis::synthesize(kernels, &matrix.axes().cols, out, x, pool);
        });
    }
    for basis in matrix.bases(true, g, vectors) {
        basis.add(x, pool);
    }
}

/// Every vector into the coefficient domain of matrices that share it, in the forms that their terms need.
fn into_spectrum(
    kernels: &Kernels,
    matrices: &[&LoadedMatrix],
    x: &[f32],
    vectors: usize,
    precision: Precision,
    pool: &dyn Pool,
    workspace: &mut Workspace,
) {
    let terms = || matrices.iter().flat_map(|matrix| matrix.spectral());
    let as_floats = terms().any(|term| matches!(term, Loaded::Sparse(_)));
    let as_digits = terms().any(|term| matches!(term, Loaded::Planes(_) | Loaded::Trellis(_)));
    if !as_floats && !as_digits {
        return;
    }
    let (layout, axis) = (matrices[0].layout(), &matrices[0].axes().cols);
    let Workspace { spectrum, in_lanes, activations, .. } = workspace;
    spectrum.resize(if as_floats { x.len() } else { 0 }, 0.0);
    activations.prepare(layout, if as_digits { vectors } else { 0 }, precision);
    let (digits, stride, blocks) = (activations.digits, activations.stride, layout.block_cols());
    let tiles = activations.tiles();
    let starts = &activations.starts;
    let floats = Shared::new(spectrum);
    let values = Shared::new(&mut activations.values);
    let scales = Shared::new(&mut activations.scales);
    let sums = Shared::new(&mut activations.sums);
    let tile_sums = Shared::new(&mut activations.tile_sums);
    axis::analyze(kernels, axis, x, pool, &|vector, j, segment| {
        // SAFETY: here and below, each vector's block has a place of its own in every array and is taken once.
        let floats = |range| unsafe { floats.part(range) };
        if as_floats {
            let start = vector * layout.cols() + layout.col_range(j).start;
            floats(start..start + segment.len()).copy_from_slice(segment);
        }
        if as_digits {
            let end = starts.get(j + 1).copied().unwrap_or(stride);
            let parts = (vector * digits..(vector + 1) * digits).map(|digit| {
                let index = digit * blocks + j;
                let (values_at, tiles_at) = (digit * stride, digit * tiles);
                // SAFETY: as above.
                unsafe {
                    Digit {
                        values: values.part(values_at + starts[j]..values_at + end),
                        scale: &mut scales.part(index..index + 1)[0],
                        sum: &mut sums.part(index..index + 1)[0],
                        tile_sums: tile_sums
                            .part(tiles_at + starts[j] / TILE_COLS..tiles_at + end / TILE_COLS),
                    }
                }
            });
            quantize(kernels, segment, parts);
        }
    });
    if as_floats && vectors >= kernels.worth_lanes() {
        in_lanes.fill(kernels, spectrum, layout.cols(), vectors, pool);
    }
}
