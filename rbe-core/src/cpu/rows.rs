//! What a product multiplies.

use crate::codec::sizes::expect_len;

/// Rows of activations or of gradients: `batch` vectors of `len` elements, one after another.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// All elements.
    pub(super) values: &'a [f32],
    pub(super) batch: usize,
    pub(super) len: usize,
}

impl<'a> Rows<'a> {
    /// `batch` rows of `len` elements.
    ///
    /// # Panics
    /// When the slice has more or fewer.
    pub fn new(values: &'a [f32], batch: usize, len: usize) -> Self {
        expect_len("the input", values.len(), &[batch, len]);
        Self { values, batch, len }
    }

    /// How many rows there are.
    pub fn batch(self) -> usize {
        self.batch
    }

    /// Elements of a row.
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether there is no row.
    pub fn is_empty(self) -> bool {
        self.batch == 0
    }
}
