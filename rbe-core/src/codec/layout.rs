//! A matrix cut into blocks: who owns which rows and columns.

use crate::error::{Error, Result};
use std::ops::Range;

/// The block edges a file may use: powers of two.
pub const BLOCK_EDGES: [usize; 4] = [32, 64, 128, 256];

/// No block is shorter than this along an axis, unless the axis is.
///
/// A trellis's columns need rows to share bits among: what a fine-tune adds to a vocabulary of 32,000, a row or two, would
/// be lost in a block of its own.
pub const SHORTEST: usize = 32;

/// One axis cut into blocks: as many of the edge as fit, then ever shorter ones.
///
/// What whole blocks leave is cut into powers of two, the largest first, so that it too has fast transforms and fills
/// registers; the last block may have any length from 32 to 63. Where whole blocks leave 1 to 31
/// elements, the last whole block is cut up with them.
///
/// ```text
///     576 by 256:  256 256 64          192 by 256:  128 64          257 by 256:  128 64 32 33          20 by 256:  20
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    len: u32,
    /// Blocks of the edge's length, before the shorter ones.
    whole: u32,
    edge: u16,
    /// Lengths of the shorter blocks; 0 for those that are not there.
    short: [u8; MOST_SHORT],
}

/// The most shorter blocks: 256 + 31 elements are cut into 128, 64, 32 and 63.
const MOST_SHORT: usize = 4;

impl Cut {
    /// The blocks of `len` elements, at least one; the edge is one of [`BLOCK_EDGES`].
    pub fn new(len: usize, edge: usize) -> Self {
        let rest = len % edge;
        let whole = if rest == 0 || rest >= SHORTEST { len / edge } else { (len / edge).saturating_sub(1) };
        let (mut short, mut left) = ([0; MOST_SHORT], len - whole * edge);
        for short in &mut short {
            let next = Self::next_short(left, edge);
            // Less than an edge of 256, or less than 64.
            *short = next as u8;
            left -= next;
        }
        debug_assert_eq!(left, 0);
        Self { len: len as u32, whole: whole as u32, edge: edge as u16, short }
    }

    /// The block that begins what is left: the largest power of two that leaves nothing or a whole block.
    fn next_short(left: usize, edge: usize) -> usize {
        let mut next = edge;
        while left >= 2 * SHORTEST && next >= SHORTEST {
            if next == left || next + SHORTEST <= left {
                return next;
            }
            next /= 2;
        }
        left
    }

    /// Elements.
    pub fn elements(&self) -> usize {
        self.len as usize
    }

    /// Elements of a whole block.
    pub fn edge(&self) -> usize {
        self.edge.into()
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.whole_blocks() + self.short.iter().filter(|len| **len > 0).count()
    }

    /// Blocks of the edge's length that come before all shorter ones.
    pub fn whole_blocks(&self) -> usize {
        self.whole as usize
    }

    /// Elements of the longest block.
    pub fn longest(&self) -> usize {
        // Lengths fall from block to block, but the last may be a little longer than the one before.
        self.range(0).len().max(self.range(self.blocks() - 1).len())
    }

    /// The shorter blocks' elements.
    fn shorter(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let mut end = self.whole_blocks() * self.edge();
        self.short.into_iter().take_while(|len| *len > 0).map(move |len| {
            let start = end;
            end += usize::from(len);
            start..end
        })
    }

    /// The elements of a block; none for a block that is not there.
    pub fn range(&self, block: usize) -> Range<usize> {
        match block.checked_sub(self.whole_blocks()) {
            None => block * self.edge()..(block + 1) * self.edge(),
            Some(short) => self.shorter().nth(short).unwrap_or(self.elements()..self.elements()),
        }
    }

    /// The block that holds an element.
    pub fn block_of(&self, element: usize) -> usize {
        if element < self.whole_blocks() * self.edge() {
            return element / self.edge();
        }
        self.whole_blocks() + self.shorter().take_while(|block| block.end <= element).count()
    }

    /// All blocks' elements, from the first.
    pub fn iter(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let cut = *self;
        (0..cut.blocks()).map(move |block| cut.range(block))
    }
}

