//! Thirty-two states in five instructions: shuffle their costs, subtract, square, add, take the least.

use super::isa::Avx512;
use crate::cpu::kernels::generic::viterbi::{self as generic, CostLanes};
use std::arch::x86_64::*;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
pub(super) fn step<const W: usize>(costs: &[u16], values: &[i16], target: i16, next: &mut [u16]) -> u16 {
    generic::step::<_, W>(Avx512::new(), costs, values, target, next)
}

impl CostLanes for Avx512 {
    const STATES: usize = 32;
    type Register = __m512i;

    #[inline(always)]
    fn worst(self) -> __m512i {
        self.splat(-1)
    }

    #[inline(always)]
    fn splat(self, value: i16) -> __m512i {
        // SAFETY: here and below, the token proves the instructions.
        unsafe { _mm512_set1_epi16(value) }
    }

    #[inline(always)]
    fn repeat<const W: usize>(self) -> __m512i {
        let index: [u16; 32] = std::array::from_fn(|lane| (lane / W) as u16);
        // SAFETY: 64 bytes of an array of 64.
        unsafe { _mm512_loadu_si512(index.as_ptr().cast()) }
    }

    #[inline(always)]
    unsafe fn spread(self, costs: *const u16, repeat: __m512i) -> __m512i {
        // SAFETY: a register's costs, by the caller.
        unsafe { _mm512_permutexvar_epi16(repeat, _mm512_loadu_si512(costs.cast())) }
    }

    #[inline(always)]
    unsafe fn load(self, values: *const i16) -> __m512i {
        // SAFETY: a register's values, by the caller.
        unsafe { _mm512_loadu_si512(values.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, register: __m512i, costs: *mut u16) {
        // SAFETY: a register's costs, by the caller.
        unsafe { _mm512_storeu_si512(costs.cast(), register) }
    }

    #[inline(always)]
    fn cost(self, target: __m512i, values: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe {
            let difference = _mm512_subs_epi16(target, values);
            _mm512_mulhrs_epi16(difference, difference)
        }
    }

    #[inline(always)]
    fn add(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_adds_epu16(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_min_epu16(a, b) }
    }

    #[inline(always)]
    fn least(self, register: __m512i) -> u16 {
        // SAFETY: as above.
        unsafe {
            let (low, high) = (_mm512_castsi512_si256(register), _mm512_extracti64x4_epi64::<1>(register));
            let halves = _mm256_min_epu16(low, high);
            let halves = (_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
            _mm_extract_epi16::<0>(_mm_minpos_epu16(_mm_min_epu16(halves.0, halves.1))) as u16
        }
    }
}
