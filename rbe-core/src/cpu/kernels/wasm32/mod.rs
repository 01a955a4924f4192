//! WebAssembly. A module says when it is built what it needs, so a level is there or it is not.

pub(super) mod simd128;
