//! A compressed matrix as the kernels want it in memory.

use super::kernels::Kernels;
use super::layout::{Input, Precision};
use super::packed::{BlockRow, PackedTerm, Parameters, pack};
use super::pool::{Pool, Shared};
use crate::codec::axis::Axes;
use crate::codec::sizes::{expect_len, zeroed};
use crate::codec::term::Domain;
use crate::codec::{Block, Layout, Matrix, Sides, Transform};
use crate::error::{Error, Result};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

thread_local! {
    /// A block on its way out, and scratch.
    static WORKSPACE: RefCell<(Vec<f32>, Vec<f32>)> = RefCell::default();
}

/// A matrix packed for products; made once, from a [`Matrix`].
///
/// It has what products take and takes about as much memory as the payload. Nothing leads back from it: the payload is what a
/// matrix is, and whoever may want another form of it keeps that.
#[derive(Clone, Debug)]
pub struct PackedMatrix {
    layout: Layout,
    transform: Transform,
    seed: Option<u64>,
    /// As the encoder measured it.
    relative_error: f32,
    axes: Axes,
    terms: Vec<Arc<dyn PackedTerm>>,
    /// Of the terms.
    bytes: usize,
}

impl PackedMatrix {
    /// Packs a matrix.
    pub fn new(matrix: &Matrix) -> Self {
        let terms: Vec<_> = matrix.terms().iter().map(pack).collect();
        Self {
            layout: matrix.layout(),
            transform: matrix.transform(),
            seed: matrix.seed(),
            relative_error: matrix.relative_error(),
            axes: matrix.axes().clone(),
            bytes: terms.iter().map(|term| term.bytes()).sum(),
            terms,
        }
    }

    /// The terms, in the codec's order.
    pub(super) fn terms(&self) -> &[Arc<dyn PackedTerm>] {
        &self.terms
    }

