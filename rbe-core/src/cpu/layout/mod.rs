//! What kernels read and write: plain data, which knows no kernel.
//!
//! The packed terms are [`planes`], [`trellis`] and [`sparse`].

mod activations;
pub(super) mod entries;
mod lanes;
mod rows;

pub(super) use super::{slices as sparse, strips as trellis, tiles as planes};
pub(super) use activations::{Activations, Batch, Digit};
pub(super) use entries::{LaneInput, Place, SortedEntries};
pub(super) use lanes::{Element, FOUR, FourLanes, LANES, Lanes};
pub(super) use rows::{EDGE, Input, RowDots, RowSums};

pub use activations::Precision;
