//! The trellis code on AVX2: 32 values in about forty instructions.
//!
//! States and indices as on AVX-512, half a line at a time. There is no permutation of 256 bytes: the values' symmetry
//! folds the index to seven bits, and eight shuffles of sixteen values each look these up. Table `t` holds
//! `T_t ^ T_(t-1)` and is shuffled by `index - 16 t`, which gives zero where it is negative, so the sum (in `^`) of
//! tables 0 to `index / 16` is what remains.

use super::super::unroll::each;
use crate::codec::term::trellis::{Code, VALUES};
use crate::cpu::strips::Packing;
use crate::cpu::tiles::{GROUP, Line, TILE_ROWS};
use std::arch::x86_64::*;

/// `VALUES[128..]` in tables of sixteen, each `^` the one before.
static TABLES: [[i8; 16]; 8] = {
    let mut tables = [[0; 16]; 8];
    let mut n = 0;
    while n < 128 {
        let before = if n < 16 { 0 } else { VALUES[128 + n - 16] };
        tables[n / 16][n % 16] = VALUES[128 + n] ^ before;
        n += 1;
    }
    tables
};

/// The codes of one register's groups, as [`generic`](super::super::trellis::decode_bundle) has them.
#[target_feature(enable = "avx2")]
pub(super) fn decode_bundle(
    bundle: (&[Line], &[Line]),
    code: Code,
    packing: Packing,
    codes: &mut [Line],
    stride: usize,
) {
    match code.bits() {
        1 => decode::<1>(bundle, code, packing, codes, stride),
        2 => decode::<2>(bundle, code, packing, codes, stride),
        3 => decode::<3>(bundle, code, packing, codes, stride),
        _ => decode::<4>(bundle, code, packing, codes, stride),
    }
}

#[target_feature(enable = "avx2")]
fn decode<const BITS: usize>(
    (ac, bd): (&[Line], &[Line]),
    code: Code,
    packing: Packing,
    codes: &mut [Line],
    stride: usize,
) {
    let (ac, bd) = (words::<BITS>(ac, packing), words::<BITS>(bd, packing));
    let multiplier = _mm256_set1_epi16(code.multiplier().cast_signed());
    let high_bytes = _mm256_set1_epi16(0xff00u16.cast_signed());
    for half in 0..2 {
        each!(S in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] {
            let (word, shift) = (BITS * S / 16, BITS * S % 16);
            let product = |words: &[Line; 5]| {
                let [first, next] = [&words[word], &words[word + 1]].map(|line| load(line, half));
                _mm256_mullo_epi16(shift_pair(first, next, shift as u32), multiplier)
            };
            let (ac, bd) = (product(&ac), product(&bd));
            let index = _mm256_or_si256(_mm256_srli_epi16::<8>(ac), _mm256_and_si256(bd, high_bytes));
            let line = &mut codes[S * stride].0[32 * half..];
            // SAFETY: half a line is 32 bytes.
            unsafe { _mm256_storeu_si256(line.as_mut_ptr().cast(), look_up(index)) };
        });
    }
}

/// A period's words and the one that follows.
#[inline(always)]
fn words<const BITS: usize>(lines: &[Line], packing: Packing) -> [Line; 5] {
    let mut words = [Line([0; 64]); 5];
    words.iter_mut().zip(lines).for_each(|(word, line)| *word = *line);
    if packing.is_full() {
        for lane in 0..TILE_ROWS {
            let next = GROUP * packing.next_lane(lane);
            words[BITS].0[GROUP * lane..][..GROUP].copy_from_slice(&lines[0].0[next..next + GROUP]);
        }
    }
    words
}

#[target_feature(enable = "avx2")]
#[inline]
fn load(line: &Line, half: usize) -> __m256i {
    // SAFETY: half a line is 32 aligned bytes.
    unsafe { _mm256_load_si256(line.0[32 * half..].as_ptr().cast()) }
}

/// The low 16 bits of `first + 2^16 next`, shifted down, in each 16-bit lane.
#[target_feature(enable = "avx2")]
#[inline]
fn shift_pair(first: __m256i, next: __m256i, shift: u32) -> __m256i {
    let count = |shift: u32| _mm_cvtsi32_si128(shift.cast_signed());
    _mm256_or_si256(_mm256_srl_epi16(first, count(shift)), _mm256_sll_epi16(next, count(16 - shift)))
}

/// `VALUES[index] + 128`.
#[target_feature(enable = "avx2")]
#[inline]
fn look_up(index: __m256i) -> __m256i {
    // Ones where the value is negative: `VALUES[127 - j] = -VALUES[128 + j]`.
    let negative = _mm256_cmpgt_epi8(index, _mm256_set1_epi8(-1));
    let top = _mm256_set1_epi8(-128);
    let mut index = _mm256_xor_si256(_mm256_xor_si256(index, negative), top);
    let mut value = _mm256_setzero_si256();
    for table in &TABLES {
        // SAFETY: sixteen bytes of an array of sixteen.
        let table = unsafe { _mm_loadu_si128(table.as_ptr().cast()) };
        value = _mm256_xor_si256(value, _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), index));
        index = _mm256_sub_epi8(index, _mm256_set1_epi8(16));
    }
    _mm256_xor_si256(_mm256_sub_epi8(_mm256_xor_si256(value, negative), negative), top)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_found() {
        if !std::arch::is_x86_feature_detected!("avx2") {
            return;
        }
        for first in (0..=255u8).step_by(32) {
            let index: [u8; 32] = std::array::from_fn(|n| first + n as u8);
            let mut codes = [0u8; 32];
            // SAFETY: AVX2 was detected; 32 bytes are read and written.
            unsafe {
                let found = look_up(_mm256_loadu_si256(index.as_ptr().cast()));
                _mm256_storeu_si256(codes.as_mut_ptr().cast(), found);
            }
            for (index, code) in index.iter().zip(codes) {
                assert_eq!(i16::from(code) - 128, i16::from(VALUES[usize::from(*index)]));
            }
        }
    }
}
