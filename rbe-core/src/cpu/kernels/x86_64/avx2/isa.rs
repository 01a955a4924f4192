//! The token, and bytes in registers: half a line.

use crate::cpu::kernels::isa::{Bytes, Isa};
use crate::cpu::layout::planes::Line;
use std::arch::x86_64::*;

/// Proof of the level's instructions.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    /// To be had only where the compiler knows the instructions.
    #[target_feature(enable = "avx2,fma,f16c,popcnt")]
    #[inline]
    pub(super) fn new() -> Self {
        Self(())
    }
}

impl Isa for Avx2 {
    const FMA: bool = true;
}

impl Bytes for Avx2 {
    const PARTS: usize = 2;
    type Register = __m256i;

    #[inline(always)]
    fn splat(self, byte: u8) -> __m256i {
        // SAFETY: here and below, the token proves the instructions.
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
