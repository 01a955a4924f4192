//! The trellis for several vectors: scale groups are decoded once, and their values multiplied with the activations as unsigned bytes.
//!
//! Values are -63 to 63 and activations -127 to 127. With 128 added to these, `vpmaddubsw` multiplies them as its unsigned bytes with the
//! values as its signed ones: pairs of products, up to 2 * 255 * 63 < 2^15. The sum of two pairs may leave 16 bits. But it wraps, and less
//! 128 times the sum of its four values it is the sum of four products as they are, 4 * 127 * 63 < 2^15 at most: it is right again. So
//! two registers of products are widened by one instruction, and nothing is to be taken away from the sums.

use super::isa::Avx2;
use crate::cpu::kernels::generic::trellis::{DIGITS_AT_ONCE, MOST_GROUPS, decode_group};
use crate::cpu::kernels::isa::Bytes;
use crate::cpu::layout::planes::{Line, QUAD, QUADS, TILE_COLS};
use crate::cpu::layout::trellis::{BIAS, GROUP_LINES, GroupCodes, PackedGroup, PackedTrellis};
use crate::cpu::layout::{QuantizedRows, RowSums};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Turns a signed byte into one that is 128 more, unsigned.
const TO_UNSIGNED: u8 = 128;
/// Sums of a half of a line's rows.
const HALF: usize = 8;

/// Digits of some vectors for a scale group: unsigned, and what multiplies their products.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct GroupDigits {
    values: [[u8; TILE_COLS]; DIGITS_AT_ONCE],
    factors: [f32; DIGITS_AT_ONCE],
}

impl GroupDigits {
    const NONE: Self = Self { values: [[0; TILE_COLS]; DIGITS_AT_ONCE], factors: [0.0; DIGITS_AT_ONCE] };

    /// All digits of `x` for the scale group that begins with column `col` of block column `j`.
    #[inline(always)]
    fn fill(&mut self, x: QuantizedRows, j: usize, col: usize, scale: f32) {
        let values = x.values(0, j, col);
        for digit in 0..x.slices() {
            let own = &values[digit * x.stride()..][..TILE_COLS];
            for (unsigned, value) in self.values[digit].iter_mut().zip(own) {
                *unsigned = value.cast_unsigned() ^ TO_UNSIGNED;
            }
            self.factors[digit] = scale * x.scale(digit, j);
        }
    }
}

/// `sums[v * tiles + t] += S x_v` over some scale groups, for any number of vectors.
///
/// What fits into one go has each scale group decoded and multiplied while it is in the nearest cache; for more a block is decoded
/// whole. Either way each scale group's share is added to the sums in turn, digit by digit: they have the same bits.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn product(
    term: &PackedTrellis,
    i: usize,
    groups: Range<usize>,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    if x.batch() <= DIGITS_AT_ONCE / x.slices_per_row() {
        multiply_blocks::<1>(term, i, groups, x, sums);
    } else {
        multiply_blocks::<MOST_GROUPS>(term, i, groups, x, sums);
    }
}

/// [`product`] with so many scale groups decoded at a time.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn multiply_blocks<const GROUPS: usize>(
    term: &PackedTrellis,
    i: usize,
    groups: Range<usize>,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    let batch_at_once = DIGITS_AT_ONCE / x.slices_per_row();
    let tiles = sums.len() / x.batch();
    let mut codes = [[Line([0; 64]); GROUP_LINES]; GROUPS];
    let mut digits = [GroupDigits::NONE; GROUPS];
    for (j, mut groups) in term.blocks_across(i, groups) {
        loop {
            let mut places = [(0, 0.0); GROUPS];
            let mut count = 0;
            for (first, scale_group) in groups.by_ref().take(GROUPS) {
                decode(&scale_group, &mut codes[count]);
                places[count] = (first, scale_group.scale);
                count += 1;
            }
            if count == 0 {
                break;
            }
            for (n, sums) in sums.chunks_mut(batch_at_once * tiles).enumerate() {
                let first = n * batch_at_once;
                let x = x.part(first..first + sums.len() / tiles);
                for (digits, (col, scale)) in digits.iter_mut().zip(&places[..count]) {
                    digits.fill(x, j, *col, *scale);
                }
                for tile in 0..tiles {
                    for (codes, digits) in codes[..count].iter().zip(&digits) {
                        let codes = &codes[tile * QUADS..][..QUADS];
                        multiply_tile(codes, x, digits, &mut sums[tile..], tiles);
                    }
                }
            }
        }
    }
}

/// A scale group as codes.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn decode(scale_group: &PackedGroup, codes: &mut GroupCodes) {
    decode_group(Avx2::new(), scale_group, codes);
}

