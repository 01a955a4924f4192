//! Sixty-four states in three instructions: shuffle their costs, add what each adds from the table, take the least.

use super::isa::Avx512;
use crate::cpu::kernels::generic::viterbi_bytes::{self as generic, ByteLanes, ByteRow, DEAD};
use crate::cpu::kernels::x86_64::frame::align_frame;
use crate::cpu::layout::planes::Line;
use std::arch::x86_64::*;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
pub(super) fn step<const W: usize>(row: ByteRow, table: &mut [Line], next: &mut [u8]) -> u8 {
    align_frame();
    generic::step::<_, W>(Avx512::new(), row, table, next)
}

impl ByteLanes for Avx512 {
    const LANES: usize = 64;
    type Register = __m512i;

    #[inline(always)]
    fn splat(self, byte: u8) -> __m512i {
        // SAFETY: here and below, the token proves the instructions.
        unsafe { _mm512_set1_epi8(byte.cast_signed()) }
    }

    #[inline(always)]
    unsafe fn load(self, bytes: *const u8) -> __m512i {
        // SAFETY: a register's bytes, by the caller.
        unsafe { _mm512_loadu_si512(bytes.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, register: __m512i, bytes: *mut u8) {
        // SAFETY: a register's bytes, by the caller.
        unsafe { _mm512_storeu_si512(bytes.cast(), register) }
    }

    #[inline(always)]
    fn repeat<const W: usize>(self) -> __m512i {
        let of_words = |lane: usize| lane % 16 / 2 * 2;
        let places: [u8; 64] =
            std::array::from_fn(|lane| if W == 2 { of_words(lane) } else { lane / W } as u8);
        // SAFETY: an array of 64 bytes.
        unsafe { self.load(places.as_ptr()) }
    }

    /// All quarters see the same sixteen, of which they take theirs. Thirty-two come as words, each in its place.
    #[inline(always)]
    unsafe fn spread<const W: usize>(self, costs: *const u8, repeat: __m512i) -> __m512i {
        // SAFETY: as many bytes, by the caller.
        unsafe {
            let costs = if W == 2 {
                _mm512_cvtepu8_epi16(_mm256_loadu_si256(costs.cast()))
            } else {
                _mm512_broadcast_i32x4(_mm_loadu_si128(costs.cast()))
            };
            _mm512_shuffle_epi8(costs, repeat)
        }
    }

    #[inline(always)]
    fn rows<'a>(self, of: impl Fn(usize) -> &'a [u8; 16]) -> __m512i {
        // SAFETY: sixteen bytes each.
        let row = |part| unsafe { _mm_loadu_si128(of(part).as_ptr().cast()) };
        // SAFETY: as above.
        unsafe {
            let (low, high) = (_mm256_set_m128i(row(1), row(0)), _mm256_set_m128i(row(3), row(2)));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        }
    }

    #[inline(always)]
    fn pick(self, rows: __m512i, places: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_shuffle_epi8(rows, places) }
    }

    #[inline(always)]
    fn join(self, even: __m512i, odd: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_mask_blend_epi64(0b1010_1010, even, odd) }
    }

    #[inline(always)]
    fn add(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_adds_epu8(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_min_epu8(a, b) }
    }

    #[inline(always)]
    fn take_off(self, costs: __m512i, excess: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe {
            let living = _mm512_cmpneq_epi8_mask(costs, self.splat(DEAD));
            _mm512_mask_sub_epi8(costs, living, costs, excess)
        }
    }

    #[inline(always)]
    fn least(self, register: __m512i) -> u8 {
        // SAFETY: as above.
        unsafe {
            let (low, high) = (_mm512_castsi512_si256(register), _mm512_extracti64x4_epi64::<1>(register));
            let bytes = _mm256_min_epu8(low, high);
            let bytes = _mm_min_epu8(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
            let bytes = _mm_min_epu8(bytes, _mm_srli_epi16::<8>(bytes));
            let words = _mm_and_si128(bytes, _mm_set1_epi16(0xff));
            _mm_extract_epi16::<0>(_mm_minpos_epu16(words)) as u8
        }
    }
}
