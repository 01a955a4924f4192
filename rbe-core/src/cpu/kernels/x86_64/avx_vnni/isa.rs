//! The tokens: AVX2's registers, and that one instruction multiplies bytes and adds them up.

use crate::cpu::kernels::x86_64::avx2::isa::{Avx2, Proof};
use std::arch::x86_64::*;

/// Proof of the level's instructions.
#[derive(Clone, Copy)]
pub(super) struct Vex(());

/// Proof of AVX-512's encoding of them.
#[cfg(test)]
#[derive(Clone, Copy)]
pub(super) struct Evex(());

/// A proof by which codes may have eight bits too.
pub(super) trait Vnni: Proof {}

impl Proof for Vex {
    #[inline(always)]
    fn add_products(self, sums: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the token proves the instruction.
        unsafe { _mm256_dpbusd_avx_epi32(sums, codes, x) }
    }

    #[inline(always)]
    fn add_pairs(self, sums: __m256i, weights: __m256i, x: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_dpwssd_avx_epi32(sums, weights, x) }
    }
}

impl Vnni for Vex {}

#[cfg(test)]
impl Proof for Evex {
    #[inline(always)]
    fn add_products(self, sums: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the token proves the instruction.
        unsafe { _mm256_dpbusd_epi32(sums, codes, x) }
    }

    #[inline(always)]
    fn add_pairs(self, sums: __m256i, weights: __m256i, x: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_dpwssd_epi32(sums, weights, x) }
    }
}

#[cfg(test)]
impl Vnni for Evex {}

impl Avx2<Vex> {
    /// To be had only where the compiler knows the instructions.
    #[target_feature(enable = "avx2,fma,f16c,popcnt,avxvnni")]
    #[inline]
    pub(super) fn with_vnni() -> Self {
        Self::of(Vex(()))
    }
}

#[cfg(test)]
impl Avx2<Evex> {
    /// To be had only where the compiler knows the instructions.
    #[target_feature(enable = "avx2,fma,f16c,popcnt,avx512vnni,avx512vl")]
    #[inline]
    pub(super) fn with_vnni() -> Self {
        Self::of(Evex(()))
    }
}
