//! AVX2: 32 products in two instructions, half a line at a time.
//!
//! `vpmaddubsw` multiplies unsigned codes with signed activations and adds pairs in 16 bits. Codes of up to seven
//! bits cannot overflow (2 * 127 * 127 < 2^15); codes of eight go through it as two nibbles.

use crate::cpu::activations::Activations;
use crate::cpu::kernels::RowSums;
use crate::cpu::tiles::{GROUP, GROUPS, Line, TILE_COLS, TILE_ROWS};
use std::arch::x86_64::*;
use std::ops::Range;

super::super::table!(fma: true, "avx2,fma,f16c");
use generic::transpose;

/// Digits multiplied with one unpacked tile.
const MAX_VECTORS: usize = 4;

super::planes_walk!("avx2,fma,f16c", dot_row_tile);

/// Integer dot products of a row tile with the next digits, and how many digits it took.
#[target_feature(enable = "avx2")]
fn dot_row_tile(
    lines: &[Line],
    planes: u8,
    values: &[i8],
    stride: usize,
    left: usize,
) -> ([[i32; TILE_ROWS]; MAX_VECTORS], usize) {
    super::dispatch!(planes, left, dot(lines, values, stride), [4, 3, 2, 1])
}

#[target_feature(enable = "avx2")]
fn dot<const PLANES: u8, const VECTORS: usize>(
    lines: &[Line],
    values: &[i8],
    stride: usize,
) -> ([[i32; TILE_ROWS]; MAX_VECTORS], usize) {
    let tiles = lines.chunks_exact(PLANES as usize);
    // The last read is four bytes at the end of the last tile of the last vector.
    assert!(values.len() >= (VECTORS - 1) * stride + tiles.len() * TILE_COLS);
    let mut out = [[0; TILE_ROWS]; MAX_VECTORS];
    for half in 0..2 {
        let mut sums = [_mm256_setzero_si256(); VECTORS];
        for (t, tile) in tiles.clone().enumerate() {
            let codes = unpack::<PLANES>(tile, half);
            for (group, codes) in codes.iter().enumerate() {
                for (vector, sum) in sums.iter_mut().enumerate() {
                    let at = vector * stride + t * TILE_COLS + group * GROUP;
                    // SAFETY: four bytes inside `values`, by the assertion above.
                    let x = unsafe { values.as_ptr().add(at).cast::<i32>().read_unaligned() };
                    *sum = _mm256_add_epi32(*sum, products::<PLANES>(*codes, _mm256_set1_epi32(x)));
                }
            }
        }
        for (out, sum) in out.iter_mut().zip(&sums) {
            // SAFETY: eight of the sixteen numbers of `out`.
            unsafe { _mm256_storeu_si256(out[half * TILE_ROWS / 2..].as_mut_ptr().cast(), *sum) };
        }
    }
    (out, VECTORS)
}

/// In each lane the sum of four products of a code and an activation.
#[target_feature(enable = "avx2")]
#[inline]
fn products<const PLANES: u8>(codes: __m256i, x: __m256i) -> __m256i {
    let ones = _mm256_set1_epi16(1);
    if PLANES < 8 {
        return _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), ones);
    }
    let nibble = _mm256_set1_epi8(0x0f);
    let low = _mm256_maddubs_epi16(_mm256_and_si256(codes, nibble), x);
    let high = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibble), x);
    _mm256_add_epi32(_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, _mm256_set1_epi16(16)))
}

/// [`tiles::unpack`](crate::cpu::tiles::unpack) of eight rows in registers.
#[target_feature(enable = "avx2")]
#[inline]
fn unpack<const PLANES: u8>(tile: &[Line], half: usize) -> [__m256i; GROUPS] {
    let mut codes = [_mm256_setzero_si256(); GROUPS];
    let mut first = 0;
    for bits in const { crate::cpu::tiles::parts(PLANES) } {
        if bits == 0 {
            continue;
        }
        let part = &tile[first..first + bits as usize];
        first += bits as usize;
        let mask = _mm256_set1_epi8(((1u16 << bits) - 1) as u8 as i8);
        for (group, codes) in codes.iter_mut().enumerate() {
            let (slot, line) = (group / bits as usize, group % bits as usize);
            // SAFETY: half a line is 32 aligned bytes.
            let line = unsafe { _mm256_load_si256(part[line].0[32 * half..].as_ptr().cast()) };
            // 16-bit shifts bring in a neighbour's bits, which the mask takes away.
            let field = match slot as u32 * u32::from(bits) {
                0 => line,
                1 => _mm256_srli_epi16::<1>(line),
                2 => _mm256_srli_epi16::<2>(line),
                3 => _mm256_srli_epi16::<3>(line),
                4 => _mm256_srli_epi16::<4>(line),
                5 => _mm256_srli_epi16::<5>(line),
                6 => _mm256_srli_epi16::<6>(line),
                _ => _mm256_srli_epi16::<7>(line),
            };
            let above = match bits {
                8 => {
                    *codes = line;
                    continue;
                }
                4 => _mm256_slli_epi16::<4>(*codes),
                2 => _mm256_slli_epi16::<2>(*codes),
                _ => _mm256_slli_epi16::<1>(*codes),
            };
            *codes = _mm256_or_si256(_mm256_and_si256(field, mask), above);
        }
    }
    codes
}
