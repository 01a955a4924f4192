//! The trellis code on AVX2: 32 values in about thirty instructions, in about forty from 3 bits on.
//!
//! States and indices as on AVX-512, half a line at a time. There is no permutation of 128 bytes: where the values' symmetry
//! folds the index to six bits, four shuffles of sixteen magnitudes each look these up, eight where there are 128. Table
//! `t` holds `T_t ^ T_(t-1)` and is shuffled by `index - 16 t`, which gives zero where it is negative, so the sum
//! (in `^`) of tables 0 to `index / 16` is what remains.

use super::super::unroll::{dispatch_bits, each};
use crate::codec::term::trellis::{COARSE_BITS, COARSE_VALUES, Code, FINE_VALUES};
use crate::cpu::strips::Packing;
use crate::cpu::tiles::{GROUP, Line, TILE_ROWS};
use std::arch::x86_64::*;

/// Magnitudes in tables of sixteen, each `^` the one before.
type Tables<const N: usize> = [[i8; 16]; N];

/// Those of [`COARSE_VALUES`], from the middle up.
static COARSE: Tables<4> = tables(&COARSE_VALUES, 64);
/// Those of [`FINE_VALUES`].
static FINE: Tables<8> = tables(&FINE_VALUES, 0);

const fn tables<const N: usize>(values: &[i8], first: usize) -> Tables<N> {
    let mut tables = [[0; 16]; N];
    let mut n = 0;
    while n < 16 * N {
        let before = if n < 16 { 0 } else { values[first + n - 16] };
        tables[n / 16][n % 16] = values[first + n] ^ before;
        n += 1;
    }
    tables
}

/// The codes of one register's groups, as [`generic`](super::super::trellis::decode_bundle) has them.
#[target_feature(enable = "avx2")]
pub(super) fn decode_bundle(
    bundle: (&[Line], &[Line]),
    code: Code,
    packing: Packing,
    codes: &mut [Line],
    stride: usize,
) {
    dispatch_bits!(code.bits(), decode(bundle, code, packing, codes, stride))
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
            unsafe { _mm256_storeu_si256(line.as_mut_ptr().cast(), codes_of::<BITS>(index)) };
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

/// `value + 128` of indices in the high bits of each byte.
#[target_feature(enable = "avx2")]
#[inline]
fn codes_of<const BITS: usize>(index: __m256i) -> __m256i {
    let top = _mm256_set1_epi8(-128);
    let value = if BITS <= usize::from(COARSE_BITS) {
        // Seven bits; below 64 they count down to the middle.
        let index = _mm256_and_si256(_mm256_srli_epi16::<1>(index), _mm256_set1_epi8(0x7f));
        let below = _mm256_cmpgt_epi8(_mm256_set1_epi8(64), index);
        let fold = _mm256_blendv_epi8(_mm256_set1_epi8(0x40), _mm256_set1_epi8(0x3f), below);
        let magnitude = look_up(&COARSE, _mm256_xor_si256(index, fold));
        _mm256_sub_epi8(_mm256_xor_si256(magnitude, below), below)
    } else {
        let magnitude = look_up(&FINE, _mm256_andnot_si256(top, index));
        // Not zero, which would make a zero of the value; the sign is the index's.
        _mm256_sign_epi8(magnitude, _mm256_or_si256(index, _mm256_set1_epi8(1)))
    };
    _mm256_xor_si256(value, top)
}

#[target_feature(enable = "avx2")]
#[inline]
fn look_up<const N: usize>(tables: &Tables<N>, mut index: __m256i) -> __m256i {
    let mut value = _mm256_setzero_si256();
    for table in tables {
        // SAFETY: sixteen bytes of an array of sixteen.
        let table = unsafe { _mm_loadu_si128(table.as_ptr().cast()) };
        value = _mm256_xor_si256(value, _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), index));
        index = _mm256_sub_epi8(index, _mm256_set1_epi8(16));
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every byte as [`codes_of`] gets it.
    #[target_feature(enable = "avx2")]
    fn all_codes<const BITS: usize>() -> [u8; 256] {
        let mut codes = std::array::from_fn(|n| n as u8);
        for codes in codes.as_chunks_mut::<32>().0 {
            // SAFETY: 32 bytes are read and written.
            unsafe {
                let found = codes_of::<BITS>(_mm256_loadu_si256(codes.as_ptr().cast()));
                _mm256_storeu_si256(codes.as_mut_ptr().cast(), found);
            }
        }
        codes
    }

    #[test]
    fn every_value_is_found() {
        if !std::arch::is_x86_feature_detected!("avx2") {
            return;
        }
        // SAFETY: AVX2 was detected.
        let (coarse, fine) = unsafe { (all_codes::<2>(), all_codes::<3>()) };
        for n in 0..256 {
            assert_eq!(i16::from(coarse[n]) - 128, i16::from(COARSE_VALUES[n / 2]), "{n}");
            assert_eq!(i16::from(fine[n]) - 128, i16::from(FINE_VALUES[n]), "{n}");
        }
    }
}
