//! AVX2: 32 products and their sums in pairs in one instruction, half a line at a time.
//!
//! `vpmaddubsw` multiplies unsigned codes with signed activations and adds pairs in 16 bits: at most `2 * 127 * (2^n - 1)` with `n`
//! planes. So many of these as cannot leave 16 bits are added up before they are widened: eight, a tile's, up to four planes, four
//! with five, two with six. Codes of eight bits go through it as two nibbles, but with one vector, whose slices are numbers of 16 bits, they become such too. A tile is unpacked into registers once for up to
//! sixteen digits.

use super::isa::{Avx2, Proof};
use crate::codec::Block;
use crate::cpu::kernels::generic::planes::{self as generic, Digits, DotTile, MAX_DIGITS, Tile};
use crate::cpu::kernels::generic::unpack::unpack;
use crate::cpu::kernels::unroll::{dispatch, each};
use crate::cpu::kernels::x86_64::ahead::ask_ahead;
use crate::cpu::kernels::x86_64::frame::align_frame;
use crate::cpu::layout::planes::{HalfSteps, Line, PackedPlanes, QUAD, QUADS, RowTile, RowTiles, TILE_COLS};
use crate::cpu::layout::{FINER, Input, QuantizedRows, RowDots, RowSums};
use std::arch::x86_64::*;

/// Rows of half a line.
pub(in crate::cpu::kernels::x86_64) const HALF: usize = 8;

/// As [`generic::product`]; one vector's products stay in registers, neighbouring blocks with as many planes in one go.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn product(
    tiles: &PackedPlanes,
    i: usize,
    row_tile: usize,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    if x.slices() > 2 || x.batch() > 1 {
        product_of_many(tiles, i, row_tile, x, sums);
        return;
    }
    for (planes, blocks) in tiles.runs(i) {
        let row_tiles = tiles.row_tiles_across(i, row_tile, blocks);
        dispatch!(planes, x.slices(), planes_run(row_tiles, x, &mut sums[0]), [2, 1]);
    }
}

/// Any number of digits. Not inlined, so that few do not take its frame.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn product_of_many(tiles: &PackedPlanes, i: usize, row_tile: usize, x: QuantizedRows, sums: &mut [RowSums]) {
    generic::product(Avx2::new(), tiles, i, row_tile, x, sums);
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn planes_run<const PLANES: usize, const DIGITS: usize>(
    blocks: RowTiles,
    x: QuantizedRows,
    sums: &mut RowSums,
) {
    add_blocks::<_, PLANES, DIGITS>(Avx2::new(), blocks, x, sums, |lines, j| {
        if PLANES < 8 && DIGITS == 1 {
            return dot_both::<PLANES>(lines, x.values(0, j, 0));
        }
        let digits = Digits { values: x.values(0, j, 0), stride: x.stride(), count: DIGITS };
        if PLANES < 8 {
            return dot_digits::<PLANES>(lines, digits);
        }
        if let Some(pairs) = x.pairs(j) {
            return dot_pairs::<PLANES>(lines, pairs);
        }
        let mut sums = [_mm256_setzero_si256(); 2];
        for (part, sum) in sums.iter_mut().enumerate() {
            add_tiles::<PLANES>(lines, part, digits, std::slice::from_mut(sum));
        }
        sums
    });
}

/// The products of both halves of a block's row tile with the integers that a vector's slices are, codes widened to 16 bits, two of each four at
/// a time: half the instructions of codes of eight bits as two of four, times two digits.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
#[inline]
fn dot_pairs<const PLANES: usize>(lines: &[Line], pairs: &[i16]) -> [__m256i; 2] {
    let tiles = lines.as_chunks::<PLANES>().0;
    let pairs = pairs.as_chunks::<QUAD>().0.as_chunks::<QUADS>().0;
    assert!(pairs.len() >= tiles.len());
    let mut sums = [[_mm256_setzero_si256(); 2]; 2];
    let low = _mm256_set1_epi16(0xff);
    for (tile, pairs) in tiles.iter().zip(pairs) {
        let codes = [unpack::<_, PLANES>(Avx2::new(), tile, 0), unpack::<_, PLANES>(Avx2::new(), tile, 1)];
        each!(QUAD_INDEX in [0 1 2 3 4 5 6 7] {
            ask_ahead(tile, QUAD_INDEX);
            // SAFETY: four numbers of 16 bits.
            let [even, odd] = unsafe { pairs[QUAD_INDEX].as_ptr().cast::<[i32; 2]>().read_unaligned() };
            let (even, odd) = (_mm256_set1_epi32(even), _mm256_set1_epi32(odd));
            for (codes, sums) in codes.iter().zip(&mut sums) {
                let evens = _mm256_madd_epi16(_mm256_and_si256(codes[QUAD_INDEX], low), even);
                let odds = _mm256_madd_epi16(_mm256_srli_epi16::<8>(codes[QUAD_INDEX]), odd);
                *sums = [_mm256_add_epi32(sums[0], evens), _mm256_add_epi32(sums[1], odds)];
            }
        });
    }
    let [[even, odd], [lower_even, lower_odd]] = sums;
    [_mm256_add_epi32(even, odd), _mm256_add_epi32(lower_even, lower_odd)]
}

