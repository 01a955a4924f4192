//! The dense product of small matrices, by the library that Candle uses.

use crate::codec::sizes::strided;

/// A matrix in a slice.
#[derive(Clone, Copy)]
pub(super) struct Strided<'a> {
    pub values: &'a [f32],
    pub rows: usize,
    pub cols: usize,
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Elements from one column to the next.
    pub col_stride: usize,
}

impl<'a> Strided<'a> {
    /// Rows of `cols` elements, `stride` apart.
    pub(super) fn new(values: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        Self { values, rows, cols, row_stride: stride, col_stride: 1 }
    }

    /// The same elements with rows and columns exchanged.
    pub(super) fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

impl Strided<'_> {
    /// Whether the slice holds the last element, and with it all.
    fn fits(&self) -> bool {
        let row = strided(self.cols, self.col_stride, 1);
        row.and_then(|row| strided(self.rows, self.row_stride, row))
            .is_some_and(|end| end <= self.values.len())
    }
}

/// What happens to the elements that the product is written to.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Write {
    Over,
    Add,
}

/// `out = a b` or `out += a b` on the calling thread; `out` has rows of `b.cols` elements, `stride` apart.
///
/// # Panics
/// When the sizes do not fit or a slice is too short.
pub(super) fn multiply(out: &mut [f32], stride: usize, a: Strided, b: Strided, write: Write) {
    assert_eq!(a.cols, b.rows);
    let (rows, cols) = (a.rows, b.cols);
    if rows == 0 || cols == 0 {
        return;
    }
    assert!(a.cols > 0 && cols <= stride);
    assert!(strided(rows, stride, cols).is_some_and(|needed| needed <= out.len()));
    assert!(a.fits() && b.fits());
    // SAFETY: the asserts above keep the last element of every matrix inside its slice, rows of `out` do not overlap,
    // and `out` is borrowed alone.
    unsafe {
        gemm::gemm(
            rows,
            cols,
            a.cols,
            out.as_mut_ptr(),
            1,
            stride.cast_signed(),
            write == Write::Add,
            a.values.as_ptr(),
            a.col_stride.cast_signed(),
            a.row_stride.cast_signed(),
            b.values.as_ptr(),
            b.col_stride.cast_signed(),
            b.row_stride.cast_signed(),
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
