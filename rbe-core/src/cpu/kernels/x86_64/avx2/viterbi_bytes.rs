//! Thirty-two states in two instructions: add what each adds from the table, take the least.

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
    fn swap_parts(self, register: __m256i, by: usize) -> __m256i {
        // SAFETY: as above.
        if by == 0 { register } else { unsafe { _mm256_permute2x128_si256::<0x01>(register, register) } }
    }

    #[inline(always)]
    fn pick(self, register: __m256i, places: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_shuffle_epi8(register, places) }
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
    fn zip(self, a: __m256i, b: __m256i) -> [__m256i; 2] {
        // SAFETY: as above.
        unsafe { [_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b)] }
    }

    #[inline(always)]
    fn by_parts<const W: usize>(self, registers: [__m256i; W]) -> [__m256i; W] {
        let mut sorted = registers;
        for (n, pair) in registers.chunks_exact(2).enumerate() {
            // SAFETY: as above.
            unsafe {
                sorted[n] = _mm256_permute2x128_si256::<0x20>(pair[0], pair[1]);
                sorted[W / 2 + n] = _mm256_permute2x128_si256::<0x31>(pair[0], pair[1]);
            }
        }
        sorted
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
