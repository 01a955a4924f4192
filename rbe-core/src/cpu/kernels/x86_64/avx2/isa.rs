//! The token.

use crate::cpu::kernels::isa::Isa;

/// Proof of the level's instructions.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    /// To be had only where the compiler knows the instructions.
    #[target_feature(enable = "avx2,fma,f16c,popcnt")]
    #[inline]
    pub(super) fn new() -> Self {
        Self(())
    }
}

impl Isa for Avx2 {
    const FMA: bool = true;
}
