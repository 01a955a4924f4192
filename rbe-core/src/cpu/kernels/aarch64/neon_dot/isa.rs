//! The token: NEON's registers, and that there are dot products.

use crate::cpu::kernels::aarch64::neon::isa::{Neon, Proof};

/// Proof of the level's instructions.
#[derive(Clone, Copy)]
pub(in crate::cpu::kernels::aarch64) struct Dot(());

impl Proof for Dot {}

/// The level's token.
pub(super) type NeonDot = Neon<Dot>;

impl NeonDot {
    /// To be had only where the compiler knows the instructions.
    #[target_feature(enable = "neon,dotprod")]
    #[inline]
    pub(super) fn with_dot() -> Self {
        Self::of(Dot(()))
    }
}
