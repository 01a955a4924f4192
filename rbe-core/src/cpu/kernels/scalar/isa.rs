//! The token, of which no proof is asked.

use crate::cpu::kernels::isa::Isa;

/// The instructions that the compiler uses for the target.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

impl Isa for Scalar {
    const FMA: bool = false;
}
