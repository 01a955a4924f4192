//! The trellis code on AVX-512 with VBMI: 64 values in nine instructions.
//!
//! One shift of two registers brings 16 states of columns `a` and `c` to their lanes (see
//! [`strips`](crate::cpu::strips)), a 16-bit multiplication makes the code's index of them in the high bytes. Those of
//! `b` and `d` fill the low bytes' places, and four instructions look 64 indices up in 256 values.

use super::each_row;
use crate::codec::term::trellis::{Code, VALUES};
use crate::cpu::strips::{PERIOD, Packing};
use crate::cpu::tiles::{Line, TILE_ROWS};
use std::arch::x86_64::*;

/// `VALUES + 128`.
static BIASED_VALUES: [Line; 4] = {
    let mut lines = [Line([0; 64]); 4];
    let mut n = 0;
    while n < 256 {
        lines[n / 64].0[n % 64] = (VALUES[n] as i16 + 128) as u8;
        n += 1;
    }
    lines
};

#[target_feature(enable = "avx512f")]
#[inline]
fn load(line: &Line) -> __m512i {
    // SAFETY: a line is 64 aligned bytes.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}

/// The codes of one register's groups, as [`generic`](super::super::trellis::decode_bundle) has them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
pub(super) fn decode_bundle(
    bundle: (&[Line], &[Line]),
    code: Code,
    packing: Packing,
    codes: &mut [Line],
    stride: usize,
) {
    assert!(codes.len() > (PERIOD - 1) * stride);
    let multiplier = _mm512_set1_epi16(code.multiplier().cast_signed());
    match code.bits() {
        1 => decode_1(bundle, multiplier, packing, codes, stride),
        2 => decode_2(bundle, multiplier, packing, codes, stride),
        3 => decode_3(bundle, multiplier, packing, codes, stride),
        _ => decode_4(bundle, multiplier, packing, codes, stride),
    }
}

/// The words of a bundle, and at the end those that follow each period.
macro_rules! decode {
    ($name:ident, $words:ident, $bits:literal) => {
        #[target_feature(enable = "avx512f")]
        #[inline]
        fn $words(lines: &[Line], packing: Packing, next_lane: __m512i) -> [__m512i; $bits + 1] {
            let mut words = [_mm512_setzero_si512(); $bits + 1];
            for (word, line) in words.iter_mut().zip(lines) {
                *word = load(line);
            }
            if packing.is_full() {
                words[$bits] = _mm512_permutexvar_epi32(next_lane, words[0]);
            }
            words
        }

        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
        fn $name(
            (ac, bd): (&[Line], &[Line]),
            multiplier: __m512i,
            packing: Packing,
            codes: &mut [Line],
            stride: usize,
        ) {
            let next_lane = load(&NEXT_LANE[packing.lanes().trailing_zeros() as usize]);
            let (ac, bd) = ($words(ac, packing, next_lane), $words(bd, packing, next_lane));
            let [v0, v1, v2, v3] = &BIASED_VALUES;
            let (v0, v1, v2, v3) = (load(v0), load(v1), load(v2), load(v3));
            let high_bytes = _mm512_set1_epi16(0xff00u16.cast_signed());
            each_row!(|S| {
                const WORD: usize = $bits * S / 16;
                const SHIFT: i32 = ($bits * S as u32 % 16).cast_signed();
                let ac = _mm512_shrdi_epi16::<SHIFT>(ac[WORD], ac[WORD + 1]);
                let bd = _mm512_shrdi_epi16::<SHIFT>(bd[WORD], bd[WORD + 1]);
                let ac = _mm512_srli_epi16::<8>(_mm512_mullo_epi16(ac, multiplier));
                let bd = _mm512_mullo_epi16(bd, multiplier);
                // ac | bd & high_bytes
                let index = _mm512_ternarylogic_epi32::<0xf8>(ac, bd, high_bytes);
                let below = _mm512_permutex2var_epi8(v0, index, v1);
                let above = _mm512_permutex2var_epi8(v2, index, v3);
                let values = _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), below, above);
                // SAFETY: a line is 64 aligned bytes, and the last one written is inside `codes`, as the caller
                // asserted.
                unsafe { _mm512_store_si512(codes.as_mut_ptr().add(S * stride).cast(), values) };
            });
        }
    };
}
decode!(decode_1, words_1, 1);
decode!(decode_2, words_2, 2);
decode!(decode_3, words_3, 3);
decode!(decode_4, words_4, 4);

/// [`Packing::next_lane`] of every lane, for columns of 1, 2, 4, 8 and 16 lanes.
static NEXT_LANE: [Line; 5] = {
    let mut lines = [Line([0; 64]); 5];
    let mut n = 0;
    while n < 5 {
        let mut lane = 0;
        while lane < TILE_ROWS {
            let lanes = 1 << n;
            lines[n].0[4 * lane] = (lane / lanes * lanes + (lane + 1) % lanes) as u8;
            lane += 1;
        }
        n += 1;
    }
    lines
};