/// The products of both halves of a block's row tile with one digit, whose activations are broadcast once for both.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
#[inline]
fn dot_both<const PLANES: usize>(lines: &[Line], x: &[i8]) -> [__m256i; 2] {
    let mut sums = [_mm256_setzero_si256(); 2];
    let tiles = lines.as_chunks::<PLANES>().0;
    assert!(x.len() >= tiles.len() * TILE_COLS);
    let one = _mm256_set1_epi16(1);
    for (tile, x) in tiles.iter().zip(x.as_chunks::<QUAD>().0.as_chunks::<QUADS>().0) {
        let codes = [unpack::<_, PLANES>(Avx2::new(), tile, 0), unpack::<_, PLANES>(Avx2::new(), tile, 1)];
        let mut pairs = [_mm256_setzero_si256(); 2];
        each!(QUAD_INDEX in [0 1 2 3 4 5 6 7] {
            ask_ahead(tile, QUAD_INDEX);
            let four = _mm256_set1_epi32(i32::from_le_bytes(x[QUAD_INDEX].map(i8::cast_unsigned)));
            let at_once = const { quads_in_16_bits(PLANES) };
            for (codes, (pairs, sum)) in codes.iter().zip(pairs.iter_mut().zip(&mut sums)) {
                let products = _mm256_maddubs_epi16(codes[QUAD_INDEX], four);
                let first = QUAD_INDEX.is_multiple_of(at_once);
                *pairs = if first { products } else { _mm256_add_epi16(*pairs, products) };
                if QUAD_INDEX % at_once == at_once - 1 {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(*pairs, one));
                }
            }
        });
    }
    sums
}

/// The products of both halves of a block's row tile with the integers that two digits of a vector are, half by half of each tile.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
#[inline]
fn dot_digits<const PLANES: usize>(lines: &[Line], x: Digits) -> [__m256i; 2] {
    let mut sums = [[_mm256_setzero_si256(); 2]; 2];
    for (t, tile) in lines.as_chunks::<PLANES>().0.iter().enumerate() {
        let x = Digits { values: &x.values[t * TILE_COLS..], ..x };
        for (part, sums) in sums.iter_mut().enumerate() {
            add_products::<PLANES>(unpack::<_, PLANES>(Avx2::new(), tile, part), x, 1, sums);
        }
    }
    let mut joined = [_mm256_set1_epi32(FINER); 2];
    for (joined, [coarse, fine]) in joined.iter_mut().zip(sums) {
        *joined = _mm256_add_epi32(_mm256_mullo_epi32(coarse, *joined), fine);
    }
    joined
}

/// Adds the products of neighbouring blocks with one vector; `dot` makes those of both halves of the rows of a block's
/// row tile, with its one digit or the integers that its two slices are.
#[inline(always)]
pub(in crate::cpu::kernels::x86_64) fn add_blocks<P: Proof, const PLANES: usize, const DIGITS: usize>(
    _: Avx2<P>,
    blocks: RowTiles,
    x: QuantizedRows,
    sums: &mut RowSums,
    dot: impl Fn(&[Line], usize) -> [__m256i; 2],
) {
    let offset = 1 - (1i32 << PLANES);
    let (sums, _) = sums.0.as_chunks_mut::<HALF>();
    // SAFETY: here and below, the token proves the instructions; eight numbers.
    let mut held = unsafe { [_mm256_loadu_ps(sums[0].as_ptr()), _mm256_loadu_ps(sums[1].as_ptr())] };
    for RowTile { j, lines, half_steps, .. } in blocks {
        let (sum, scale) = match DIGITS {
            1 => (x.sum(0, j), x.scale(0, j)),
            _ => (x.sum_of_two(0, j), x.scale(1, j)),
        };
        for (part, (held, dots)) in held.iter_mut().zip(dot(lines, j)).enumerate() {
            // SAFETY: as above.
            unsafe {
                let bias = _mm256_set1_epi32(offset.wrapping_mul(sum));
                let levels = _mm256_add_epi32(_mm256_slli_epi32::<1>(dots), bias);
                let half_steps = half_of(half_steps, part);
                let factor = _mm256_mul_ps(half_steps, _mm256_set1_ps(scale));
                *held = _mm256_add_ps(*held, _mm256_mul_ps(_mm256_cvtepi32_ps(levels), factor));
            }
        }
    }
    for (sums, held) in sums.iter_mut().zip(held) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), held) };
    }
}

