//! The token.

use crate::cpu::kernels::isa::Isa;

/// Proof of the level's instructions.
#[derive(Clone, Copy)]
pub(super) struct Neon(());

impl Neon {
    /// To be had only where the compiler knows the instructions.
    #[target_feature(enable = "neon")]
    #[inline]
    pub(super) fn new() -> Self {
        Self(())
    }
}

impl Isa for Neon {
    const FMA: bool = true;
}
