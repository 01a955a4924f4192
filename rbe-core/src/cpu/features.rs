//! What the running processor can do, and how to ask for less.

use super::kernels::{Kernels, LEVELS, LevelSpec};
use crate::error::{Error, Result};
use std::cmp::Ordering;
use std::ffi::OsStr;
use std::fmt;
use std::sync::OnceLock;

/// A set of instructions that kernels are built for. Ordered: the last that a processor has is its default.
///
/// | architecture | levels, lowest first |
/// |---|---|
/// | every | `scalar`: what every processor of the target has |
/// | x86-64 | `avx2`: AVX2, FMA and F16C (Haswell, Zen) |
/// | | `avx-vnni`: AVX2 and the dot products of bytes that are encoded like it (Alder Lake) |
/// | | `avx512-bw`: AVX-512 F, BW, DQ and VL (Skylake-X) |
/// | | `avx512-vnni`: that and VNNI (Cascade Lake) |
/// | | `avx512`: that, VBMI, VBMI2 and GFNI (Ice Lake, Zen 4) |
/// | AArch64, little-endian | `neon`: NEON (Cortex-A53, A72) |
/// | | `neon-dot`: NEON and its dot products of bytes, `dotprod` (Cortex-A55, A76, Neoverse, Apple M1) |
/// | wasm32 | `simd128`: registers of 128 bits, in a module that is built with `-C target-feature=+simd128` |
#[derive(Clone, Copy)]
pub struct Level(&'static LevelSpec);

impl Level {
    /// The name that `RBE_CPU` takes.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// Its place among the architecture's.
    fn rank(self) -> Option<usize> {
        LEVELS.iter().position(|level| level.name == self.name())
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl PartialEq for Level {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Level {}

impl PartialOrd for Level {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Level {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

/// The levels this processor has, lowest first; never empty.
pub fn levels() -> Vec<Level> {
    LEVELS.iter().filter(|level| level.is_available()).map(|level| Level(level)).collect()
}

/// The level that the environment variable `RBE_CPU` asks for, or the highest this processor has where it is not set.
///
/// It is read once. Encoders, compressed tensors and this crate's ops on dense ones ask for it where they are made or called, so
/// a program meets the error there, and not in a kernel.
///
/// # Errors
/// [`Error::InvalidConfig`] when `RBE_CPU` is empty or names a level that is unknown or that this processor lacks, with the
/// names of those that it has: to run something else than what was asked for would spoil the measurement it was asked for.
pub fn requested_level() -> Result<Level> {
    static LEVEL: OnceLock<std::result::Result<Level, String>> = OnceLock::new();
    LEVEL.get_or_init(|| choose(std::env::var_os("RBE_CPU").as_deref())).clone().map_err(Error::config)
}

/// The level in use: [`requested_level`].
///
/// # Panics
/// Where that is an error. Only a program that calls the functions of this module by itself can come here without having met
/// it.
pub fn level() -> Level {
    requested_level().unwrap_or_else(|error| panic!("{error}"))
}

impl Kernels {
    /// The kernels of the level in use.
    pub(super) fn get() -> &'static Self {
        static KERNELS: OnceLock<Kernels> = OnceLock::new();
        KERNELS.get_or_init(|| {
            let level = level();
            Self::new(level).unwrap_or_else(|| unreachable!("{level:?} was detected"))
        })
    }

    /// The kernels of a level, `None` where the processor lacks it.
    pub(super) fn new(level: Level) -> Option<Self> {
        level.0.kernels().copied()
    }
}

/// The level of that name among those of this processor.
fn choose(asked: Option<&OsStr>) -> std::result::Result<Level, String> {
    let available = levels();
    let Some(name) = asked else { return Ok(available[available.len() - 1]) };
    available.iter().copied().find(|level| name == level.name()).ok_or_else(|| {
        let names: Vec<_> = available.iter().map(|level| level.name()).collect();
        format!("the environment variable RBE_CPU is {name:?}; this processor has {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_taken_by_its_name_and_by_nothing_else() {
        assert_eq!(choose(None).unwrap(), *levels().last().unwrap());
        for level in levels() {
            assert_eq!(choose(Some(OsStr::new(level.name()))).unwrap(), level);
        }
        let absent = if cfg!(target_arch = "x86_64") { "neon" } else { "avx2" };
        for name in ["", " ", "AVX2", "scalar ", "fastest", absent] {
            let error = choose(Some(OsStr::new(name))).unwrap_err();
            assert!(error.contains("RBE_CPU") && error.contains("scalar"), "{error}");
        }
    }
}
