//! AVX2: 32 products in two instructions, half a line at a time.
//!
//! `vpmaddubsw` multiplies unsigned codes with signed activations and adds pairs in 16 bits. Codes of up to seven
//! bits cannot overflow (2 * 127 * 127 < 2^15); codes of eight go through it as two nibbles.

use super::super::unroll::{dispatch, each};
use std::arch::x86_64::*;

super::super::table!(fma: true, "avx2,fma,f16c");
use generic::{lanes_to_rows, rows_to_lanes};

/// Vectors from which on a sparse product is faster in lanes.
const SPMM_MIN_BATCH: usize = 8;
/// Digits multiplied with one unpacked tile.
const MAX_VECTORS: usize = 4;
/// Codes are multiplied as they are.
const BYTE_BIAS: i32 = 0;

super::super::walks!(fma: true, "avx2,fma,f16c");
use planes_by_blocks as planes;
use trellis_by_blocks as trellis;
super::super::walk::multiplies_decoded!("avx2,fma,f16c");
use super::sparse_avx2::sparse;
use super::trellis_avx2::decode_bundle;

/// Integer dot products of a row tile with the next slices, and how many slices it took.
#[target_feature(enable = "avx2")]
fn dot_row_tile(
    lines: &[Line],
    planes: u8,
    values: &[i8],
    stride: usize,
    left: usize,
    dots: &mut [RowDots],
) -> usize {
    dispatch!(planes, left, dot(lines, values, stride, dots), [4, 3, 2, 1])
}

#[target_feature(enable = "avx2")]
fn dot<const PLANES: usize, const VECTORS: usize>(
    lines: &[Line],
    values: &[i8],
    stride: usize,
    dots: &mut [RowDots],
) -> usize {
    let tiles = lines.as_chunks::<PLANES>().0;
    // The last read is four bytes at the end of the last tile of the last vector.
    assert!(values.len() >= (VECTORS - 1) * stride + tiles.len() * TILE_COLS);
    for half in 0..2 {
        let mut sums = [_mm256_setzero_si256(); VECTORS];
        for (t, tile) in tiles.iter().enumerate() {
            let codes = unpack(tile, half);
            each!(GROUP_INDEX in [0 1 2 3 4 5 6 7] {
                for (vector, sum) in sums.iter_mut().enumerate() {
                    let at = vector * stride + t * TILE_COLS + GROUP_INDEX * QUAD;
                    // SAFETY: four bytes inside `values`, by the assertion above.
                    let x = unsafe { values.as_ptr().add(at).cast::<i32>().read_unaligned() };
                    let products = products::<PLANES>(codes[GROUP_INDEX], _mm256_set1_epi32(x));
                    *sum = _mm256_add_epi32(*sum, products);
                }
            });
        }
        for (vector, sum) in sums.iter().enumerate() {
            let out = &mut dots[vector];
            // SAFETY: eight of the sixteen numbers of `out`.
            unsafe { _mm256_storeu_si256(out.0[half * TILE_ROWS / 2..].as_mut_ptr().cast(), *sum) };
        }
    }
    VECTORS
}

/// In each lane the sum of four products of a code and an activation.
#[target_feature(enable = "avx2")]
#[inline]
fn products<const PLANES: usize>(codes: __m256i, x: __m256i) -> __m256i {
    let ones = _mm256_set1_epi16(1);
    if PLANES < 8 {
        return _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), ones);
    }
    let nibble = _mm256_set1_epi8(0x0f);
    let low = _mm256_maddubs_epi16(_mm256_and_si256(codes, nibble), x);
    let high = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibble), x);
    _mm256_add_epi32(_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, _mm256_set1_epi16(16)))
}

/// [`planes::unpack`](crate::cpu::layout::planes::unpack) of eight rows in registers.
#[target_feature(enable = "avx2")]
#[inline]
fn unpack<const PLANES: usize>(tile: &[Line; PLANES], half: usize) -> [__m256i; QUADS] {
    let mut codes = [_mm256_setzero_si256(); QUADS];
    let mut first = 0;
    if PLANES & 8 != 0 {
        codes = add_part::<8>(&tile[first..], half, codes);
        first += 8;
    }
    if PLANES & 4 != 0 {
        codes = add_part::<4>(&tile[first..], half, codes);
        first += 4;
    }
    if PLANES & 2 != 0 {
        codes = add_part::<2>(&tile[first..], half, codes);
        first += 2;
    }
    if PLANES & 1 != 0 {
        codes = add_part::<1>(&tile[first..], half, codes);
    }
    codes
}

/// `codes << BITS | field` for every column group of a part.
#[target_feature(enable = "avx2")]
#[inline]
fn add_part<const BITS: usize>(part: &[Line], half: usize, codes: [__m256i; QUADS]) -> [__m256i; QUADS] {
    each!(GROUP_INDEX in [0 1 2 3 4 5 6 7] {
        // SAFETY: half a line is 32 aligned bytes.
        let line = unsafe { _mm256_load_si256(part[GROUP_INDEX % BITS].0[32 * half..].as_ptr().cast()) };
        if BITS == 8 {
            line
        } else {
            // 16-bit shifts bring in a neighbour's bits, which the mask takes away.
            let shift = _mm_cvtsi32_si128(((GROUP_INDEX / BITS * BITS) as u32).cast_signed());
            let field = _mm256_and_si256(_mm256_srl_epi16(line, shift), _mm256_set1_epi8((1 << BITS) - 1));
            let above = _mm256_sll_epi16(codes[GROUP_INDEX], _mm_cvtsi32_si128((BITS as u32).cast_signed()));
            _mm256_or_si256(field, above)
        }
    })
}
