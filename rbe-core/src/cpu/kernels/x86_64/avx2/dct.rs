//! The transforms: the generic recursion, and registers of eight for segments alone; tiles to rows, in registers of eight too.

use super::isa::{Avx2, Proof};
use crate::cpu::kernels::generic::dct::{self, Recursive};
use crate::cpu::kernels::generic::strip::{self, OCTET, Octets};
use crate::cpu::kernels::generic::tiles::{self, TileParts};
use crate::cpu::kernels::x86_64::frame::align_frame;
use crate::cpu::layout::{Element, Strip};
use std::arch::x86_64::*;

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn dct2<L: Element>(x: &mut [L], scratch: &mut [L]) {
    align_frame();
    dct::dct2(Avx2::new(), x, scratch);
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn dct3<L: Element>(x: &mut [L], scratch: &mut [L]) {
    align_frame();
    dct::dct3(Avx2::new(), x, scratch);
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn dct4<L: Element>(x: &mut [L], scratch: &mut [L]) {
    align_frame();
    dct::dct4(Avx2::new(), x, scratch);
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn dct2_of_strip(strip: &mut Strip, len: usize, count: usize) {
    align_frame();
    strip::dct2(Avx2::new(), strip, len, count);
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn dct3_of_strip(strip: &mut Strip, len: usize, count: usize) {
    align_frame();
    strip::dct3(Avx2::new(), strip, len, count);
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn add_tiles(sums: TileParts, out: &mut [f32]) {
    tiles::add_tiles(Avx2::new(), sums, out);
}

impl Recursive for Avx2 {
    #[inline(always)]
    fn dct2<L: Element>(self, x: &mut [L], scratch: &mut [L]) {
        // SAFETY: the token proves the instructions.
        unsafe { dct2(x, scratch) }
    }

    #[inline(always)]
    fn dct3<L: Element>(self, x: &mut [L], scratch: &mut [L]) {
        // SAFETY: as above.
        unsafe { dct3(x, scratch) }
    }

    #[inline(always)]
    fn dct4<L: Element>(self, x: &mut [L], scratch: &mut [L]) {
        // SAFETY: as above.
        unsafe { dct4(x, scratch) }
    }
}

impl<P: Proof> Octets for Avx2<P> {
    type Octet = __m256;

    #[inline(always)]
    fn load(self, from: &[f32; OCTET]) -> __m256 {
        // SAFETY: here and below, the token proves the instructions; eight numbers.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, x: __m256, to: &mut [f32; OCTET]) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn reverse(self, x: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_permutevar8x32_ps(x, _mm256_setr_epi32(7, 6, 5, 4, 3, 2, 1, 0)) }
    }

    #[inline(always)]
    fn interleave(self, a: __m256, b: __m256) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe {
            let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            [_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high)]
        }
    }

    #[inline(always)]
    fn part(self, [a, b]: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe {
            let (low, high) = (_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
            [_mm256_shuffle_ps::<0x88>(low, high), _mm256_shuffle_ps::<0xdd>(low, high)]
        }
    }

    /// Pairs of rows, of two, of four.
    #[inline(always)]
    fn transpose(self, [a, b, c, d, e, f, g, h]: [__m256; OCTET]) -> [__m256; OCTET] {
        // SAFETY: as above.
        unsafe {
            let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
            let (ef, gh) = (_mm256_unpacklo_ps(e, f), _mm256_unpacklo_ps(g, h));
            let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
            let (ef_high, gh_high) = (_mm256_unpackhi_ps(e, f), _mm256_unpackhi_ps(g, h));
            let (ad0, eh0) = (_mm256_shuffle_ps::<0x44>(ab, cd), _mm256_shuffle_ps::<0x44>(ef, gh));
            let (ad1, eh1) = (_mm256_shuffle_ps::<0xee>(ab, cd), _mm256_shuffle_ps::<0xee>(ef, gh));
            let (ad2, eh2) =
                (_mm256_shuffle_ps::<0x44>(ab_high, cd_high), _mm256_shuffle_ps::<0x44>(ef_high, gh_high));
            let (ad3, eh3) =
                (_mm256_shuffle_ps::<0xee>(ab_high, cd_high), _mm256_shuffle_ps::<0xee>(ef_high, gh_high));
            [
                _mm256_permute2f128_ps::<0x20>(ad0, eh0),
                _mm256_permute2f128_ps::<0x20>(ad1, eh1),
                _mm256_permute2f128_ps::<0x20>(ad2, eh2),
                _mm256_permute2f128_ps::<0x20>(ad3, eh3),
                _mm256_permute2f128_ps::<0x31>(ad0, eh0),
                _mm256_permute2f128_ps::<0x31>(ad1, eh1),
                _mm256_permute2f128_ps::<0x31>(ad2, eh2),
                _mm256_permute2f128_ps::<0x31>(ad3, eh3),
            ]
        }
    }

    #[inline(always)]
    fn select(self, mask: &[u32; OCTET], a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above; eight masks.
        unsafe { _mm256_blendv_ps(b, a, _mm256_loadu_ps(mask.as_ptr().cast())) }
    }
}
