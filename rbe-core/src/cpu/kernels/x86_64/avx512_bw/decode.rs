//! The trellis code without AVX-512's look-ups of bytes: 64 values in five instructions, in seven with three bits a row and in
//! eight with four.
//!
//! Windows and their tables are as [`windows`] has them, a line at a time.

use super::isa::{Avx512, Proof};
use crate::cpu::kernels::generic::windows::{self, Windows};
use crate::cpu::kernels::isa::Bytes;
use crate::cpu::kernels::unroll::dispatch_code;
use crate::cpu::kernels::x86_64::frame::align_frame;
use crate::cpu::layout::planes::Line;
use crate::cpu::layout::trellis::Bundle;
use std::arch::x86_64::*;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
pub(in crate::cpu::kernels::x86_64) fn decode_bundle(bundle: Bundle, codes: &mut [Line], stride: usize) {
    dispatch_code!(bundle.code, decode(bundle, codes, stride))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
fn decode<const BITS: usize, const STATE: usize>(bundle: Bundle, codes: &mut [Line], stride: usize) {
    align_frame();
    windows::decode_bundle::<_, BITS, STATE>(Avx512::new(), bundle, codes, stride);
}

impl<P: Proof> Windows for Avx512<P> {
    #[inline(always)]
    fn load_next(self, line: &Line, part: usize, lanes: usize) -> __m512i {
        let own = self.load(line, part);
        // SAFETY: here and below, the token proves the instructions.
        unsafe {
            match lanes {
                2 => _mm512_shuffle_epi32::<0b10_11_00_01>(own),
                4 => _mm512_shuffle_epi32::<0b00_11_10_01>(own),
                8 => {
                    let next = _mm512_setr_epi32(1, 2, 3, 4, 5, 6, 7, 0, 9, 10, 11, 12, 13, 14, 15, 8);
                    _mm512_permutexvar_epi32(next, own)
                }
                _ => _mm512_alignr_epi32::<1>(own, own),
            }
        }
    }

    #[inline(always)]
    fn store(self, bytes: __m512i, line: &mut Line, _part: usize) {
        // SAFETY: as above; a line is 64 aligned bytes.
        unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), bytes) }
    }

    #[inline(always)]
    fn table(self, table: &[u8; 16]) -> __m512i {
        // SAFETY: as above; sixteen bytes of an array of sixteen.
        unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())) }
    }

    #[inline(always)]
    fn look_up(self, table: __m512i, index: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_shuffle_epi8(table, index) }
    }

    #[inline(always)]
    fn window_across(self, bytes: __m512i, next: __m512i, at: usize) -> __m512i {
        let here = 8 - at;
        // SAFETY: as above. Shifts of 16 bits bring in a neighbour's bits, which the masks take away.
        unsafe {
            let low = _mm512_and_si512(self.shift_right(bytes, at), _mm512_set1_epi8((1 << here) - 1));
            let high = _mm512_sll_epi16(next, _mm_cvtsi32_si128((here as u32).cast_signed()));
            _mm512_or_si512(low, _mm512_and_si512(high, _mm512_set1_epi8(0x0f & !((1 << here) - 1))))
        }
    }

    #[inline(always)]
    fn xor(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_xor_si512(a, b) }
    }

    #[inline(always)]
    fn add(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_add_epi8(a, b) }
    }
}
