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

/// `sums[v * tiles + t] += S_ij x_vj` over some blocks, for any number of vectors.
///
/// What fits into one go has each scale group decoded and multiplied while it is in the nearest cache; for more a block is decoded
/// whole. Either way each scale group's share is added to the sums in turn, digit by digit: they have the same bits.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn product(
    term: &PackedTrellis,
    i: usize,
    blocks: Range<usize>,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    let batch_at_once = DIGITS_AT_ONCE / x.slices_per_row();
    let tiles = sums.len() / x.batch();
    let groups_at_once = if x.batch() <= batch_at_once { 1 } else { MOST_GROUPS };
    let mut codes = [[Line([0; 64]); GROUP_LINES]; MOST_GROUPS];
    let mut digits = [GroupDigits::NONE; MOST_GROUPS];
    for j in blocks {
        let mut groups = term.block_groups(term.layout().block_at(i, j));
        loop {
            let mut places = [(0, 0.0); MOST_GROUPS];
            let mut count = 0;
            for (first, scale_group) in groups.by_ref().take(groups_at_once) {
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
                    for half in 0..2 {
                        for (codes, digits) in codes[..count].iter().zip(&digits) {
                            let codes = &codes[tile * QUADS..][..QUADS];
                            multiply_half(codes, half, x, digits, &mut sums[tile..], tiles);
                        }
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

/// Adds the products of a half of a tile's rows with all digits to the vectors' sums, `stride` apart.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
#[inline]
fn multiply_half(
    codes: &[Line],
    half: usize,
    x: QuantizedRows,
    digits: &GroupDigits,
    sums: &mut [RowSums],
    stride: usize,
) {
    let isa = Avx2::new();
    let mut values = [_mm256_setzero_si256(); QUADS];
    for (values, line) in values.iter_mut().zip(codes) {
        *values = _mm256_sub_epi8(isa.load(line, half), _mm256_set1_epi8(BIAS as i8));
    }
    // What 128 in every activation makes of two quads.
    let mut excess = [_mm256_setzero_si256(); QUADS / 2];
    for (excess, values) in excess.iter_mut().zip(values.as_chunks::<2>().0) {
        let all = _mm256_set1_epi8(TO_UNSIGNED.cast_signed());
        *excess =
            _mm256_add_epi16(_mm256_maddubs_epi16(all, values[0]), _mm256_maddubs_epi16(all, values[1]));
    }
    // The digits of a vector are added to its sums one after another.
    let (per_row, mut left, mut at) = (x.slices_per_row(), x.slices_per_row(), 0);
    for (digit, factor) in digits.values[..x.slices()].iter().zip(&digits.factors) {
        let mut dots = _mm256_setzero_si256();
        for (n, (values, excess)) in values.as_chunks::<2>().0.iter().zip(excess).enumerate() {
            let four = |quad: usize| {
                let at = digit[QUAD * quad..].as_ptr();
                // SAFETY: a digit has eight quads.
                _mm256_set1_epi32(unsafe { at.cast::<i32>().read_unaligned() })
            };
            let first = _mm256_maddubs_epi16(four(2 * n), values[0]);
            let second = _mm256_maddubs_epi16(four(2 * n + 1), values[1]);
            let both = _mm256_sub_epi16(_mm256_add_epi16(first, second), excess);
            dots = _mm256_add_epi32(dots, _mm256_madd_epi16(both, _mm256_set1_epi16(1)));
        }
        let share = _mm256_mul_ps(_mm256_cvtepi32_ps(dots), _mm256_set1_ps(*factor));
        let sums = &mut sums[at].0[HALF * half..][..HALF];
        // SAFETY: eight sums.
        unsafe {
            let sum = _mm256_add_ps(_mm256_loadu_ps(sums.as_ptr()), share);
            _mm256_storeu_ps(sums.as_mut_ptr(), sum);
        }
        left -= 1;
        if left == 0 {
            (left, at) = (per_row, at + stride);
        }
    }
}
