//! The matrix that is to be encoded.

/// Weights `(rows, cols)`, row after row.
#[derive(Clone, Copy, Debug)]
pub struct MatrixRef<'a> {
    values: &'a [f32],
    rows: usize,
    cols: usize,
}

impl<'a> MatrixRef<'a> {
    /// Rows of `cols` weights.
    ///
    /// # Panics
    /// When there are not `rows * cols` values.
    pub fn new(values: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(Some(values.len()), rows.checked_mul(cols), "values of a matrix ({rows}, {cols})");
        Self { values, rows, cols }
    }

    /// All weights.
    pub fn values(self) -> &'a [f32] {
        self.values
    }

    /// How many rows there are.
    pub fn rows(self) -> usize {
        self.rows
    }

    /// How many columns.
    pub fn cols(self) -> usize {
        self.cols
    }

    /// How many weights.
    pub fn elements(self) -> usize {
        self.values.len()
    }

    /// Rows and columns.
    pub fn shape(self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// One row.
    pub(super) fn row(self, row: usize) -> &'a [f32] {
        &self.values[row * self.cols..][..self.cols]
    }

    /// The first rows, at most so many.
    pub(super) fn first_rows(self, most: usize) -> Self {
        let rows = self.rows.min(most);
        Self { values: &self.values[..rows * self.cols], rows, ..self }
    }
}
