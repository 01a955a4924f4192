//! What the running processor can do, and how to ask for less.

use crate::error::{Error, Result};
use std::ffi::OsStr;
use std::sync::OnceLock;

/// A set of instructions that kernels are built for. Ordered: a later level is never slower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every processor of the target has.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C (Haswell, Zen).
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL, VBMI, VBMI2, VNNI and GFNI (Ice Lake, Zen 4).
    Avx512,
    /// AArch64 with NEON (Cortex-A53, A72).
    Neon,
    /// AArch64 with NEON and its dot products of bytes, `dotprod` (Cortex-A55, A76, Neoverse, Apple M1).
    NeonDot,
}

impl Level {
    /// The name that `RBE_CPU` takes.
    pub fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Neon => "neon",
            Level::NeonDot => "neon-dot",
        }
    }
}

/// The levels this processor has, lowest first; never empty.
pub fn levels() -> Vec<Level> {
    // Nothing is added on an architecture without kernels of its own.
    #[allow(unused_mut)]
    let mut levels = vec![Level::Scalar];
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx2") && has!("fma") && has!("f16c") && has!("popcnt") {
            levels.push(Level::Avx2);
            if has!("avx512f")
                && has!("avx512bw")
                && has!("avx512dq")
                && has!("avx512vl")
                && has!("avx512vbmi")
                && has!("avx512vbmi2")
                && has!("avx512vnni")
                && has!("gfni")
            {
                levels.push(Level::Avx512);
            }
        }
    }
    // Bytes of a register are numbered from the lowest.
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    {
        use std::arch::is_aarch64_feature_detected as has;
        if has!("neon") {
            levels.push(Level::Neon);
            if has!("dotprod") {
                levels.push(Level::NeonDot);
            }
        }
    }
    levels
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
