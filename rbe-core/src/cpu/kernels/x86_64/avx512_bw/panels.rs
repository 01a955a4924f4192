//! Products with panels: a strip in one register, twelve vectors at a time.

use super::isa::{Avx512, Proof};
use crate::cpu::kernels::generic::integers::{Integers, add_integers};
use crate::cpu::kernels::generic::panels::{self, IntegerStrip, IntegerVectors, add_floats, few_at_once};
use crate::cpu::kernels::x86_64::frame::align_frame;
use crate::cpu::layout::{Lanes, RowSums};
use std::arch::x86_64::*;
use std::ops::Range;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
pub(super) fn floats(weights: &[Lanes], x: &[f32], sums: &mut [RowSums]) {
    align_frame();
    let (isa, inputs) = (Avx512::new(), weights.len());
    let x = |own: Range<usize>| &x[own.start * inputs..own.end * inputs];
    few_at_once!(
        12,
        sums,
        |own, sums| add_floats::<Avx512, 16, 1>(isa, weights, x(own), sums),
        [1 2 3 4 5 6 7 8 9 10 11 12]
    );
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
pub(super) fn integers(strip: IntegerStrip, x: IntegerVectors, sums: &mut [RowSums]) {
    align_frame();
    add_all(Avx512::new(), strip, x, sums);
}

/// The products of a strip with all vectors.
#[inline(always)]
pub(in crate::cpu::kernels::x86_64) fn add_all<P: Proof>(
    isa: Avx512<P>,
    strip: IntegerStrip,
    x: IntegerVectors,
    sums: &mut [RowSums],
) {
    let x = |own: Range<usize>| x.part(own, strip);
    few_at_once!(
        12,
        sums,
        |own, sums| add_integers::<Avx512<P>, 16, 1>(isa, strip, x(own), sums),
        [1 2 3 4 5 6 7 8 9 10 11 12]
    );
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
pub(super) fn round_vector(x: &[f32], integers: &mut [i16]) -> f32 {
    align_frame();
    panels::round_vector(x, integers)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
pub(super) fn round_strip(floats: &[Lanes], integers: &mut [Lanes]) -> Lanes {
    align_frame();
    panels::round_strip(floats, integers)
}

impl<P: Proof> Integers<16> for Avx512<P> {
    type Pairs = __m512i;

    #[inline(always)]
    fn no_sums(self) -> __m512i {
        // SAFETY: here and below, the token proves the instructions.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn load_pairs(self, from: &[f32; 16]) -> __m512i {
        // SAFETY: as above; sixteen numbers.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn add_pairs(self, sums: __m512i, weights: __m512i, x: i32) -> __m512i {
        // SAFETY: as above.
        self.proof().add_pairs(sums, weights, unsafe { _mm512_set1_epi32(x) })
    }

    #[inline(always)]
    fn add_sums(self, floats: __m512, sums: __m512i) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_add_ps(floats, _mm512_cvtepi32_ps(sums)) }
    }
}
