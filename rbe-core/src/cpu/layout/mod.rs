//! What kernels read and write: plain data, which knows no kernel.
//!
//! The packed terms are [`planes`], [`trellis`] and [`sparse`].

mod activations;
pub(super) mod entries;
mod lanes;
pub(super) mod planes;
mod rows;
pub(super) mod sparse;
mod strip;
pub(super) mod trellis;

pub(super) use activations::{Activations, FINER, Int8Slice, QuantizedRows};
pub(super) use entries::{LaneInput, Place, SortedEntries};
pub(super) use lanes::{Element, LANES, Lanes};
pub(super) use rows::{EDGE, Input, RowDots, RowSums};
pub(super) use strip::Strip;

pub use activations::Precision;
