//! Thirty-two states in three instructions: shuffle their costs, add what each adds from the table, take the least.

use super::isa::Avx2;
use crate::cpu::kernels::generic::viterbi_bytes::{self as generic, ByteLanes, ByteRow, DEAD};
use crate::cpu::kernels::x86_64::frame::align_frame;
use crate::cpu::layout::planes::Line;
use std::arch::x86_64::*;

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn step<const W: usize>(row: ByteRow, table: &mut [Line], next: &mut [u8]) -> u8 {
    align_frame();
    generic::step::<_, W>(Avx2::new(), row, table, next)
}

impl ByteLanes for Avx2 {
    const LANES: usize = 32;
    type Register = __m256i;

    #[inline(always)]
    fn splat(self, byte: u8) -> __m256i {
        // SAFETY: here and below, the token proves the instructions.
        unsafe { _mm256_set1_epi8(byte.cast_signed()) }
    }

    #[inline(always)]
    unsafe fn load(self, bytes: *const u8) -> __m256i {
        // SAFETY: a register's bytes, by the caller.
        unsafe { _mm256_loadu_si256(bytes.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, register: __m256i, bytes: *mut u8) {
        // SAFETY: a register's bytes, by the caller.
        unsafe { _mm256_storeu_si256(bytes.cast(), register) }
    }

    #[inline(always)]
    fn repeat<const W: usize>(self) -> __m256i {
        let places: [u8; 32] = std::array::from_fn(|lane| (lane / W) as u8);
        // SAFETY: an array of 32 bytes.
        unsafe { self.load(places.as_ptr()) }
    }

    /// Both halves see the same sixteen.
    #[inline(always)]
    unsafe fn spread<const W: usize>(self, costs: *const u8, repeat: __m256i) -> __m256i {
        // SAFETY: sixteen bytes, by the caller.
        unsafe {
            let costs = _mm256_broadcastsi128_si256(_mm_loadu_si128(costs.cast()));
            _mm256_shuffle_epi8(costs, repeat)
        }
    }

    #[inline(always)]
    fn rows<'a>(self, of: impl Fn(usize) -> &'a [u8; 16]) -> __m256i {
        // SAFETY: sixteen bytes each.
        let row = |part| unsafe { _mm_loadu_si128(of(part).as_ptr().cast()) };
        // SAFETY: as above.
        unsafe { _mm256_set_m128i(row(1), row(0)) }
    }

    #[inline(always)]
    fn pick(self, rows: __m256i, places: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_shuffle_epi8(rows, places) }
    }

    #[inline(always)]
    fn join(self, even: __m256i, odd: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_blend_epi32::<0b1100_1100>(even, odd) }
    }

    #[inline(always)]
    fn add(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_adds_epu8(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_min_epu8(a, b) }
    }

    #[inline(always)]
    fn take_off(self, costs: __m256i, excess: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe {
            let dead = _mm256_cmpeq_epi8(costs, self.splat(DEAD));
            _mm256_or_si256(dead, _mm256_sub_epi8(costs, excess))
        }
    }

    #[inline(always)]
    fn least(self, register: __m256i) -> u8 {
        // SAFETY: as above.
        unsafe {
            let (low, high) = (_mm256_castsi256_si128(register), _mm256_extracti128_si256::<1>(register));
            let bytes = _mm_min_epu8(low, high);
            let bytes = _mm_min_epu8(bytes, _mm_srli_epi16::<8>(bytes));
            let words = _mm_and_si128(bytes, _mm_set1_epi16(0xff));
            _mm_extract_epi16::<0>(_mm_minpos_epu16(words)) as u8
        }
    }
}
