//! What kernels read and write: plain data, which knows no kernel.
//!
//! The packed terms are [`planes`], [`trellis`] and [`sparse`].

mod activations;
mod entries;
mod lanes;

pub(super) use super::{slices as sparse, strips as trellis, tiles as planes};
pub(super) use activations::{Activations, Batch, Digit};
pub(super) use entries::{LaneInput, Place, SortedEntries};
pub(super) use lanes::{Element, FOUR, FourLanes, LANES, Lanes};
use planes::TILE_ROWS;

/// The longest segment of an axis: the largest block edge.
pub(super) const EDGE: usize = 256;

/// The window of a block into a batch of F32 vectors.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    /// Begins at the block's first element of the first vector.
    pub values: &'a [f32],
    /// Elements from one vector to the next.
    pub stride: usize,
}

impl<'a> Input<'a> {
    /// The block's part of a vector.
    #[inline(always)]
    pub(super) fn vector(self, index: usize, len: usize) -> &'a [f32] {
        &self.values[index * self.stride..][..len]
    }
}

/// Sixteen results of each vector of a batch: rows of a row tile.
pub(super) type RowSums = Sixteen<f32>;
/// Sixteen integer products.
pub(super) type RowDots = Sixteen<i32>;

/// A register's sixteen numbers.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Sixteen<T>(pub [T; TILE_ROWS]);

impl RowSums {
    pub(super) const ZERO: Self = Self([0.0; TILE_ROWS]);
}

impl RowDots {
    pub(super) const ZERO: Self = Self([0; TILE_ROWS]);
}
