//! x86-64.

mod ahead;
pub(super) mod avx2;
pub(super) mod avx512;
pub(super) mod avx512_bw;
pub(super) mod avx512_vnni;
pub(super) mod avx_vnni;
mod frame;
