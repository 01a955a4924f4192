//! A compressed matrix and its reference operations.

use super::axis::Axes;
use super::layout::{Block, Layout};
use super::payload::{self, Form};
use super::term::{Domain, Planes, Term};
use super::transform::Transform;
use crate::error::{Error, Result};

pub use super::payload::View;

/// A compressed matrix: a layout, a transform with or without random signs, and a sum of terms.
#[derive(Clone, Debug)]
pub struct Matrix {
    layout: Layout,
    transform: Transform,
    seed: Option<u64>,
    terms: Vec<Term>,
    relative_error: f32,
    axes: Axes,
}

impl Matrix {
    /// Puts a matrix together. `seed` draws the random signs, `None` is none; `relative_error` is what the encoder
    /// measured. The terms are cut as `layout` says and come in the order of [`Term`]'s variants, each at most once
    /// but for the trellis, which may come twice: a payload of others is refused when it is read.
    pub fn new(
        layout: Layout,
        transform: Transform,
        seed: Option<u64>,
        terms: Vec<Term>,
        relative_error: f32,
    ) -> Self {
        let axes = Axes::new(layout, transform, seed);
        Self { layout, transform, seed, terms, relative_error, axes }
    }

    /// Reads and checks a payload.
    ///
    /// # Errors
    /// [`Error::Payload`] with the first thing found wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<(Self, View)> {
        payload::from_bytes(bytes)
    }

    /// The payload of this matrix seen through `view`, each term entropy coded where that takes fewer bytes.
    pub fn to_bytes(&self, view: View) -> Vec<u8> {
        payload::to_bytes(self, view, Form::Smallest)
    }

    /// The payload with every term as it is: read the fastest, and cut after any bit-plane.
    pub fn to_plain_bytes(&self, view: View) -> Vec<u8> {
        payload::to_bytes(self, view, Form::Plain)
    }

    /// Bytes of the payload that [`to_bytes`](Self::to_bytes) makes. It takes as long to know.
    pub fn size_in_bytes(&self) -> usize {
        payload::size_in_bytes(self, Form::Smallest)
    }

    /// Bytes of the payload that [`to_plain_bytes`](Self::to_plain_bytes) makes.
    pub fn plain_size_in_bytes(&self) -> usize {
        payload::size_in_bytes(self, Form::Plain)
    }

    /// How the matrix is cut into blocks.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The transform of both axes.
    pub fn transform(&self) -> Transform {
        self.transform
    }

    /// The seed of the random signs, when there are any.
    pub fn seed(&self) -> Option<u64> {
        self.seed
    }

    /// The summands.
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// `|W - W^| / |W|` in the Frobenius norm, as the encoder measured it by decoding.
    pub fn relative_error(&self) -> f32 {
        self.relative_error
    }

    /// One line for people: terms, transform, block edge.
    pub fn summary(&self) -> String {
        let terms: Vec<_> = self.terms.iter().map(Term::summary).collect();
        let signs = if self.seed.is_some() { " signs" } else { "" };
        format!("{}, {} {}{signs}", terms.join(" + "), self.transform.name(), self.layout.block())
    }

    /// The same matrix with another recorded error.
    pub fn with_relative_error(mut self, relative_error: f32) -> Self {
        self.relative_error = relative_error;
        self
    }

    /// The operators between vectors and their coefficients.
    pub fn axes(&self) -> &Axes {
        &self.axes
    }

    /// The matrix with only the first `limit` bit-planes of its planes term (others are kept whole).
    /// The recorded error is then no longer known and is set to 1, the error of nothing at all.
    pub fn truncate_planes(&self, limit: u8) -> Self {
        let cut = |term: &Term| match term {
            Term::Planes(planes) => Term::Planes(Planes::truncate(planes, limit)),
            other => other.clone(),
        };
        let terms = self.terms.iter().map(cut).collect();
        Self::new(self.layout, self.transform, self.seed, terms, 1.0)
    }

    /// The matrix times `2^exponent`, to the bit, with the same recorded error.
    ///
    /// # Errors
    /// When a term's unit leaves what a payload may hold.
    pub fn times_power_of_two(&self, exponent: i32) -> Result<Self> {
        let terms = self.terms.iter().map(|term| term.times_power_of_two(exponent)).collect::<Result<_>>()?;
        Ok(Self::new(self.layout, self.transform, self.seed, terms, self.relative_error))
    }

    /// Adds the terms of one domain for all rows of a block to `out`.
    fn add_terms(&self, domain: Domain, block: Block, out: &mut [f32]) {
        for term in self.terms.iter().filter(|term| term.domain() == domain) {
            term.add_rows(block, 0..block.height, out);
        }
    }

    /// Decodes one block into `out` (`height x width`).
    fn decode_block(&self, block: Block, out: &mut [f32], scratch: &mut [f32]) {
        out.fill(0.0);
        self.add_terms(Domain::Coefficients, block, out);
        self.axes.synthesize_tile(block, out, scratch);
        self.add_terms(Domain::Weights, block, out);
    }

    /// Decodes block row `i` into `out` (`rows of the block row x cols`).
    ///
    /// # Panics
    /// When `out` has another length.
    pub fn decode_block_row(&self, i: usize, out: &mut [f32]) {
        let cols = self.layout.cols();
        assert_eq!(out.len(), self.layout.row_range(i).len() * cols);
        let edge = self.layout.block();
        let (mut tile, mut scratch) = (vec![0.0; edge * edge], vec![0.0; self.axes.scratch_len()]);
        for j in 0..self.layout.block_cols() {
            let block = self.layout.block_at(i, j);
            let tile = &mut tile[..block.len()];
            self.decode_block(block, tile, &mut scratch);
            for (out, row) in out.chunks_exact_mut(cols).zip(tile.chunks_exact(block.width)) {
                out[block.col..block.col + block.width].copy_from_slice(row);
            }
        }
    }

    /// Decodes everything, row-major.
    pub fn decode(&self) -> Vec<f32> {
        let mut weights = vec![0.0; self.layout.elements()];
        let rows = self.layout.block() * self.layout.cols();
        weights.chunks_mut(rows).enumerate().for_each(|(i, out)| self.decode_block_row(i, out));
        weights
    }

    /// Decodes one row into `out` (`cols`): the row's share of each block is one combination of the block's
    /// coefficient rows and one inverse transform.
    ///
    /// # Errors
    /// When there is no such row.
    ///
    /// # Panics
    /// When `out` has another length.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        if row >= self.layout.rows() {
            return Err(Error::shape(format!("row {row} of a matrix with {} rows", self.layout.rows())));
        }
        assert_eq!(out.len(), self.layout.cols());
        let i = row / self.layout.block();
        let height = self.layout.row_range(i).len();
        let local = row - self.layout.row_range(i).start;
        let mut scratch = vec![0.0; self.axes.scratch_len()];
        // Row `local` of `A' S` is `sum_k A[k][local] S[k]`, and A's column is A applied to a unit vector.
        let mut weights = vec![0.0; height];
        weights[local] = 1.0;
        self.axes.rows.analyze_block(i, &mut weights, &mut scratch);
        let mut coefficients = vec![0.0; self.layout.block()];
        for j in 0..self.layout.block_cols() {
            let block = self.layout.block_at(i, j);
            let out = &mut out[block.col..block.col + block.width];
            out.fill(0.0);
            for (k, weight) in weights.iter().enumerate() {
                let coefficients = &mut coefficients[..block.width];
                coefficients.fill(0.0);
                for term in self.terms.iter().filter(|term| term.domain() == Domain::Coefficients) {
                    term.add_rows(block, k..k + 1, coefficients);
                }
                out.iter_mut().zip(&*coefficients).for_each(|(out, c)| *out += weight * c);
            }
            self.axes.cols.synthesize_block(j, out, &mut scratch);
            for term in self.terms.iter().filter(|term| term.domain() == Domain::Weights) {
                term.add_rows(block, local..local + 1, out);
            }
        }
        Ok(())
    }

    /// The weights at `(row, column)` positions, decoding each row asked for once.
    ///
    /// # Errors
    /// When a position is outside the matrix.
    pub fn weights_at(&self, positions: &[(usize, usize)]) -> Result<Vec<f32>> {
        let mut order: Vec<usize> = (0..positions.len()).collect();
        order.sort_unstable_by_key(|&n| positions[n].0);
        let mut weights = vec![0.0; positions.len()];
        let (mut decoded, mut row_weights) = (None, vec![0.0; self.layout.cols()]);
        for n in order {
            let (row, col) = positions[n];
            if decoded != Some(row) {
                self.decode_row(row, &mut row_weights)?;
                decoded = Some(row);
            }
            weights[n] = *row_weights.get(col).ok_or_else(|| {
                Error::shape(format!("column {col} of a matrix with {} columns", self.layout.cols()))
            })?;
        }
        Ok(weights)
    }

    /// The reference product `W x` in the coefficient domain: `x` of length `cols` to a vector of length `rows`.
    ///
    /// # Panics
    /// When `x` has another length.
    pub fn product(&self, x: &[f32]) -> Vec<f32> {
        assert_eq!(x.len(), self.layout.cols());
        let mut scratch = vec![0.0; self.axes.scratch_len()];
        let mut spectrum = x.to_vec();
        self.axes.cols.analyze(&mut spectrum, &mut scratch);
        let mut y_spectrum = vec![0.0; self.layout.rows()];
        self.accumulate(Domain::Coefficients, |row, col, value| y_spectrum[row] += value * spectrum[col]);
        self.axes.rows.synthesize(&mut y_spectrum, &mut scratch);
        let mut y = y_spectrum;
        self.accumulate(Domain::Weights, |row, col, value| y[row] += value * x[col]);
        y
    }

    /// The reference transposed product `W' g`: `g` of length `rows` to a vector of length `cols`.
    ///
    /// # Panics
    /// When `g` has another length.
    pub fn transposed_product(&self, g: &[f32]) -> Vec<f32> {
        assert_eq!(g.len(), self.layout.rows());
        let mut scratch = vec![0.0; self.axes.scratch_len()];
        let mut spectrum = g.to_vec();
        self.axes.rows.analyze(&mut spectrum, &mut scratch);
        let mut x_spectrum = vec![0.0; self.layout.cols()];
        self.accumulate(Domain::Coefficients, |row, col, value| x_spectrum[col] += value * spectrum[row]);
        self.axes.cols.synthesize(&mut x_spectrum, &mut scratch);
        let mut x = x_spectrum;
        self.accumulate(Domain::Weights, |row, col, value| x[col] += value * g[row]);
        x
    }

    /// Visits every value of one domain's sum as `(row, column, value)`.
    fn accumulate(&self, domain: Domain, mut add: impl FnMut(usize, usize, f32)) {
        if self.terms.iter().all(|term| term.domain() != domain) {
            return;
        }
        let mut tile = vec![0.0; self.layout.block() * self.layout.block()];
        for block in self.layout.iter() {
            let tile = &mut tile[..block.len()];
            tile.fill(0.0);
            self.add_terms(domain, block, tile);
            for (n, value) in tile.iter().enumerate() {
                add(block.row + n / block.width, block.col + n % block.width, *value);
            }
        }
    }
}
