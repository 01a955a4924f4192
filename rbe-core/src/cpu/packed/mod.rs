//! The terms as the kernels want them in memory: packed once, when a matrix is first used for a product.

pub(super) mod basis;
pub(super) mod planes;
pub(super) mod sparse;
pub(super) mod trellis;
