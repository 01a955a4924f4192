//! A batch of F32 vectors, and results of rows.

use crate::cpu::layout::planes::TILE_ROWS;

/// The longest segment of an axis: the largest block edge.
pub(in crate::cpu) const EDGE: usize = 256;

/// The window of a block into a batch of F32 vectors.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Input<'a> {
    /// Begins at the block's first element of the first vector.
    pub values: &'a [f32],
    /// Elements from one vector to the next.
    pub stride: usize,
}

impl<'a> Input<'a> {
    /// The block's part of a vector.
    #[inline(always)]
    pub(in crate::cpu) fn vector(self, index: usize, len: usize) -> &'a [f32] {
        &self.values[index * self.stride..][..len]
    }
}

/// Sixteen results of each vector of a batch: rows of a row tile.
pub(in crate::cpu) type RowSums = Sixteen<f32>;
/// Sixteen integer products.
pub(in crate::cpu) type RowDots = Sixteen<i32>;

/// A register's sixteen numbers.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(in crate::cpu) struct Sixteen<T>(pub [T; TILE_ROWS]);

impl RowSums {
    pub(in crate::cpu) const ZERO: Self = Self([0.0; TILE_ROWS]);
}

impl RowDots {
    pub(in crate::cpu) const ZERO: Self = Self([0; TILE_ROWS]);
}
