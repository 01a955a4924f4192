//! Products of codes and activations, in registers of a line.

use super::isa::{Avx512, Proof};
use crate::cpu::kernels::generic::dot::{Broadcast, dot_registers};
use crate::cpu::kernels::generic::fused::{Multiply, Pass};
use crate::cpu::kernels::generic::planes::Digits;
use crate::cpu::kernels::generic::trellis::{DecodedStrips, Place};
use crate::cpu::kernels::generic::unpack::unpack;
use crate::cpu::kernels::isa::Bytes;
use crate::cpu::kernels::unroll::each;
use crate::cpu::kernels::x86_64::ahead::ask_ahead;
use crate::cpu::kernels::x86_64::avx2;
use crate::cpu::kernels::x86_64::avx2::planes::quads_in_16_bits;
use crate::cpu::layout::planes::{HalfSteps, Line, PackedPlanes, QUAD, QUADS, RowTile, TILE_COLS, TILE_ROWS};
use crate::cpu::layout::{FINER, QuantizedRows, RowDots, RowSums};
use std::arch::x86_64::*;
use std::ops::Range;

/// Digits whose products are multiplied in registers, without a way through memory.
pub(in crate::cpu::kernels::x86_64) const GEMV_MAX_DIGITS: usize = 3;

/// Neighbouring blocks of a row tile with as many planes.
pub(in crate::cpu::kernels::x86_64) struct BlockRun {
    pub i: usize,
    pub row_tile: usize,
    pub blocks: Range<usize>,
}

/// Adds their products with each digit to the vectors' sums.
#[inline(always)]
pub(in crate::cpu::kernels::x86_64) fn add_run<P: Proof, const PLANES: usize, const DIGITS: usize>(
    isa: Avx512<P>,
    tiles: &PackedPlanes,
    run: BlockRun,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    let offset = 1 - (1i32 << PLANES);
    // Either one digit a vector, or all are one vector's.
    let of_digit = |digit: usize| if x.slices_per_row() == 1 { digit } else { 0 };
    // SAFETY: here and below, the token proves the instructions, and sixteen sums are 64 aligned bytes.
    let mut held = unsafe { [_mm512_setzero_ps(); DIGITS] };
    for (held, sums) in held.iter_mut().zip(&*sums) {
        // SAFETY: as above.
        *held = unsafe { _mm512_load_ps(sums.0.as_ptr()) };
    }
    for RowTile { j, lines, half_steps, .. } in tiles.row_tiles_across(run.i, run.row_tile, run.blocks) {
        let digits = Digits { values: x.values(0, j, 0), stride: x.stride(), count: DIGITS };
        let dots = dot_registers::<_, PLANES, DIGITS>(isa, lines, digits, 0);
        // SAFETY: as above; sixteen numbers, of 16 bits or 32.
        let half_steps = unsafe {
            match half_steps {
                HalfSteps::Same(half_step) => _mm512_set1_ps(half_step),
                HalfSteps::Each(scales, half_unit) => match scales.first_chunk::<TILE_ROWS>() {
                    Some(scales) => {
                        let scales = _mm512_cvtph_ps(_mm256_loadu_si256(scales.as_ptr().cast()));
                        _mm512_mul_ps(scales, _mm512_set1_ps(half_unit))
                    }
                    None => _mm512_loadu_ps(half_steps.values().as_ptr()),
                },
            }
        };
        // Two slices of a vector are one integer.
        if DIGITS == 2 && x.slices_per_row() == 2 {
            // SAFETY: as above.
            let dots =
                unsafe { _mm512_add_epi32(_mm512_mullo_epi32(dots[0], _mm512_set1_epi32(FINER)), dots[1]) };
            let bias = offset.wrapping_mul(x.sum_of_two(0, j));
            // SAFETY: as above.
            held[0] = unsafe { add_levels(held[0], dots, bias, half_steps, x.scale(1, j)) };
            continue;
        }
        for (digit, dots) in dots.into_iter().enumerate() {
            let held = &mut held[of_digit(digit)];
            // SAFETY: as above.
            *held =
                unsafe { add_levels(*held, dots, offset * x.sum(digit, j), half_steps, x.scale(digit, j)) };
        }
    }
    for (held, sums) in held.iter().zip(sums) {
        // SAFETY: as above.
        unsafe { _mm512_store_ps(sums.0.as_mut_ptr(), *held) };
    }
}

/// `sums` and multiples of half steps: twice the products of codes and what their offset adds.
#[target_feature(enable = "avx512f")]
#[inline]
fn add_levels(sums: __m512, dots: __m512i, bias: i32, half_steps: __m512, scale: f32) -> __m512 {
    let levels = _mm512_add_epi32(_mm512_slli_epi32::<1>(dots), _mm512_set1_epi32(bias));
    let factor = _mm512_mul_ps(half_steps, _mm512_set1_ps(scale));
    _mm512_add_ps(sums, _mm512_mul_ps(_mm512_cvtepi32_ps(levels), factor))
}

