//! The token: AVX-512's registers, and all of the level's instructions.

use crate::cpu::kernels::x86_64::avx512_bw::isa::{Avx512, Proof};
use std::arch::x86_64::*;

/// Proof of the level's instructions.
#[derive(Clone, Copy)]
pub(super) struct Vbmi(());

impl Proof for Vbmi {
    #[inline(always)]
    fn add_products<const BITS: usize>(self, sums: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the token proves the instruction.
        unsafe { _mm512_dpbusd_epi32(sums, codes, x) }
    }
}

/// The level's token.
pub(super) type Avx512Vbmi = Avx512<Vbmi>;

impl Avx512Vbmi {
    /// To be had only where the compiler knows the instructions.
    #[target_feature(enable = "avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,gfni,popcnt")]
    #[inline]
    pub(super) fn with_vbmi() -> Self {
        Self::of(Vbmi(()))
    }
}
