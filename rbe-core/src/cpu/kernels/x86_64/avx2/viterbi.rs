//! Sixteen states in five instructions: shuffle their costs, subtract, square, add, take the least.

use super::isa::Avx2;
use crate::cpu::kernels::generic::viterbi::{self as generic, CostLanes};
use std::arch::x86_64::*;

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn step<const W: usize>(costs: &[u16], values: &[i16], target: i16, next: &mut [u16]) -> u16 {
    generic::step::<_, W>(Avx2::new(), costs, values, target, next)
}

impl CostLanes for Avx2 {
    const STATES: usize = 16;
    type Register = __m256i;

    #[inline(always)]
    fn worst(self) -> __m256i {
        self.splat(-1)
    }

    #[inline(always)]
    fn splat(self, value: i16) -> __m256i {
        // SAFETY: here and below, the token proves the instructions.
        unsafe { _mm256_set1_epi16(value) }
    }

    /// Both halves see the same eight costs and take theirs by bytes.
    #[inline(always)]
    fn repeat<const W: usize>(self) -> __m256i {
        let index: [u8; 32] = std::array::from_fn(|byte| (byte / 2 / W * 2 + byte % 2) as u8);
        // SAFETY: 32 bytes of an array of 32.
        unsafe { _mm256_loadu_si256(index.as_ptr().cast()) }
    }

    #[inline(always)]
    unsafe fn spread(self, costs: *const u16, repeat: __m256i) -> __m256i {
        // SAFETY: eight costs, by the caller.
        unsafe {
            let costs = _mm256_broadcastsi128_si256(_mm_loadu_si128(costs.cast()));
            _mm256_shuffle_epi8(costs, repeat)
        }
    }

    #[inline(always)]
    unsafe fn load(self, values: *const i16) -> __m256i {
        // SAFETY: a register's values, by the caller.
        unsafe { _mm256_loadu_si256(values.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, register: __m256i, costs: *mut u16) {
        // SAFETY: a register's costs, by the caller.
        unsafe { _mm256_storeu_si256(costs.cast(), register) }
    }

    #[inline(always)]
    fn cost(self, target: __m256i, values: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe {
            let difference = _mm256_subs_epi16(target, values);
            _mm256_mulhrs_epi16(difference, difference)
        }
    }

    #[inline(always)]
    fn add(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_adds_epu16(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_min_epu16(a, b) }
    }

    #[inline(always)]
    fn least(self, register: __m256i) -> u16 {
        // SAFETY: as above.
        unsafe {
            let halves = (_mm256_castsi256_si128(register), _mm256_extracti128_si256::<1>(register));
            _mm_extract_epi16::<0>(_mm_minpos_epu16(_mm_min_epu16(halves.0, halves.1))) as u16
        }
    }
}
