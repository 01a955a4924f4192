//! Attention of one position: sixteen floats in a register.

use super::isa::{Avx512, Proof};
use crate::cpu::kernels::generic::attention::{self, Floats, KeyPart, LINE, PartialMix};
use crate::cpu::kernels::x86_64::ahead::look_at;
use crate::cpu::kernels::x86_64::frame::align_frame;
use std::arch::x86_64::*;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
pub(super) fn attend(part: KeyPart, scores: &mut [f32], out: PartialMix) {
    align_frame();
    attention::attend(Avx512::new(), part, scores, out);
}

impl<P: Proof> Floats<16> for Avx512<P> {
    const ROWS: usize = 4;
    type Register = __m512;

    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> __m512 {
        // SAFETY: here and below, the token proves the instructions; sixteen numbers.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn load_part(self, from: &[f32]) -> __m512 {
        assert!(from.len() <= 16);
        let mask = ((1u32 << from.len()) - 1) as u16;
        // SAFETY: as above; no more numbers than there are.
        unsafe { _mm512_maskz_loadu_ps(mask, from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, x: __m512, to: &mut [f32; 16]) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn add_product(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    /// Sums of two places of two registers side by side, then of four of four, then of both halves, and theirs.
    #[inline(always)]
    fn sums(self, [a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        let mut sums = [0.0; 4];
        // SAFETY: as above; four numbers.
        unsafe {
            let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            let quads = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(ab, cd), _mm512_shuffle_ps::<0xee>(ab, cd));
            let pairs = _mm256_add_ps(_mm512_castps512_ps256(quads), _mm512_extractf32x8_ps::<1>(quads));
            let total = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps::<1>(pairs));
            _mm_storeu_ps(sums.as_mut_ptr(), total);
        }
        sums
    }

    #[inline(always)]
    fn look_at(self, line: &[f32; LINE]) {
        look_at(line);
    }
}
