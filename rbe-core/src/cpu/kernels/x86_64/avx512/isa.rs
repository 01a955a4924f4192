//! The token, and bytes in registers: a line.

use crate::cpu::kernels::isa::{Bytes, Isa};
use crate::cpu::layout::planes::Line;
use std::arch::x86_64::*;

/// Proof of the level's instructions.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    /// To be had only where the compiler knows the instructions.
    #[target_feature(enable = "avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,gfni,popcnt")]
    #[inline]
    pub(super) fn new() -> Self {
        Self(())
    }
}

impl Isa for Avx512 {
    const FMA: bool = true;
}

impl Bytes for Avx512 {
    const PARTS: usize = 1;
    type Register = __m512i;

    #[inline(always)]
    fn splat(self, byte: u8) -> __m512i {
        // SAFETY: here and below, the token proves the instructions.
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
