//! The token, and bytes in registers: a line.

use crate::cpu::kernels::isa::{Bytes, Isa};
use crate::cpu::layout::planes::Line;
use std::arch::x86_64::*;

/// AVX-512's registers, by a proof of its instructions on bytes or of more.
#[derive(Clone, Copy)]
pub(in crate::cpu::kernels::x86_64) struct Avx512<P = Own>(P);

/// A proof of AVX-512's instructions on bytes or of more, and what products of bytes are made of by them.
pub(in crate::cpu::kernels::x86_64) trait Proof: Copy {
    /// Adds to each lane of `sums` four products of a code, of so many bits, and an activation.
    fn add_products<const BITS: usize>(self, sums: __m512i, codes: __m512i, x: __m512i) -> __m512i;

    /// Adds to each lane of `sums` two products of 16 bits.
    #[inline(always)]
    fn add_pairs(self, sums: __m512i, weights: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the token proves the instructions.
        unsafe { _mm512_add_epi32(sums, _mm512_madd_epi16(weights, x)) }
    }
}

/// Proof of the level's instructions.
#[derive(Clone, Copy)]
pub(in crate::cpu::kernels::x86_64) struct Own(());

impl Proof for Own {
    #[inline(always)]
    fn add_products<const BITS: usize>(self, sums: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        // SAFETY: here and below, the token proves the instructions. Two products, at most `2 * 127 * 127`, fit in 16 bits; codes of eight
        // bits are two of four.
        unsafe {
            if BITS < 8 {
                let pairs = _mm512_maddubs_epi16(codes, x);
                return _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
            }
            let nibble = _mm512_set1_epi8(0x0f);
            let low = _mm512_maddubs_epi16(_mm512_and_si512(codes, nibble), x);
            let high = _mm512_maddubs_epi16(_mm512_and_si512(_mm512_srli_epi16::<4>(codes), nibble), x);
            let low = _mm512_madd_epi16(low, _mm512_set1_epi16(1));
            let high = _mm512_madd_epi16(high, _mm512_set1_epi16(16));
            _mm512_add_epi32(sums, _mm512_add_epi32(low, high))
        }
    }
}

impl Avx512 {
    /// To be had only where the compiler knows the instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
    #[inline]
    pub(super) fn new() -> Self {
        Self(Own(()))
    }
}

impl<P: Proof> Avx512<P> {
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

impl<P: Proof> Isa for Avx512<P> {
    const FMA: bool = true;
}

impl<P: Proof> Bytes for Avx512<P> {
    const PARTS: usize = 1;
    type Register = __m512i;

    #[inline(always)]
    fn splat(self, byte: u8) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_set1_epi8(byte.cast_signed()) }
    }

    #[inline(always)]
    fn load(self, line: &Line, _part: usize) -> __m512i {
        // SAFETY: a line is 64 aligned bytes.
        unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
    }

    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_and_si512(a, b) }
    }

    #[inline(always)]
    fn shift_right(self, bytes: __m512i, shift: usize) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_srl_epi16(bytes, _mm_cvtsi32_si128((shift as u32).cast_signed())) }
    }

    #[inline(always)]
    fn insert_below<const BITS: i32>(self, above: __m512i, field: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe {
            let above = _mm512_sll_epi16(above, _mm_cvtsi32_si128(BITS));
            // field & mask | above.
            _mm512_ternarylogic_epi32::<0xea>(field, _mm512_set1_epi8(((1u32 << BITS) - 1) as i8), above)
        }
    }
}
