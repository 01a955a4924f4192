//! A compressed matrix as the kernels want it in memory.

use super::kernels::{EDGE, Input, Kernels};
use super::packed::basis::BasisProduct;
use super::packed::planes::{PackedPlanes, TILE_ROWS, row_tiles};
use super::packed::sparse::PackedSparse;
use super::packed::trellis::PackedTrellis;
use super::pool::{Pool, Shared};
use crate::codec::axis::Axes;
use crate::codec::sizes::{expect_len, zeroed};
use crate::codec::term::basis::FUNCTIONS;
use crate::codec::term::trellis::GROUP_COLS;
use crate::codec::term::{Basis, Term};
use crate::codec::{Block, Errors, Layout, Matrix, Transform};
use crate::error::{Error, Result};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::OnceLock;

thread_local! {
    /// A block on its way out, and scratch.
    static ROOM: RefCell<(Vec<f32>, Vec<f32>)> = RefCell::default();
}

/// A term in its layout for products.
#[derive(Clone, Debug)]
pub(super) enum Loaded {
    Basis(Basis),
    Sparse(PackedSparse),
    Planes(PackedPlanes),
    Trellis(PackedTrellis),
}

/// A matrix ready for products; made once, from a [`Matrix`], and turned back without loss.
///
/// It takes about as much memory as the compressed bytes: terms that are laid out anew replace their first form.
#[derive(Clone, Debug)]
pub struct PackedMatrix {
    layout: Layout,
    transform: Transform,
    seed: Option<u64>,
    errors: Errors,
    /// Known when it is first asked for: the file's form has to be made for that.
    size_in_bytes: OnceLock<usize>,
    plain_size_in_bytes: usize,
    stored_coefficients: usize,
    summary: String,
    axes: Axes,
    pub(super) terms: Vec<Loaded>,
}

/// Numbers of a term that a product multiplies with.
fn coefficients(term: &Term, layout: Layout) -> usize {
    match term {
        Term::Basis(_) => FUNCTIONS * layout.blocks(),
        Term::Sparse(sparse) => sparse.coefficients(),
        Term::Planes(_) | Term::Trellis(_) => layout.elements(),
    }
}

impl PackedMatrix {
    /// Lays out a matrix.
    pub fn new(matrix: &Matrix) -> Self {
        let terms = matrix.terms().iter().map(|term| match term {
            Term::Basis(basis) => Loaded::Basis(basis.clone()),
            Term::Sparse(sparse) => Loaded::Sparse(PackedSparse::new(sparse)),
            Term::Planes(planes) => Loaded::Planes(PackedPlanes::new(planes)),
            Term::Trellis(trellis) => Loaded::Trellis(PackedTrellis::new(trellis)),
        });
        Self {
            layout: matrix.layout(),
            transform: matrix.transform(),
            seed: matrix.seed(),
            errors: matrix.errors(),
            size_in_bytes: OnceLock::new(),
            plain_size_in_bytes: matrix.plain_size_in_bytes(),
            stored_coefficients: matrix.terms().iter().map(|term| coefficients(term, matrix.layout())).sum(),
            summary: matrix.summary(),
            axes: matrix.axes().clone(),
            terms: terms.collect(),
        }
    }

    /// The matrix that was laid out, bit for bit.
    pub fn to_matrix(&self) -> Matrix {
        let terms = self.terms.iter().map(|term| match term {
            Loaded::Basis(basis) => Term::Basis(basis.clone()),
            Loaded::Sparse(slices) => Term::Sparse(slices.to_term()),
            Loaded::Planes(tiles) => Term::Planes(tiles.to_term()),
            Loaded::Trellis(scale_groups) => Term::Trellis(scale_groups.to_term()),
        });
        Matrix::new(self.layout, self.transform, self.seed, terms.collect(), self.errors)
            .with_scales(self.axes.rows.scales().cloned(), self.axes.cols.scales().cloned())
    }

    /// How the matrix is cut into blocks.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The error, and those of the worst row and block, as the encoder measured them.
    pub fn errors(&self) -> Errors {
        self.errors
    }

    /// Bytes of the payload, its terms entropy coded where that is smaller. The first time it takes as long as to write it.
    pub fn size_in_bytes(&self) -> usize {
        *self.size_in_bytes.get_or_init(|| self.to_matrix().size_in_bytes())
    }

    /// Bytes of the payload with its terms as they are.
    pub fn plain_size_in_bytes(&self) -> usize {
        self.plain_size_in_bytes
    }

    /// Coefficients that a product multiplies with, basis parameters among them.
    pub fn stored_coefficients(&self) -> usize {
        self.stored_coefficients
    }

    /// One line for people: terms, transform, block edge.
    pub fn summary(&self) -> &str {
        &self.summary
    }

