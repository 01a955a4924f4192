//! Which side of a matrix is a product's input, and which its output.

use super::layout::{Block, Cut, Layout};
use super::signs::Side;
use std::ops::Range;

/// A layout as a product sees it: its columns are inputs and its rows outputs, or the other way around when transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sides {
    layout: Layout,
    transposed: bool,
}

impl Sides {
    /// The sides of a product with the matrix, or when `transposed` with its transpose.
    pub fn new(layout: Layout, transposed: bool) -> Self {
        Self { layout, transposed }
    }

    /// The layout of the matrix itself.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Whether outputs are the matrix's columns.
    pub fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// Inputs and outputs exchanged: the sides of the product that takes a gradient back.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    /// The side of the matrix that outputs lie on.
    pub fn output_side(&self) -> Side {
        if self.transposed { Side::Cols } else { Side::Rows }
    }

    /// How inputs are cut.
    pub fn input(&self) -> &Cut {
        self.of(self.layout.row_cut(), self.layout.col_cut()).0
    }

    /// How outputs are cut.
    pub fn output(&self) -> &Cut {
        self.of(self.layout.row_cut(), self.layout.col_cut()).1
    }

    /// The block between a block of outputs and one of inputs.
    pub fn block(&self, output: usize, input: usize) -> Block {
        let (i, j) = if self.transposed { (input, output) } else { (output, input) };
        self.layout.block_at(i, j)
    }

    /// A block's inputs.
    pub fn inputs_of(&self, block: Block) -> Range<usize> {
        self.of(block.rows(), block.cols()).0
    }

    /// What belongs to inputs and what to outputs, of what the rows have and what the columns.
    pub fn of<T>(&self, rows: T, cols: T) -> (T, T) {
        if self.transposed { (rows, cols) } else { (cols, rows) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_and_outputs_change_places() {
        let layout = Layout::new(70, 300, 64).unwrap();
        let (own, back) = (Sides::new(layout, false), Sides::new(layout, true));
        assert_eq!((own.reversed(), back.reversed()), (back, own));
        assert_eq!((own.input(), own.output()), (layout.col_cut(), layout.row_cut()));
        assert_eq!((back.input(), back.output()), (layout.row_cut(), layout.col_cut()));
        assert_eq!((own.of('r', 'c'), back.of('r', 'c')), (('c', 'r'), ('r', 'c')));
        let block = layout.block_at(0, 3);
        assert_eq!((own.block(0, 3), back.block(3, 0)), (block, block));
        assert_eq!((own.inputs_of(block), back.inputs_of(block)), (block.cols(), block.rows()));
        assert_eq!((own.output_side(), back.output_side()), (Side::Rows, Side::Cols));
    }
}
