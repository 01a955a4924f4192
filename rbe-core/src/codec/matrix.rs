//! A compressed matrix and its reference operations.

use super::axis::Axes;
use super::errors::Errors;
use super::layout::{Block, Layout};
use super::scales::AxisScales;
use super::term::{Domain, Kind, Term};
use super::transform::Transform;
use crate::error::{Error, Result};

/// How a tensor's elements lie in the stored matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orientation {
    /// A vector of `cols` elements, stored as one row.
    Vector,
    /// The matrix itself.
    Matrix,
    /// The transpose of the stored matrix: `(cols, rows)`.
    Transposed,
}

/// A compressed matrix: a layout, a transform with or without random signs, and a sum of terms.
#[derive(Clone, Debug)]
pub struct Matrix {
    layout: Layout,
    transform: Transform,
    seed: Option<u64>,
    terms: Vec<Term>,
    errors: Errors,
    axes: Axes,
}

impl Matrix {
    /// Puts a matrix together. `seed` draws the random signs, `None` is none; `errors` are what the encoder measured, or the
    /// relative error alone. The terms are cut as `layout` says and come in the order of [`Term`]'s variants, each at most once
    /// but for the trellis, which may come twice. Without terms the matrix is zero.
    ///
    /// # Panics
    /// When a term is cut otherwise, out of order, or there once too often; when an error is negative, infinite or NaN.
    pub fn new(
        layout: Layout,
        transform: Transform,
        seed: Option<u64>,
        terms: Vec<Term>,
        errors: impl Into<Errors>,
    ) -> Self {
        check_terms(layout, &terms);
        let axes = Axes::new(layout, transform, seed);
        Self { layout, transform, seed, terms, errors: Errors::default(), axes }.with_errors(errors.into())
    }

    /// The same layout, transform, signs and scales with other terms.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    #[must_use]
    pub fn with_terms(&self, terms: Vec<Term>, errors: impl Into<Errors>) -> Self {
        check_terms(self.layout, &terms);
        Self { terms, errors: Errors::default(), axes: self.axes.clone(), ..*self }.with_errors(errors.into())
    }

    /// The same with this term in the place of those of its kind, or where they would stand.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    #[must_use]
    pub fn with_term(&self, term: impl Into<Term>, errors: impl Into<Errors>) -> Self {
        let term = term.into();
        let others = self.terms.iter().filter(|other| other.code() != term.code());
        let (before, after): (Vec<_>, Vec<_>) = others.cloned().partition(|other| other.code() < term.code());
        self.with_terms([before, vec![term], after].concat(), errors)
    }