    /// Bytes in memory, the axes' signs and small constants left out.
    pub fn memory_in_bytes(&self) -> usize {
        let bytes = |term: &Loaded| match term {
            Loaded::Basis(basis) => basis.size_in_bytes(),
            Loaded::Sparse(slices) => slices.bytes(),
            Loaded::Planes(tiles) => tiles.bytes(),
            Loaded::Trellis(scale_groups) => scale_groups.bytes(),
        };
        self.terms.iter().map(bytes).sum()
    }

    pub(super) fn axes(&self) -> &Axes {
        &self.axes
    }

    /// Whether both matrices see their inputs through the same operator.
    pub(super) fn shares_input(&self, other: &Self) -> bool {
        let input =
            |matrix: &Self| (matrix.layout.cols(), matrix.layout.block(), matrix.transform, matrix.seed);
        input(self) == input(other) && self.axes.cols.scales() == other.axes.cols.scales()
    }

    /// Terms in the coefficient domain.
    pub(super) fn spectral(&self) -> impl Iterator<Item = &Loaded> {
        self.terms.iter().filter(|term| !matches!(term, Loaded::Basis(_)))
    }

    /// The basis terms' products with these vectors.
    pub(super) fn bases(&self, transposed: bool, input: &[f32], batch: usize) -> Vec<BasisProduct<'_>> {
        let product = |basis| BasisProduct::new(basis, self.layout, transposed, input, batch);
        self.terms
            .iter()
            .filter_map(|term| if let Loaded::Basis(basis) = term { Some(product(basis)) } else { None })
            .collect()
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
        let layout = self.layout;
        let (bands, across, stride) = if transposed {
            (layout.block_cols(), layout.block_rows(), layout.rows())
        } else {
            (layout.block_rows(), layout.block_cols(), layout.cols())
        };
        assert!(band.start < band.end && band.end <= bands, "bands {band:?} of {bands}");
        let range = |index| if transposed { layout.col_range(index) } else { layout.row_range(index) };
        let first = range(band.start).start;
        expect_len("the output", out.len(), &[range(band.end - 1).end - first, stride]);
        let kernels = Kernels::get();
        let shared = Shared::new(out);
        pool.run(band.len() * across, &|items| {
            ROOM.with_borrow_mut(|(tile, scratch)| {
                tile.resize(layout.largest_block(), 0.0);
                scratch.resize(self.axes.scratch_len(), 0.0);
                for item in items {
                    let (along, across) = (band.start + item / across, item % across);
                    let (i, j) = if transposed { (across, along) } else { (along, across) };
                    let block = layout.block_at(i, j);
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

    fn decode_block(&self, kernels: &Kernels, block: Block, out: &mut [f32], scratch: &mut [f32]) {
        out.fill(0.0);
        for term in &self.terms {
            match term {
                Loaded::Basis(_) => {}
                Loaded::Sparse(slices) => slices.add_to(block, out),
                Loaded::Trellis(scale_groups) => {
                    let mut rows = [[0.0; GROUP_COLS]; EDGE];
                    for (first, scale_group) in scale_groups.block_groups(block) {
                        kernels.trellis_rows(&scale_group, &mut rows);
                        for (out, row) in out.chunks_exact_mut(block.width).zip(&rows) {
                            let out = &mut out[first..][..scale_group.width];
                            out.iter_mut().zip(row).for_each(|(out, value)| *out += value);
                        }
                    }
                }
                Loaded::Planes(tiles) => {
                    let rows = out.chunks_mut(TILE_ROWS * block.width);
                    rows.enumerate().for_each(|(tile, rows)| tiles.add_row_tile(block, tile, rows));
                    debug_assert_eq!(row_tiles(block), block.height.div_ceil(TILE_ROWS));
                }
            }
        }
        if self.spectral().next().is_some() {
            self.axes.inverse_block(block, out, scratch);
        }
        for term in &self.terms {
            if let Loaded::Basis(basis) = term {
                basis.add_rows(block, 0..block.height, out);
            }
        }
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
        for j in 0..self.layout.block_cols() {
            let block = self.layout.block_at(i, j);
            let out = &mut out[block.col..block.col + block.width];
            out.fill(0.0);
            for term in self.spectral() {
                match term {
                    Loaded::Planes(tiles) => kernels.planes_transposed(tiles, block, weights, out),
                    Loaded::Sparse(slices) => kernels.sparse_transposed(slices, block, weights, out),
                    Loaded::Trellis(trellis) => kernels.trellis_transposed(trellis, block, weights, out),
                    Loaded::Basis(_) => {}
                }
            }
            self.axes.cols.inverse_block(j, out, &mut scratch);
            for term in &self.terms {
                if let Loaded::Basis(basis) = term {
                    basis.add_rows(block, row - rows.start..row - rows.start + 1, out);
                }
            }
        }
    }
}