/// A matrix of `rows x cols` cut into blocks, each of its axes as [`Cut`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    rows: Cut,
    cols: Cut,
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
    /// Its rows in the matrix.
    pub fn rows(&self) -> Range<usize> {
        self.row..self.row + self.height
    }

    /// Its columns in the matrix.
    pub fn cols(&self) -> Range<usize> {
        self.col..self.col + self.width
    }

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
        Ok(Self { rows: Cut::new(rows, block), cols: Cut::new(cols, block) })
    }

    /// Rows of the matrix.
    pub fn rows(&self) -> usize {
        self.rows.elements()
    }

    /// Columns of the matrix.
    pub fn cols(&self) -> usize {
        self.cols.elements()
    }

    /// How the rows are cut.
    pub fn row_cut(&self) -> &Cut {
        &self.rows
    }

    /// How the columns are cut.
    pub fn col_cut(&self) -> &Cut {
        &self.cols
    }

    /// The block edge.
    pub fn block(&self) -> usize {
        self.rows.edge()
    }

    /// Elements of the largest block.
    pub fn largest_block(&self) -> usize {
        self.rows.longest() * self.cols.longest()
    }

    /// Elements of the matrix.
    pub fn elements(&self) -> usize {
        self.rows() * self.cols()
    }

    /// Number of block rows.
    pub fn block_rows(&self) -> usize {
        self.rows.blocks()
    }

    /// Number of block columns.
    pub fn block_cols(&self) -> usize {
        self.cols.blocks()
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.block_rows() * self.block_cols()
    }

    /// The matrix rows of block row `i`.
    pub fn row_range(&self, i: usize) -> Range<usize> {
        self.rows.range(i)
    }

    /// The matrix columns of block column `j`.
    pub fn col_range(&self, j: usize) -> Range<usize> {
        self.cols.range(j)
    }

    /// Block row and block column of one of this layout's blocks.
    pub fn place(&self, block: Block) -> (usize, usize) {
        (block.index / self.block_cols(), block.index % self.block_cols())
    }

    /// The block that holds the element in `row` and `col`.
    pub fn block_with(&self, row: usize, col: usize) -> Block {
        self.block_at(self.rows.block_of(row), self.cols.block_of(col))
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
        for (rows, cols, block) in [
            (1, 1, 32),
            (31, 33, 32),
            (64, 64, 64),
            (172, 64, 64),
            (1, 257, 256),
            (100, 1, 32),
            (65, 300, 256),
        ] {
            let layout = Layout::new(rows, cols, block).unwrap();
            let mut seen = vec![0u8; rows * cols];
            for (n, b) in layout.iter().enumerate() {
                assert_eq!(b.index, n);
                for r in b.row..b.row + b.height {
                    for c in b.col..b.col + b.width {
                        seen[r * cols + c] += 1;
                        assert_eq!(layout.block_with(r, c), b);
                        assert_eq!(layout.block_at(layout.place(b).0, layout.place(b).1), b);
                    }
                }
            }
            assert!(seen.iter().all(|&n| n == 1), "{rows}x{cols} by {block}");
            assert_eq!(layout.iter().count(), layout.blocks());
        }
    }

    #[test]
    fn no_block_is_short_unless_the_axis_is() {
        for edge in BLOCK_EDGES {
            for len in 1..=1200 {
                let cut = Cut::new(len, edge);
                let lengths: Vec<_> = cut.iter().map(|range| range.len()).collect();
                let (last, others) = lengths.split_last().unwrap();
                assert_eq!(lengths.iter().sum::<usize>(), len, "{len} by {edge}: {lengths:?}");
                assert_eq!(lengths.iter().max(), Some(&cut.longest()), "{len} by {edge}: {lengths:?}");
                assert!(cut.longest() <= edge.max(2 * SHORTEST - 1), "{len} by {edge}: {lengths:?}");
                assert!(others.iter().all(|l| l.is_power_of_two() && (SHORTEST..=edge).contains(l)));
                assert!(others.is_sorted_by(|a, b| a >= b), "{len} by {edge}: {lengths:?}");
                assert!(
                    len < SHORTEST && *last == len
                        || (SHORTEST..2 * SHORTEST).contains(last)
                        || *last <= edge && last.is_power_of_two(),
                    "{len} by {edge}: {lengths:?}"
                );
                assert!(lengths.iter().take(cut.whole_blocks()).all(|l| *l == edge));
                assert_eq!(lengths, as_the_format_says(len, edge));
            }
        }
    }

    /// FORMAT.md's rule, piece by piece.
    fn as_the_format_says(len: usize, edge: usize) -> Vec<usize> {
        let (mut left, mut pieces) = (len, Vec::new());
        while left > 0 {
            let powers = std::iter::successors(Some(edge), |p| Some(p / 2)).take_while(|p| *p >= 32);
            let fits = |p: &usize| *p == left || *p + 32 <= left;
            let piece = if left < 64 { left } else { powers.into_iter().find(fits).unwrap() };
            pieces.push(piece);
            left -= piece;
        }
        pieces
    }

    #[test]
    fn cuts_are_those_of_the_documentation() {
        let cut = |len| Cut::new(len, 256).iter().map(|range| range.len()).collect::<Vec<_>>();
        assert_eq!(cut(576), [256, 256, 64]);
        assert_eq!(cut(192), [128, 64]);
        assert_eq!(cut(257), [128, 64, 32, 33]);
        assert_eq!(cut(20), [20]);
        assert_eq!(cut(256 + 31), [128, 64, 32, 63]);
    }

    #[test]
    fn refuses_what_cannot_be_cut() {
        assert!(Layout::new(0, 5, 32).is_err());
        assert!(Layout::new(5, 5, 48).is_err());
        assert!(Layout::new(u32::MAX as usize, u32::MAX as usize, 64).is_err());
    }
}
