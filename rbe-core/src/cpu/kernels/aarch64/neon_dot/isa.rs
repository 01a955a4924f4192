//! The token.

use crate::cpu::kernels::isa::Isa;

/// Proof of the level's instructions.
#[derive(Clone, Copy)]
pub(super) struct NeonDot(());

impl NeonDot {
    /// To be had only where the compiler knows the instructions.
    #[target_feature(enable = "neon,dotprod")]
    #[inline]
    pub(super) fn new() -> Self {
        Self(())
    }
}

impl Isa for NeonDot {
    const FMA: bool = true;
}