impl<P: Proof> Broadcast for Avx512<P> {
    const CHAINS: usize = 4;

    #[inline(always)]
    fn dot<const PLANES: usize>(self, sums: __m512i, codes: __m512i, x: i32) -> __m512i {
        // SAFETY: the token proves the instructions.
        self.proof().add_products::<PLANES>(sums, codes, unsafe { _mm512_set1_epi32(x) })
    }

    #[inline(always)]
    fn add_lanes(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    fn ask_ahead<const PLANES: usize>(self, tile: &[Line; PLANES], n: usize) {
        ask_ahead(tile, n);
    }

    #[inline(always)]
    fn store_dots(self, sums: __m512i, dots: &mut RowDots, _part: usize) {
        // SAFETY: as above, and 64 aligned bytes.
        unsafe { _mm512_store_si512(dots.0.as_mut_ptr().cast(), sums) }
    }
}

impl<P: Proof> Multiply for Avx512<P> {
    const HOLDS_DOTS: bool = true;

    /// Once in their order, which the hardware knows how to go on from.
    #[inline(always)]
    fn ask_ahead(self, lines: &[Line], pass: &Pass) {
        for line in lines.iter().filter(|_| pass.index == 0) {
            // SAFETY: here and below, the token proves the instructions.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(line).wrapping_add(lines.len()).cast()) }
        }
    }

    #[inline(always)]
    fn activations(self, x: &[i8], _part: usize, tiles: usize) -> __m512i {
        assert_eq!(x.len() * tiles, 16 * QUAD);
        // SAFETY: as above; one, two or four fours, by the assertion.
        unsafe {
            match tiles {
                16 => _mm512_set1_epi32(x.as_ptr().cast::<i32>().read_unaligned()),
                8 => {
                    let fours = _mm512_castsi128_si512(_mm_loadl_epi64(x.as_ptr().cast()));
                    let group = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
                    _mm512_permutexvar_epi32(group, fours)
                }
                _ => {
                    let fours = _mm512_castsi128_si512(_mm_loadu_si128(x.as_ptr().cast()));
                    let group = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
                    _mm512_permutexvar_epi32(group, fours)
                }
            }
        }
    }

    #[inline(always)]
    fn add_products(self, sums: __m512i, codes: __m512i, x: __m512i) -> __m512i {
        self.proof().add_products::<7>(sums, codes, x)
    }

    #[inline(always)]
    fn add_share(self, sums: &mut [f32], dots: __m512i, bias: i32, factor: f32) {
        // SAFETY: as above.
        unsafe { add_share(sums, dots, bias, factor) }
    }
}

/// `sums += (dots - bias) * factor` of sixteen rows, or of eight or four, whose dot products are sums over halves or quarters.
#[target_feature(enable = "avx512f,avx512vl")]
#[inline]
fn add_share(sums: &mut [f32], dots: __m512i, bias: i32, factor: f32) {
    if let Ok(sums) = <&mut [f32; 16]>::try_from(&mut *sums) {
        let share = _mm512_cvtepi32_ps(_mm512_sub_epi32(dots, _mm512_set1_epi32(bias)));
        // SAFETY: sixteen sums.
        unsafe {
            let sum = _mm512_loadu_ps(sums.as_ptr());
            let sum = _mm512_add_ps(sum, _mm512_mul_ps(share, _mm512_set1_ps(factor)));
            _mm512_storeu_ps(sums.as_mut_ptr(), sum);
        }
        return;
    }
    let mut dots = _mm256_add_epi32(_mm512_castsi512_si256(dots), _mm512_extracti64x4_epi64::<1>(dots));
    if sums.len() < 8 {
        dots = _mm256_add_epi32(dots, _mm256_permute4x64_epi64::<0b01_00_11_10>(dots));
    }
    avx2::trellis::add_scaled(sums, _mm256_sub_epi32(dots, _mm256_set1_epi32(bias)), factor);
}

/// [`dot_tile`](crate::cpu::kernels::generic::planes::DotTile::dot_tile) without VNNI, for numbers of planes and digits that are
/// constants: a tile's products with a digit are added up in 16 bits as far as they fit there.
#[inline(always)]
pub(super) fn dot<P: Proof, const PLANES: usize, const BATCH: usize>(
    isa: Avx512<P>,
    lines: &[Line],
    x: Digits,
    dots: &mut [RowDots],
) -> usize {
    let mut sums = [isa.splat(0); BATCH];
    for (t, tile) in lines.as_chunks::<PLANES>().0.iter().enumerate() {
        let codes = unpack::<_, PLANES>(isa, tile, 0);
        let (mut low, mut high) = (codes, codes);
        if PLANES == 8 {
            let nibble = isa.splat(0x0f);
            for (low, high) in low.iter_mut().zip(&mut high) {
                *low = isa.and(*low, nibble);
                *high = isa.and(isa.shift_right(*high, 4), nibble);
            }
        }
        for (digit, sum) in sums.iter_mut().enumerate() {
            let x = &x.values[digit * x.stride + t * TILE_COLS..][..TILE_COLS];
            if PLANES < 8 {
                *sum = add_tile::<_, PLANES>(isa, *sum, &codes, x, 1);
            } else {
                *sum = add_tile::<_, 4>(isa, *sum, &low, x, 1);
                *sum = add_tile::<_, 4>(isa, *sum, &high, x, 16);
            }
        }
    }
    for (sums, dots) in sums.into_iter().zip(dots) {
        isa.store_dots(sums, dots, 0);
    }
    BATCH
}

/// Adds the products of a tile's codes, of `BITS` bits, with a digit, `times` so much.
#[inline(always)]
fn add_tile<P: Proof, const BITS: usize>(
    _: Avx512<P>,
    mut sum: __m512i,
    codes: &[__m512i; QUADS],
    x: &[i8],
    times: i16,
) -> __m512i {
    assert_eq!(x.len(), TILE_COLS);
    // SAFETY: the token proves the instructions; four bytes of 32, by the assertion.
    unsafe {
        let mut pairs = _mm512_setzero_si512();
        each!(QUAD_INDEX in [0 1 2 3 4 5 6 7] {
            let four = x.as_ptr().add(QUAD_INDEX * QUAD).cast::<i32>().read_unaligned();
            let products = _mm512_maddubs_epi16(codes[QUAD_INDEX], _mm512_set1_epi32(four));
            let at_once = const { quads_in_16_bits(BITS) };
            pairs = if QUAD_INDEX.is_multiple_of(at_once) { products } else { _mm512_add_epi16(pairs, products) };
            if QUAD_INDEX % at_once == at_once - 1 {
                sum = _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(times)));
            }
        });
    }
    sum
}

