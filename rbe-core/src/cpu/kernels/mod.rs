//! The inner loops, one table of them per level.
//!
//! A level is a folder whose path carries its instruction set; in it a file a stem. Its table names what it has of its own and
//! inherits the rest from the level below. What levels share is written once in [`generic`], over the tokens and vocabularies of
//! [`isa`], and compiled by a level's `#[target_feature]` functions. Integer operations give the same bits on every level.
//!
//! To add a level: a folder, and its line in the list of its architecture ([`LEVELS`]). What it forgets is the level below's, and
//! a test asks for its name ([`LevelSpec::inherited`]).

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod aarch64;
// An architecture without kernels of its own needs a part of this and of `unroll` only.
#[cfg_attr(not(any(target_arch = "aarch64", target_arch = "x86_64")), allow(dead_code))]
mod generic;
mod isa;
mod scalar;
mod table;
#[cfg_attr(not(any(target_arch = "aarch64", target_arch = "x86_64")), allow(unused_macros, unused_imports))]
mod unroll;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub(super) use generic::dct::supports;
pub(super) use generic::norm::{NormGradient, NormRow};
pub(super) use generic::viterbi::{OVERREAD, cost};
pub(super) use table::Kernels;

/// A set of instructions and its kernels.
pub(super) struct LevelSpec {
    /// What `RBE_CPU` and people call it.
    pub name: &'static str,
    /// The level that it adds to, whose instructions it needs too.
    below: Option<&'static LevelSpec>,
    /// Whether the processor has what it adds.
    detect: fn() -> bool,
    kernels: &'static Kernels,
    /// The operations that it has from the levels below, by their names in the table: that nothing is so by oversight.
    #[cfg_attr(not(test), expect(dead_code, reason = "stated for a test"))]
    inherited: &'static [&'static str],
}

/// The levels of the architecture, lowest first.
pub(super) static LEVELS: &[&LevelSpec] = {
    #[cfg(target_arch = "x86_64")]
    {
        x86_64::LEVELS
    }
    // Bytes of a register are numbered from the lowest.
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    {
        aarch64::LEVELS
    }
    #[cfg(not(any(target_arch = "x86_64", all(target_arch = "aarch64", target_endian = "little"))))]
    {
        &[&scalar::LEVEL]
    }
};

impl LevelSpec {
    /// Whether the processor has its instructions and those of the levels below.
    pub(super) fn is_available(&self) -> bool {
        self.below.is_none_or(LevelSpec::is_available) && (self.detect)()
    }

    /// Its kernels, where the processor has its instructions.
    pub(super) fn kernels(&self) -> Option<&'static Kernels> {
        self.is_available().then_some(self.kernels)
    }
}

#[cfg(test)]
mod tests;
