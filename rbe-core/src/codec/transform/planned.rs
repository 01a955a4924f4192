//! What every transform is, planned for vectors of one length.

use std::fmt::Debug;

/// A transform of vectors of a length.
pub(super) trait Planned: Debug + Send + Sync {
    /// How many elements of scratch the others need for `len`.
    fn scratch_len(&self, len: usize) -> usize;

    /// `x <- T x`.
    fn forward(&self, x: &mut [f32], scratch: &mut [f32]);

    /// `x <- T' x`.
    fn inverse(&self, x: &mut [f32], scratch: &mut [f32]);
}
