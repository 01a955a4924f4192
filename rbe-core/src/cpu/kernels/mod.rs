//! The inner loops, one table of them per level.
//!
//! A level is a folder whose path carries its instruction set; in it a file a stem. Its table names what it has of its own and
//! inherits the rest from the level below. What levels share is written once in [`generic`], over the tokens and vocabularies of
//! [`isa`], and compiled by a level's `#[target_feature]` functions. Integer operations give the same bits on every level.
//!
//! To add a level: a folder, and its line in the one list, [`LEVELS`], which `RBE_CPU`, detection, tests and the program go by. An
//! operation that it forgets is the level below's, and a test asks for its name (`inherited` of [`LevelSpec`]).

// Bytes of a register are numbered from the lowest.
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod aarch64;
// An architecture without kernels of its own, or with few, needs a part of this and of `unroll` only.
#[cfg_attr(
    not(any(all(target_arch = "aarch64", target_endian = "little"), target_arch = "x86_64")),
    allow(dead_code)
)]
mod generic;
mod isa;
#[cfg_attr(
    not(any(
        all(target_arch = "aarch64", target_endian = "little"),
        all(target_arch = "wasm32", target_feature = "simd128"),
        target_arch = "x86_64"
    )),
    allow(dead_code)
)]
mod level;
mod scalar;
mod table;
#[cfg_attr(
    not(any(all(target_arch = "aarch64", target_endian = "little"), target_arch = "x86_64")),
    allow(unused_macros, unused_imports)
)]
mod unroll;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod wasm32;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub(super) use generic::attention::{KeyPart, PartialMix};
pub(super) use generic::codes::CodeTile;
pub(super) use generic::dct::supports;
pub(super) use generic::norm::{NormGradient, NormRow};
pub(super) use generic::panels::{IntegerStrip, IntegerVectors};
pub(super) use generic::tiles::TileParts;
pub(super) use generic::trellis::code_tile;
pub(super) use generic::viterbi::{OVERREAD, cost};
pub(super) use generic::viterbi_bytes::{ByteRow, DEAD, StateBlocks};
pub(super) use level::LevelSpec;
pub(super) use table::{Kernels, ViterbiByteStep, ViterbiStep};

/// The levels of the architecture, lowest first.
pub(super) static LEVELS: &[&LevelSpec] = &[
    &scalar::LEVEL,
    #[cfg(target_arch = "x86_64")]
    &x86_64::avx2::LEVEL,
    #[cfg(target_arch = "x86_64")]
    &x86_64::avx_vnni::LEVEL,
    #[cfg(all(target_arch = "x86_64", test))]
    &x86_64::avx_vnni::AS_AVX512_ENCODES_IT,
    #[cfg(target_arch = "x86_64")]
    &x86_64::avx512_bw::LEVEL,
    #[cfg(target_arch = "x86_64")]
    &x86_64::avx512_vnni::LEVEL,
    #[cfg(target_arch = "x86_64")]
    &x86_64::avx512::LEVEL,
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    &aarch64::neon::LEVEL,
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    &aarch64::neon_dot::LEVEL,
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    &wasm32::simd128::LEVEL,
];

#[cfg(test)]
mod tests;
