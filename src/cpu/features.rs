//! What the running processor can do, and how to ask for less.

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

/// The level in use: the highest this processor has, or what the environment variable `RBE_CPU` names.
///
/// # Panics
/// On first use, when `RBE_CPU` names a level that is unknown or that this processor lacks: to run something
/// else than what was asked for would spoil the measurement it was asked for.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let available = levels();
        let highest = available[available.len() - 1];
        match std::env::var("RBE_CPU") {
            Err(_) => highest,
            Ok(name) => available.iter().copied().find(|level| level.name() == name).unwrap_or_else(|| {
                let names: Vec<_> = available.iter().map(|level| level.name()).collect();
                panic!("RBE_CPU={name}: this processor has {}", names.join(", "))
            }),
        }
    })
}