/// A tile's products with `COUNT` digits, `PER_VECTOR` of them of each vector; dot products and sums stay in registers.
#[inline(always)]
pub(in crate::cpu::kernels::x86_64) fn multiply<P: Proof, const PER_VECTOR: usize, const COUNT: usize>(
    isa: Avx512<P>,
    scale_groups: &DecodedStrips,
    at: Place,
    sums: &mut [RowSums],
) {
    let place = |vector: usize| vector * at.stride + at.tile;
    // SAFETY: here and below, the token proves the instructions, and sixteen sums are 64 aligned bytes.
    let mut held = unsafe { [_mm512_setzero_ps(); COUNT] };
    for (vector, held) in held.iter_mut().enumerate().take(COUNT / PER_VECTOR) {
        // SAFETY: as above.
        *held = unsafe { _mm512_load_ps(sums[place(vector)].0.as_ptr()) };
    }
    let x_stride = scale_groups.x.stride();
    for (codes, digits) in scale_groups.codes.iter().zip(&scale_groups.digits) {
        let (biases, factors) = (&digits.biases[at.digit..][..COUNT], &digits.factors[at.digit..][..COUNT]);
        let values = &digits.values[at.digit * x_stride..];
        assert!(values.len() >= (COUNT - 1) * x_stride + TILE_COLS);
        // SAFETY: as above.
        let mut dots = unsafe { [_mm512_setzero_si512(); COUNT] };
        for (quad, line) in codes[at.tile * QUADS..][..QUADS].iter().enumerate() {
            let codes = isa.load(line, 0);
            for (digit, dots) in dots.iter_mut().enumerate() {
                // SAFETY: as above; four bytes inside `values`, by the assertion above.
                let x = unsafe {
                    let four = values.as_ptr().add(digit * x_stride + quad * QUAD).cast::<i32>();
                    _mm512_set1_epi32(four.read_unaligned())
                };
                *dots = isa.proof().add_products::<7>(*dots, codes, x);
            }
        }
        for (digit, dots) in dots.iter().enumerate() {
            // SAFETY: as above.
            unsafe {
                let dots = _mm512_sub_epi32(*dots, _mm512_set1_epi32(biases[digit]));
                let share = _mm512_mul_ps(_mm512_cvtepi32_ps(dots), _mm512_set1_ps(factors[digit]));
                held[digit / PER_VECTOR] = _mm512_add_ps(held[digit / PER_VECTOR], share);
            }
        }
    }
    for (vector, held) in held.iter().enumerate().take(COUNT / PER_VECTOR) {
        // SAFETY: as above.
        unsafe { _mm512_store_ps(sums[place(vector)].0.as_mut_ptr(), *held) };
    }
}
