//! The token.

use crate::cpu::kernels::isa::Isa;

/// Proof of the level's instructions.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    /// To be had only where the compiler knows the instructions.
    #[target_feature(enable = "avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,gfni,popcnt")]
    #[inline]
    pub(super) fn new() -> Self {
        Self(())
    }
}

impl Isa for Avx512 {
    const FMA: bool = true;
}