/// Half the steps of half of the rows.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn half_of(half_steps: HalfSteps, part: usize) -> __m256 {
    match half_steps {
        HalfSteps::Same(half_step) => _mm256_set1_ps(half_step),
        HalfSteps::Each(scales, half_unit) => match scales.as_chunks::<HALF>().0.get(part) {
            // SAFETY: eight numbers of 16 bits.
            Some(scales) => unsafe {
                let scales = _mm256_cvtph_ps(_mm_loadu_si128(scales.as_ptr().cast()));
                _mm256_mul_ps(scales, _mm256_set1_ps(half_unit))
            },
            None => below(half_steps, part),
        },
    }
}

/// Half the steps of half of the rows, some of which are below the block.
#[target_feature(enable = "avx2")]
#[inline(never)]
fn below(half_steps: HalfSteps, part: usize) -> __m256 {
    // SAFETY: eight numbers.
    unsafe { _mm256_loadu_ps(half_steps.values()[HALF * part..][..HALF].as_ptr()) }
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn transposed(tiles: &PackedPlanes, block: Block, g: Input, acc: &mut [f32]) {
    align_frame();
    generic::transposed::<Avx2>(tiles, block, g, acc);
}

impl DotTile for Avx2 {
    const BYTE_BIAS: i32 = 0;

    #[inline(always)]
    fn dot_tile(self, tile: Tile, x: Digits, dots: &mut [RowDots]) -> usize {
        // SAFETY: the token proves the instructions.
        unsafe { dot_tile(tile, x, dots) }
    }
}

/// Up to [`MAX_DIGITS`] digits; one has its sums in registers.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn dot_tile(tile: Tile, x: Digits, dots: &mut [RowDots]) -> usize {
    dispatch!(tile.planes, x.count, dot(tile.lines, x, dots), [2, 1])
}

/// `AT_LEAST` so many digits, which are one if it is 1.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn dot<const PLANES: usize, const AT_LEAST: usize>(lines: &[Line], x: Digits, dots: &mut [RowDots]) -> usize {
    let count = if AT_LEAST == 1 { 1 } else { x.count.min(MAX_DIGITS) };
    for part in 0..2 {
        let mut sums = [_mm256_setzero_si256(); MAX_DIGITS];
        let sums = &mut sums[..count];
        add_tiles::<PLANES>(lines, part, x, sums);
        for (sums, dots) in sums.iter().zip(&mut *dots) {
            let dots = &mut dots.0[HALF * part..][..HALF];
            // SAFETY: eight numbers.
            unsafe { _mm256_storeu_si256(dots.as_mut_ptr().cast(), *sums) };
        }
    }
    count
}

/// Adds the products of a half of the rows of a block's row tile with each digit.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
#[inline]
fn add_tiles<const PLANES: usize>(lines: &[Line], part: usize, x: Digits, sums: &mut [__m256i]) {
    for (t, tile) in lines.as_chunks::<PLANES>().0.iter().enumerate() {
        let codes = unpack::<_, PLANES>(Avx2::new(), tile, part);
        let x = Digits { values: &x.values[t * TILE_COLS..], ..x };
        if PLANES < 8 {
            add_products::<PLANES>(codes, x, 1, sums);
        } else {
            let nibble = _mm256_set1_epi8(0x0f);
            let (mut low, mut high) = (codes, codes);
            for (low, high) in low.iter_mut().zip(&mut high) {
                *high = _mm256_and_si256(_mm256_srli_epi16::<4>(*low), nibble);
                *low = _mm256_and_si256(*low, nibble);
            }
            add_products::<4>(low, x, 1, sums);
            add_products::<4>(high, x, 16, sums);
        }
    }
}

/// Quads of codes of so many bits whose products add up in 16 bits.
pub(in crate::cpu::kernels::x86_64) const fn quads_in_16_bits(bits: usize) -> usize {
    let most = 2 * 127 * ((1 << bits) - 1);
    match i16::MAX as usize / most {
        // Codes of eight bits go through it as nibbles.
        0 | 1 => 1,
        2 | 3 => 2,
        4..8 => 4,
        _ => QUADS,
    }
}

/// Adds the products of a tile's codes, of `BITS` bits, with each digit, `times` so much.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
#[inline]
fn add_products<const BITS: usize>(codes: [__m256i; QUADS], x: Digits, times: i16, sums: &mut [__m256i]) {
    let times = _mm256_set1_epi16(times);
    for (digit, sum) in sums.iter_mut().enumerate() {
        let x = &x.values[digit * x.stride..][..TILE_COLS];
        let mut pairs = _mm256_setzero_si256();
        each!(QUAD_INDEX in [0 1 2 3 4 5 6 7] {
            // SAFETY: four bytes of 32.
            let four = unsafe { x.as_ptr().add(QUAD_INDEX * QUAD).cast::<i32>().read_unaligned() };
            let products = _mm256_maddubs_epi16(codes[QUAD_INDEX], _mm256_set1_epi32(four));
            let at_once = const { quads_in_16_bits(BITS) };
            pairs = if QUAD_INDEX.is_multiple_of(at_once) { products } else { _mm256_add_epi16(pairs, products) };
            if QUAD_INDEX % at_once == at_once - 1 {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, times));
            }
        });
    }
}
