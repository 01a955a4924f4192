//! x86-64.

pub(super) mod avx2;
pub(super) mod avx512;
mod sparse_avx2;
mod sparse_avx512;
mod trellis_avx2;
mod trellis_avx512;