    /// Cuts parameters into those of each term.
    ///
    /// # Panics
    /// When there are more or fewer than the matrix has.
    pub(super) fn split<'a>(&self, parameters: &'a [f32]) -> Vec<Parameters<'a>> {
        let mut rest = parameters;
        let mut own = Vec::with_capacity(self.terms.len());
        for term in &self.terms {
            let parameters = Parameters::new(&**term, self.layout, rest);
            rest = &rest[parameters.values().len()..];
            own.push(parameters);
        }
        assert!(rest.is_empty(), "more parameters than the matrix has");
        own
    }

    /// How the matrix is cut into blocks.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Bytes in memory, the axes' signs and small constants left out.
    pub fn memory_in_bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn axes(&self) -> &Axes {
        &self.axes
    }

    /// Whether both matrices, or when `transposed` their transposes, see their inputs through the same operator.
    pub(super) fn shares_input(&self, other: &Self, transposed: bool) -> bool {
        let input = |matrix: &Self| {
            let side = Sides::new(matrix.layout, transposed);
            (*side.input(), matrix.transform, matrix.seed)
        };
        let sides = Sides::new(self.layout, transposed);
        let (own, others) = (&self.axes, &other.axes);
        let own_scales = sides.of(own.rows.scales(), own.cols.scales()).0;
        input(self) == input(other) && own_scales == sides.of(others.rows.scales(), others.cols.scales()).0
    }

    /// Slices of activations that a product with it takes.
    pub(super) fn slices(&self, precision: Precision) -> usize {
        let spreads = self.seed.is_some() && self.transform == Transform::Dct;
        let error = self.relative_error;
        // 0 is unknown, and 1 of what was changed after it was measured.
        precision.slices((spreads && error > 0.0 && error < 1.0).then_some(error))
    }

    fn terms_in(&self, domain: Domain) -> impl Iterator<Item = &dyn PackedTerm> {
        self.terms.iter().map(|term| &**term).filter(move |term| term.domain() == domain)
    }

    /// Decodes everything, row-major.
    ///
    /// # Errors
    /// When the system has no memory for the weights.
    pub fn decode(&self, pool: &dyn Pool) -> Result<Vec<f32>> {
        let mut weights = zeroed(&[self.layout.rows(), self.layout.cols()], "a decoded matrix")?;
        self.decode_band(false, 0..self.layout.block_rows(), &mut weights, pool);
        Ok(weights)
    }

    /// Decodes the block rows `band` into `out` (`their rows x cols`), or the block columns as rows of the transpose (`their
    /// columns x rows`).
    ///
    /// # Panics
    /// When there are no such blocks or `out` has another length.
    pub fn decode_band(&self, transposed: bool, band: Range<usize>, out: &mut [f32], pool: &dyn Pool) {
        let (layout, sides) = (self.layout, Sides::new(self.layout, transposed));
        let (across, stride) = (sides.input().blocks(), sides.input().elements());
        let bands = sides.output().blocks();
        assert!(band.start < band.end && band.end <= bands, "bands {band:?} of {bands}");
        let first = sides.output().range(band.start).start;
        let end = sides.output().range(band.end - 1).end;
        expect_len("the output", out.len(), &[end - first, stride]);
        let kernels = Kernels::get();
        let shared = Shared::new(out);
        pool.run(band.len() * across, &|items| {
            WORKSPACE.with_borrow_mut(|(tile, scratch)| {
                tile.resize(layout.largest_block(), 0.0);
                scratch.resize(self.axes.scratch_len(), 0.0);
                for item in items {
                    let block = sides.block(band.start + item / across, item % across);
                    let tile = &mut tile[..block.len()];
                    self.decode_block(kernels, block, tile, scratch);
                    if transposed {
                        for col in 0..block.width {
                            let start = (block.col + col - first) * stride + block.row;
                            // SAFETY: each block is one item, and its places are its own.
                            let out = unsafe { shared.part(start..start + block.height) };
                            let column = tile[col..].iter().step_by(block.width);
                            out.iter_mut().zip(column).for_each(|(out, value)| *out = *value);
                        }
                    } else {
                        for (row, values) in tile.chunks_exact(block.width).enumerate() {
                            let start = (block.row + row - first) * stride + block.col;
                            // SAFETY: as above.
                            unsafe { shared.part(start..start + block.width) }.copy_from_slice(values);
                        }
                    }
                }
            });
        });
    }

    /// Decodes the block in block row `i` and block column `j`, row-major.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn decode_block_at(&self, i: usize, j: usize) -> Vec<f32> {
        let (rows, cols) = (self.layout.block_rows(), self.layout.block_cols());
        assert!(i < rows && j < cols, "block ({i}, {j}) of a matrix that has {rows} x {cols}");
        let block = self.layout.block_at(i, j);
        let mut out = vec![0.0; block.len()];
        self.decode_block(Kernels::get(), block, &mut out, &mut vec![0.0; self.axes.scratch_len()]);
        out
    }

    /// Decodes a block into `out` (`height x width`).
    pub(super) fn decode_block(&self, kernels: &Kernels, block: Block, out: &mut [f32], scratch: &mut [f32]) {
        out.fill(0.0);
        let mut is_spectral = false;
        for term in self.terms_in(Domain::Coefficients) {
            term.add_block(kernels, block, out);
            is_spectral = true;
        }
        if is_spectral {
            self.axes.inverse_block(block, out, scratch);
        }
        self.terms_in(Domain::Weights).for_each(|term| term.add_block(kernels, block, out));
    }

    /// Decodes the given rows into `out` (`rows.len() x cols`).
    ///
    /// # Errors
    /// When the matrix has no such row.
    pub fn gather(&self, rows: &[usize], out: &mut [f32], pool: &dyn Pool) -> Result<()> {
        let cols = self.layout.cols();
        expect_len("the output", out.len(), &[rows.len(), cols]);
        if let Some(row) = rows.iter().find(|row| **row >= self.layout.rows()) {
            return Err(Error::shape(format!("row {row} of a matrix with {} rows", self.layout.rows())));
        }
        let kernels = Kernels::get();
        let shared = Shared::new(out);
        pool.run(rows.len(), &|range| {
            for n in range {
                // SAFETY: each row asked for is one item with a place of its own.
                let out = unsafe { shared.part(n * cols..(n + 1) * cols) };
                self.decode_row(kernels, rows[n], out);
            }
        });
        Ok(())
    }

    /// Row `r` of `A' S` is `S' (A e_r)`: a transposed product with one block row, then one inverse transform.
    fn decode_row(&self, kernels: &Kernels, row: usize, out: &mut [f32]) {
        let i = self.layout.row_cut().block_of(row);
        let rows = self.layout.row_range(i);
        let mut scratch = vec![0.0; self.axes.scratch_len()];
        let mut weights = vec![0.0; rows.len()];
        weights[row - rows.start] = 1.0;
        self.axes.rows.forward_block(i, &mut weights, &mut scratch);
        let weights = Input { values: &weights, stride: rows.len() };
        let row = BlockRow { index: row - rows.start, weights };
        for j in 0..self.layout.block_cols() {
            let block = self.layout.block_at(i, j);
            let out = &mut out[block.cols()];
            out.fill(0.0);
            self.terms_in(Domain::Coefficients).for_each(|term| term.add_row(kernels, block, &row, out));
            self.axes.cols.inverse_block(j, out, &mut scratch);
            self.terms_in(Domain::Weights).for_each(|term| term.add_row(kernels, block, &row, out));
        }
    }
}
