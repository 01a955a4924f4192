//! What kernels read: the packed terms.

pub(super) mod planes;
pub(super) mod sparse;
pub(super) mod trellis;
