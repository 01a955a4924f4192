//! Kernels that levels share, written once and compiled for each. Those without a vocabulary of their own are loops that the
//! compiler vectorises well enough by itself.

pub(super) mod activations;
pub(super) mod attention;
pub(super) mod codes;
pub(super) mod columns;
pub(super) mod dct;
pub(super) mod decode;
pub(super) mod dense;
// NEON multiplies by lanes of a register instead.
#[cfg(any(target_arch = "wasm32", target_arch = "x86_64"))]
pub(super) mod dot;
// Plain Rust decodes first.
#[cfg(any(
    target_arch = "aarch64",
    target_arch = "x86_64",
    all(target_arch = "wasm32", target_feature = "simd128")
))]
pub(super) mod fused;
// Elsewhere no instruction makes more such products than products of floats.
#[cfg(target_arch = "x86_64")]
pub(super) mod integers;
pub(super) mod lanes;
pub(super) mod norm;
pub(super) mod panels;
pub(super) mod planes;
pub(super) mod sparse;
pub(super) mod strip;
pub(super) mod tiles;
pub(super) mod trellis;
pub(super) mod unpack;
pub(super) mod viterbi;
pub(super) mod viterbi_bytes;
pub(super) mod windows;
