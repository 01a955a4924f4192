//! The token: AVX-512's registers, and that one instruction multiplies bytes and adds them up.

use crate::cpu::kernels::x86_64::avx512_bw::isa::{Avx512, Proof};
use std::arch::x86_64::*;

/// Proof of the level's instructions.
#[derive(Clone, Copy)]
pub(super) struct Vnni(());

impl Proof for Vnni {
    #[inline(always)]
    fn add_products<const BITS: usize>(self, sums: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the token proves the instruction.
        unsafe { _mm512_dpbusd_epi32(sums, codes, x) }
    }

    #[inline(always)]
    fn add_pairs(self, sums: __m512i, weights: __m512i, x: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_dpwssd_epi32(sums, weights, x) }
    }
}

impl Avx512<Vnni> {
    /// To be had only where the compiler knows the instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt,avx512vnni")]
    #[inline]
    pub(super) fn with_vnni() -> Self {
        Self::of(Vnni(()))
    }
}
