//! A matrix cut into blocks: who owns which rows and columns.

use crate::error::{Error, Result};
use std::ops::Range;

/// The block edges a file may use.
pub const BLOCK_EDGES: [usize; 4] = [32, 64, 128, 256];

/// A matrix of `rows x cols` cut into square blocks of edge `block`.
///
/// Blocks at the right and bottom border keep their true smaller size; nothing is padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    rows: usize,
    cols: usize,
    block: usize,
}

/// One block of a [`Layout`]: its place in the grid, in the matrix, and its true size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Row-major index among all blocks.
    pub index: usize,
    /// First row in the matrix.
    pub row: usize,
    /// First column in the matrix.
    pub col: usize,
    /// Rows of this block.
    pub height: usize,
    /// Columns of this block.
    pub width: usize,
}

impl Block {
    /// Coefficients in the block.
    pub fn len(&self) -> usize {
        self.height * self.width
    }

    /// Never true: a layout has no empty blocks.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of one row's bit mask.
    pub(crate) fn mask_bytes(&self) -> usize {
        self.width.div_ceil(8)
    }
}

impl Layout {
    /// A layout of at least one element.
    ///
    /// # Errors
    /// When a side is zero or beyond `u32`, the element count overflows, or `block` is not one of
    /// [`BLOCK_EDGES`].
    pub fn new(rows: usize, cols: usize, block: usize) -> Result<Self> {
        if !BLOCK_EDGES.contains(&block) {
            return Err(Error::config(format!("block edge {block}; allowed are 32, 64, 128 and 256")));
        }
        if rows == 0 || cols == 0 {
            return Err(Error::shape(format!("{rows}x{cols} has no elements")));
        }
        let bytes = rows.checked_mul(cols).and_then(|n| n.checked_mul(size_of::<f32>()));
        if u32::try_from(rows).is_err()
            || u32::try_from(cols).is_err()
            || bytes.is_none_or(|n| isize::try_from(n).is_err())
        {
            return Err(Error::shape(format!("{rows}x{cols} is too large")));
        }
        Ok(Self { rows, cols, block })
    }

    /// Rows of the matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the matrix.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The block edge.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Elements of the matrix.
    pub fn elements(&self) -> usize {
        self.rows * self.cols
    }

    /// Number of block rows.
    pub fn block_rows(&self) -> usize {
        self.rows.div_ceil(self.block)
    }

    /// Number of block columns.
    pub fn block_cols(&self) -> usize {
        self.cols.div_ceil(self.block)
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.block_rows() * self.block_cols()
    }

    /// The matrix rows of block row `i`.
    pub fn row_range(&self, i: usize) -> Range<usize> {
        i * self.block..((i + 1) * self.block).min(self.rows)
    }

    /// The matrix columns of block column `j`.
    pub fn col_range(&self, j: usize) -> Range<usize> {
        j * self.block..((j + 1) * self.block).min(self.cols)
    }

    /// The block in block row `i` and block column `j`.
    pub fn block_at(&self, i: usize, j: usize) -> Block {
        let (rows, cols) = (self.row_range(i), self.col_range(j));
        Block {
            index: i * self.block_cols() + j,
            row: rows.start,
            col: cols.start,
            height: rows.len(),
            width: cols.len(),
        }
    }

    /// All blocks in row-major order.
    pub fn iter(&self) -> impl Iterator<Item = Block> + '_ {
        (0..self.block_rows()).flat_map(move |i| (0..self.block_cols()).map(move |j| self.block_at(i, j)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_every_element_once() {
        for (rows, cols, block) in
            [(1, 1, 32), (31, 33, 32), (64, 64, 64), (172, 64, 64), (1, 257, 256), (100, 1, 32)]
        {
            let layout = Layout::new(rows, cols, block).unwrap();
            let mut seen = vec![0u8; rows * cols];
            for (n, b) in layout.iter().enumerate() {
                assert_eq!(b.index, n);
                for r in b.row..b.row + b.height {
                    for c in b.col..b.col + b.width {
                        seen[r * cols + c] += 1;
                    }
                }
            }
            assert!(seen.iter().all(|&n| n == 1), "{rows}x{cols} by {block}");
            assert_eq!(layout.iter().count(), layout.blocks());
        }
    }

    #[test]
    fn refuses_what_cannot_be_cut() {
        assert!(Layout::new(0, 5, 32).is_err());
        assert!(Layout::new(5, 5, 48).is_err());
        assert!(Layout::new(u32::MAX as usize, u32::MAX as usize, 64).is_err());
    }
}
