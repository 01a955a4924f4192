//! Products with panels: a strip in two registers, six vectors at a time.

use super::isa::{Avx2, Proof};
use crate::cpu::kernels::generic::integers::{Integers, add_integers};
use crate::cpu::kernels::generic::panels::{self, IntegerStrip, IntegerVectors, add_floats, few_at_once};
use crate::cpu::kernels::x86_64::frame::align_frame;
use crate::cpu::layout::{Lanes, RowSums};
use std::arch::x86_64::*;
use std::ops::Range;

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn floats(weights: &[Lanes], x: &[f32], sums: &mut [RowSums]) {
    align_frame();
    let (isa, inputs) = (Avx2::new(), weights.len());
    let x = |own: Range<usize>| &x[own.start * inputs..own.end * inputs];
    few_at_once!(6, sums, |own, sums| add_floats::<Avx2, 8, 2>(isa, weights, x(own), sums), [1 2 3 4 5 6]);
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn integers(strip: IntegerStrip, x: IntegerVectors, sums: &mut [RowSums]) {
    align_frame();
    add_all(Avx2::new(), strip, x, sums);
}

/// The products of a strip with all vectors.
#[inline(always)]
pub(in crate::cpu::kernels::x86_64) fn add_all<P: Proof>(
    isa: Avx2<P>,
    strip: IntegerStrip,
    x: IntegerVectors,
    sums: &mut [RowSums],
) {
    let x = |own: Range<usize>| x.part(own, strip);
    few_at_once!(6, sums, |own, sums| add_integers::<Avx2<P>, 8, 2>(isa, strip, x(own), sums), [1 2 3 4 5 6]);
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn round_vector(x: &[f32], integers: &mut [i16]) -> f32 {
    align_frame();
    panels::round_vector(x, integers)
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn round_strip(floats: &[Lanes], integers: &mut [Lanes]) -> Lanes {
    align_frame();
    panels::round_strip(floats, integers)
}

impl<P: Proof> Integers<8> for Avx2<P> {
    type Pairs = __m256i;

    #[inline(always)]
    fn no_sums(self) -> __m256i {
        // SAFETY: here and below, the token proves the instructions.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    fn load_pairs(self, from: &[f32; 8]) -> __m256i {
        // SAFETY: as above; eight numbers.
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn add_pairs(self, sums: __m256i, weights: __m256i, x: i32) -> __m256i {
        // SAFETY: as above.
        self.proof().add_pairs(sums, weights, unsafe { _mm256_set1_epi32(x) })
    }

    #[inline(always)]
    fn add_sums(self, floats: __m256, sums: __m256i) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_add_ps(floats, _mm256_cvtepi32_ps(sums)) }
    }
}
