//! Attention of one position: eight floats in a register.

use super::isa::{Avx2, Proof};
use crate::cpu::kernels::generic::attention::{self, Floats, KeyPart, LINE, PartialMix};
use crate::cpu::kernels::x86_64::ahead::look_at;
use crate::cpu::kernels::x86_64::frame::align_frame;
use std::arch::x86_64::*;

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn attend(part: KeyPart, scores: &mut [f32], out: PartialMix) {
    align_frame();
    attention::attend(Avx2::new(), part, scores, out);
}

impl<P: Proof> Floats<8> for Avx2<P> {
    /// Twelve registers of sums, three queries and a key; or three weights and a value.
    const ROWS: usize = 3;
    type Register = __m256;

    #[inline(always)]
    fn load(self, from: &[f32; 8]) -> __m256 {
        // SAFETY: here and below, the token proves the instructions; eight numbers.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn load_part(self, from: &[f32]) -> __m256 {
        assert!(from.len() <= 8);
        // SAFETY: as above; no more numbers than there are.
        unsafe {
            let places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32((from.len() as u32).cast_signed()), places);
            _mm256_maskload_ps(from.as_ptr(), mask)
        }
    }

    #[inline(always)]
    fn store(self, x: __m256, to: &mut [f32; 8]) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    fn add_product(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    /// Sums of two places of two registers side by side, then of four of four, then of both halves.
    #[inline(always)]
    fn sums(self, [a, b, c, d]: [__m256; 4]) -> [f32; 4] {
        let mut sums = [0.0; 4];
        // SAFETY: as above; four numbers.
        unsafe {
            let ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            let quads = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(ab, cd), _mm256_shuffle_ps::<0xee>(ab, cd));
            let total = _mm_add_ps(_mm256_castps256_ps128(quads), _mm256_extractf128_ps::<1>(quads));
            _mm_storeu_ps(sums.as_mut_ptr(), total);
        }
        sums
    }

    #[inline(always)]
    fn look_at(self, line: &[f32; LINE]) {
        look_at(line);
    }
}