    /// The same with these scales of rows and columns ([`AxisScales`]): the matrix is what it was, each row and column
    /// times its scale, but for a basis term, which they leave as it is.
    ///
    /// # Panics
    /// When there are not as many as rows or columns.
    #[must_use]
    pub fn with_scales(mut self, rows: Option<AxisScales>, cols: Option<AxisScales>) -> Self {
        self.axes.rows = self.axes.rows.with_scales(rows);
        self.axes.cols = self.axes.cols.with_scales(cols);
        self
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

    /// The first term of a kind.
    pub fn term<T: Kind>(&self) -> Option<&T> {
        self.terms.iter().find_map(T::of)
    }

    /// `|W - W^| / |W|` in the Frobenius norm, as the encoder measured it by decoding.
    pub fn relative_error(&self) -> f32 {
        self.errors.relative
    }

    /// The error, and those of the worst row and block, as the encoder measured them by decoding.
    pub fn errors(&self) -> Errors {
        self.errors
    }

    /// Numbers that a product multiplies with, basis parameters among them.
    pub fn stored_numbers(&self) -> usize {
        self.terms.iter().map(Term::stored_numbers).sum()
    }

    /// One line for people: terms, transform, block edge.
    pub fn summary(&self) -> String {
        let terms: Vec<_> = self.terms.iter().map(Term::summary).collect();
        let signs = if self.seed.is_some() { " signs" } else { "" };
        let scales = match [&self.axes.rows, &self.axes.cols].map(|axis| axis.scales().is_some()) {
            [true, true] => ", scales of rows and columns",
            [true, false] => ", scales of rows",
            [false, true] => ", scales of columns",
            [false, false] => "",
        };
        format!("{}, {} {}{signs}{scales}", terms.join(" + "), self.transform.name(), self.layout.block())
    }

    /// The same matrix with other recorded errors.
    ///
    /// # Panics
    /// When one is negative, infinite or NaN, which no payload may record.
    pub fn with_errors(mut self, errors: Errors) -> Self {
        assert!(errors.are_valid(), "{errors:?}; errors must be finite and not negative");
        self.errors = errors;
        self
    }

    /// The operators between vectors and their coefficients.
    pub fn axes(&self) -> &Axes {
        &self.axes
    }

    /// The matrix with only the first `limit` bit-planes of its planes term (others are kept whole).
    /// The recorded error is then no longer known and is set to 1, the error of nothing at all.
    ///
    /// # Errors
    /// When a scale of so few planes is larger than the format holds.
    pub fn truncate_planes(&self, limit: u8) -> Result<Self> {
        let cut = |term: &Term| term.first_planes(limit).unwrap_or_else(|| Ok(term.clone()));
        let terms = self.terms.iter().map(cut).collect::<Result<_>>()?;
        Ok(self.with_terms(terms, 1.0))
    }

    /// The matrix times `2^exponent`, to the bit, with the same recorded error.
    ///
    /// # Errors
    /// When a term's unit leaves what a payload may hold.
    pub fn times_power_of_two(&self, exponent: i32) -> Result<Self> {
        let terms = self.terms.iter().map(|term| term.times_power_of_two(exponent)).collect::<Result<_>>()?;
        Ok(self.with_terms(terms, self.errors))
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
        self.axes.inverse_block(block, out, scratch);
        self.add_terms(Domain::Weights, block, out);
    }

    /// Decodes block row `i` into `out` (`rows of the block row x cols`).
    ///
    /// # Panics
    /// When `out` has another length.
    pub fn decode_block_row(&self, i: usize, out: &mut [f32]) {
        let cols = self.layout.cols();
        assert_eq!(out.len(), self.layout.row_range(i).len() * cols);
        let (mut tile, mut scratch) =
            (vec![0.0; self.layout.largest_block()], vec![0.0; self.axes.scratch_len()]);
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
        for (i, rows) in self.layout.row_cut().iter().enumerate() {
            let cols = self.layout.cols();
            self.decode_block_row(i, &mut weights[rows.start * cols..rows.end * cols]);
        }
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
        let i = self.layout.row_cut().block_of(row);
        let height = self.layout.row_range(i).len();
        let local = row - self.layout.row_range(i).start;
        let mut scratch = vec![0.0; self.axes.scratch_len()];
        // Row `local` of `A' S` is `sum_k A[k][local] S[k]`, and A's column is A applied to a unit vector.
        let mut weights = vec![0.0; height];
        weights[local] = 1.0;
        self.axes.rows.forward_block(i, &mut weights, &mut scratch);
        let mut coefficients = vec![0.0; self.layout.col_cut().longest()];
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
            self.axes.cols.inverse_block(j, out, &mut scratch);
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
        self.axes.cols.forward(&mut spectrum, &mut scratch);
        let mut y_spectrum = vec![0.0; self.layout.rows()];
        self.accumulate(Domain::Coefficients, |row, col, value| y_spectrum[row] += value * spectrum[col]);
        self.axes.rows.inverse(&mut y_spectrum, &mut scratch);
        let mut y = y_spectrum;
        self.accumulate(Domain::Weights, |row, col, value| y[row] += value * x[col]);
        y
    }

    /// The reference transposed product `W' g`: `g` of length `rows` to a vector of length `cols`.
    ///
    /// # Panics
    /// When `g` has another length.
    pub fn matmul_t(&self, g: &[f32]) -> Vec<f32> {
        assert_eq!(g.len(), self.layout.rows());
        let mut scratch = vec![0.0; self.axes.scratch_len()];
        let mut spectrum = g.to_vec();
        self.axes.rows.forward(&mut spectrum, &mut scratch);
        let mut x_spectrum = vec![0.0; self.layout.cols()];
        self.accumulate(Domain::Coefficients, |row, col, value| x_spectrum[col] += value * spectrum[row]);
        self.axes.cols.inverse(&mut x_spectrum, &mut scratch);
        let mut x = x_spectrum;
        self.accumulate(Domain::Weights, |row, col, value| x[col] += value * g[row]);
        x
    }

    /// Visits every value of one domain's sum as `(row, column, value)`.
    fn accumulate(&self, domain: Domain, mut add: impl FnMut(usize, usize, f32)) {
        if self.terms.iter().all(|term| term.domain() != domain) {
            return;
        }
        let mut tile = vec![0.0; self.layout.largest_block()];
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

/// Whether a term may stand after these: their order is that of [`Term`]'s variants, and only one that has a residual may
/// repeat, once, directly after the first: it codes what that leaves.
pub(super) fn may_follow(term: &Term, before: &[Term]) -> bool {
    let follows = before.last().is_some_and(|last| last.code() == term.code());
    let allowed = usize::from(follows && term.residual_name().is_some());
    before.iter().filter(|other| other.code() >= term.code()).count() <= allowed
}

/// Kernels look at places that the layout names without looking whether the term has them.
fn check_terms(layout: Layout, terms: &[Term]) {
    for term in terms {
        let other = term.layout();
        assert!(
            other == layout,
            "the {} term is cut for {}x{} in blocks of {}, the matrix is {}x{} in blocks of {}",
            term.name(),
            other.rows(),
            other.cols(),
            other.block(),
            layout.rows(),
            layout.cols(),
            layout.block()
        );
    }
    for (n, term) in terms.iter().enumerate() {
        assert!(may_follow(term, &terms[..n]), "a {} term after {}", term.name(), terms[n - 1].name());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::term::trellis::{QuantizedGroup, Trellis};
    use crate::codec::term::{Basis, Sparse};
    use half::f16;

    fn layout(rows: usize, cols: usize, block: usize) -> Layout {
        Layout::new(rows, cols, block).unwrap()
    }

    fn basis(layout: Layout) -> Term {
        Term::Basis(Basis::new(layout, &vec![[1.0; 8]; layout.blocks()], false))
    }

    fn sparse(layout: Layout) -> Term {
        let format = crate::codec::term::sparse::FORMATS[0];
        Term::Sparse(Sparse::pack(layout, format, &vec![vec![]; layout.blocks()]).unwrap())
    }

    fn trellis(layout: Layout) -> Term {
        let count = crate::codec::term::trellis::scale_groups(layout).count();
        let scale_group = QuantizedGroup { bits: 0, scale: f16::ONE, codes: vec![] };
        Term::Trellis(Trellis::pack(layout, 12, 1.0, &vec![scale_group; count]))
    }

    #[test]
    fn terms_that_are_cut_otherwise_or_out_of_order_make_no_matrix() {
        let own = layout(40, 70, 32);
        let build = |terms: Vec<Term>| {
            std::panic::catch_unwind(|| Matrix::new(own, Transform::Dct, Some(1), terms, 0.0))
                .map_err(|error| error.downcast_ref::<String>().cloned().unwrap_or_default())
        };
        for other in [layout(40, 71, 32), layout(41, 70, 32), layout(40, 70, 64), layout(70, 40, 32)] {
            for term in [basis(other), sparse(other), trellis(other)] {
                let error = build(vec![basis(own), term]).unwrap_err();
                assert!(error.contains("is cut for"), "{error}");
            }
        }
        let (b, s, t) = (basis(own), sparse(own), trellis(own));
        for terms in [
            vec![b.clone(), b.clone()],
            vec![s.clone(), b.clone()],
            vec![t.clone(), s.clone()],
            vec![s.clone(), s.clone()],
            vec![t.clone(), t.clone(), t.clone()],
        ] {
            let error = build(terms).unwrap_err();
            assert!(error.contains(" term after "), "{error}");
        }
        for terms in
            [vec![], vec![b.clone(), s.clone(), t.clone(), t.clone()], vec![b, t.clone()], vec![s, t]]
        {
            build(terms).unwrap();
        }
    }

    #[test]
    fn a_term_stands_where_its_kind_does() {
        let own = layout(40, 70, 32);
        let (b, s, t) = (basis(own), sparse(own), trellis(own));
        let with = |terms: &[&Term], term: &Term| {
            let terms = terms.iter().map(|term| (*term).clone()).collect();
            let matrix = Matrix::new(own, Transform::Dct, Some(1), terms, 0.0).with_term(term.clone(), 1.0);
            matrix.terms().iter().map(Term::name).collect::<Vec<_>>()
        };
        assert_eq!(with(&[], &s), ["sparse"]);
        assert_eq!(with(&[&t], &s), ["sparse", "trellis"]);
        assert_eq!(with(&[&b, &t, &t], &s), ["basis", "sparse", "trellis", "trellis"]);
        assert_eq!(with(&[&b, &s, &t], &s), ["basis", "sparse", "trellis"]);
        assert_eq!(with(&[&b, &t, &t], &t), ["basis", "trellis"]);
        assert_eq!(with(&[&s], &b), ["basis", "sparse"]);
    }

    #[test]
    fn an_error_that_no_payload_may_record_is_not_recorded() {
        let own = layout(3, 3, 32);
        for error in [-0.5, f32::NAN, f32::INFINITY] {
            let build = || Matrix::new(own, Transform::Dct, None, vec![basis(own)], error);
            assert!(std::panic::catch_unwind(build).is_err(), "{error}");
        }
    }
}