/// Quads that are multiplied at a time: as many as have the values of all sixteen rows in half of the registers.
const QUADS_AT_ONCE: usize = QUADS / 2;

/// Adds the products of a tile with all digits to the vectors' sums, `stride` apart.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
#[inline]
fn multiply_tile(
    codes: &[Line],
    x: QuantizedRows,
    digits: &GroupDigits,
    sums: &mut [RowSums],
    stride: usize,
) {
    let mut dots = [MaybeUninit::uninit(); DIGITS_AT_ONCE];
    let values = Values::new(&codes[..QUADS_AT_ONCE]);
    for (digit, dots) in digits.values[..x.slices()].iter().zip(&mut dots) {
        dots.write(values.dot(digit));
    }
    let values = Values::new(&codes[QUADS_AT_ONCE..]);
    // The digits of a vector are added to its sums one after another.
    let (per_row, mut left, mut at) = (x.slices_per_row(), x.slices_per_row(), 0);
    let all = digits.values[..x.slices()].iter().zip(&digits.factors).zip(&dots);
    for ((digit, factor), dots) in all {
        // SAFETY: written above, for as many digits.
        let dots = unsafe { dots.assume_init() };
        let (factor, rest) = (_mm256_set1_ps(*factor), values.dot(&digit[QUAD * QUADS_AT_ONCE..]));
        let sums = &mut sums[at].0;
        for half in 0..2 {
            let dots = _mm256_add_epi32(dots[half], rest[half]);
            let share = _mm256_mul_ps(_mm256_cvtepi32_ps(dots), factor);
            let sums = &mut sums[HALF * half..][..HALF];
            // SAFETY: eight sums.
            unsafe {
                let sum = _mm256_add_ps(_mm256_loadu_ps(sums.as_ptr()), share);
                _mm256_storeu_ps(sums.as_mut_ptr(), sum);
            }
        }
        left -= 1;
        if left == 0 {
            (left, at) = (per_row, at + stride);
        }
    }
}

/// The values of [`QUADS_AT_ONCE`] quads in the two halves of a tile's rows, and what 128 in every activation makes of each two quads.
struct Values {
    values: [[__m256i; 2]; QUADS_AT_ONCE],
    excess: [[__m256i; 2]; QUADS_AT_ONCE / 2],
}

impl Values {
    #[target_feature(enable = "avx2,fma,f16c,popcnt")]
    #[inline]
    fn new(codes: &[Line]) -> Self {
        let isa = Avx2::new();
        let mut values = [[_mm256_setzero_si256(); 2]; QUADS_AT_ONCE];
        for (values, line) in values.iter_mut().zip(codes) {
            for (half, values) in values.iter_mut().enumerate() {
                *values = _mm256_sub_epi8(isa.load(line, half), _mm256_set1_epi8(BIAS as i8));
            }
        }
        let mut excess = [[_mm256_setzero_si256(); 2]; QUADS_AT_ONCE / 2];
        let all = _mm256_set1_epi8(TO_UNSIGNED.cast_signed());
        for (excess, [first, second]) in excess.iter_mut().zip(values.as_chunks().0) {
            for half in 0..2 {
                let first = _mm256_maddubs_epi16(all, first[half]);
                excess[half] = _mm256_add_epi16(first, _mm256_maddubs_epi16(all, second[half]));
            }
        }
        Self { values, excess }
    }

    /// For each row the sum of its products with the activations of these quads.
    #[target_feature(enable = "avx2,fma,f16c,popcnt")]
    #[inline]
    fn dot(&self, digit: &[u8]) -> [__m256i; 2] {
        let mut dots = [_mm256_setzero_si256(); 2];
        for (n, ([first, second], excess)) in self.values.as_chunks().0.iter().zip(&self.excess).enumerate() {
            let four = |quad: usize| {
                let four = &digit[QUAD * quad..][..QUAD];
                _mm256_set1_epi32(i32::from_le_bytes([four[0], four[1], four[2], four[3]]))
            };
            let x = [four(2 * n), four(2 * n + 1)];
            for half in 0..2 {
                let first = _mm256_maddubs_epi16(x[0], first[half]);
                let both = _mm256_add_epi16(first, _mm256_maddubs_epi16(x[1], second[half]));
                let both = _mm256_sub_epi16(both, excess[half]);
                let four = _mm256_madd_epi16(both, _mm256_set1_epi16(1));
                dots[half] = if n == 0 { four } else { _mm256_add_epi32(dots[half], four) };
            }
        }
        dots
    }
}
