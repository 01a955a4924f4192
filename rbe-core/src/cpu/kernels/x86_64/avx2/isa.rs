//! The token, and bytes in registers: half a line.

use crate::cpu::kernels::isa::{Bytes, Isa};
use crate::cpu::layout::planes::Line;
use std::arch::x86_64::*;

/// AVX2's registers, by a proof of its instructions or of more.
#[derive(Clone, Copy)]
pub(in crate::cpu::kernels::x86_64) struct Avx2<P = Own>(P);

/// A proof of AVX2's instructions or of more, and what products of bytes are made of by them.
pub(in crate::cpu::kernels::x86_64) trait Proof: Copy {
    /// Adds to each lane of `sums` four products of a code, at most 127, and an activation.
    fn add_products(self, sums: __m256i, codes: __m256i, x: __m256i) -> __m256i;

    /// Adds to each lane of `sums` two products of 16 bits.
    #[inline(always)]
    fn add_pairs(self, sums: __m256i, weights: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the token proves the instructions.
        unsafe { _mm256_add_epi32(sums, _mm256_madd_epi16(weights, x)) }
    }

    /// Dot products from such sums less what the codes' bias adds to each; in the lower half alone, where the sums are of `HALVES`.
    #[inline(always)]
    fn dots<const HALVES: bool>(self, sums: __m256i, bias: i32) -> __m256i {
        // SAFETY: the token proves the instructions.
        unsafe {
            let other = _mm256_permute2x128_si256::<1>(sums, sums);
            let sums = if HALVES { _mm256_add_epi32(sums, other) } else { sums };
            _mm256_sub_epi32(sums, _mm256_set1_epi32(bias))
        }
    }
}

/// Proof of the level's instructions.
#[derive(Clone, Copy)]
pub(in crate::cpu::kernels::x86_64) struct Own(());

impl Proof for Own {
    #[inline(always)]
    fn add_products(self, sums: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        // SAFETY: here and below, the token proves the instructions. Two products, at most `2 * 127 * 127`, fit in 16 bits.
        unsafe {
            let pairs = _mm256_maddubs_epi16(codes, x);
            _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }
}

/// Proof of the level's instructions, for sums in 16 bits, of which a lane has two: they may wrap, and a bias is two numbers of 16
/// bits, without which each sum fits.
#[derive(Clone, Copy)]
pub(super) struct Narrow(());

impl Narrow {
    /// To be had only where the compiler knows the instructions.
    #[target_feature(enable = "avx2,fma,f16c,popcnt")]
    #[inline]
    pub(super) fn new() -> Self {
        Self(())
    }
}

impl Proof for Narrow {
    #[inline(always)]
    fn add_products(self, sums: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_add_epi16(sums, _mm256_maddubs_epi16(codes, x)) }
    }

    #[inline(always)]
    fn dots<const HALVES: bool>(self, sums: __m256i, bias: i32) -> __m256i {
        // SAFETY: as above.
        unsafe {
            let other = _mm256_permute2x128_si256::<1>(sums, sums);
            let sums = if HALVES { _mm256_add_epi16(sums, other) } else { sums };
            _mm256_madd_epi16(_mm256_sub_epi16(sums, _mm256_set1_epi32(bias)), _mm256_set1_epi16(1))
        }
    }
}

impl Avx2 {
    /// To be had only where the compiler knows the instructions.
    #[target_feature(enable = "avx2,fma,f16c,popcnt")]
    #[inline]
    pub(in crate::cpu::kernels::x86_64) fn new() -> Self {
        Self(Own(()))
    }
}

impl<P: Proof> Avx2<P> {
    /// By a proof of more.
    #[inline(always)]
    pub(in crate::cpu::kernels::x86_64) fn of(proof: P) -> Self {
        Self(proof)
    }

    /// What products are made of.
    #[inline(always)]
    pub(in crate::cpu::kernels::x86_64) fn proof(self) -> P {
        self.0
    }
}

impl<P: Proof> Isa for Avx2<P> {
    const FMA: bool = true;
}

impl<P: Proof> Bytes for Avx2<P> {
    const PARTS: usize = 2;
    type Register = __m256i;

    #[inline(always)]
    fn splat(self, byte: u8) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_set1_epi8(byte.cast_signed()) }
    }

    #[inline(always)]
    fn load(self, line: &Line, part: usize) -> __m256i {
        let half = &line.0[32 * part..][..32];
        // SAFETY: half a line is 32 aligned bytes.
        unsafe { _mm256_load_si256(half.as_ptr().cast()) }
    }

    #[inline(always)]
    fn and(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_and_si256(a, b) }
    }

    #[inline(always)]
    fn shift_right(self, bytes: __m256i, shift: usize) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_srl_epi16(bytes, _mm_cvtsi32_si128((shift as u32).cast_signed())) }
    }

    #[inline(always)]
    fn insert_below<const BITS: i32>(self, above: __m256i, field: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe {
            let field = _mm256_and_si256(field, _mm256_set1_epi8(((1u32 << BITS) - 1) as i8));
            _mm256_or_si256(field, _mm256_slli_epi16::<BITS>(above))
        }
    }
}
