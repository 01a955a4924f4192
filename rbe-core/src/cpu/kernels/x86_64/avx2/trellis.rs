//! The trellis code on AVX2: 32 values in about twenty-five instructions, in about thirty-five from 3 bits on.
//!
//! What each half of a byte contributes to the indices is looked up (see [`NIBBLE_TABLES`]), half a line at a time; a state of
//! twelve bits lies in three or four halves. There is no permutation of 128 bytes: four shuffles of sixteen magnitudes each
//! look 64 up, eight where there are 128. Table `t` holds `T_t ^ T_(t-1)` and is shuffled by `index - 16 t`, which gives
//! zero where it is negative, so the sum (in `^`) of tables 0 to `index / 16` is what remains.

use super::isa::Avx2;
use crate::codec::Block;
use crate::codec::term::trellis::{COARSE_BITS, COARSE_MAGNITUDES, FINE_MAGNITUDES};
use crate::cpu::kernels::generic::decode::{Nibbles, decode_nibbles};
use crate::cpu::kernels::generic::trellis::{self as generic, Decode, DecodedStrips, GroupRows};
use crate::cpu::kernels::unroll::dispatch_code;
use crate::cpu::layout::planes::Line;
use crate::cpu::layout::trellis::{Bundle, PackedGroup, PackedTrellis};
use crate::cpu::layout::{Input, QuantizedRows, RowDots, RowSums};
use std::arch::x86_64::*;
use std::ops::Range;

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn product(
    term: &PackedTrellis,
    i: usize,
    blocks: Range<usize>,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    generic::product(Avx2::new(), term, i, blocks, x, sums);
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn transposed(term: &PackedTrellis, block: Block, g: Input, acc: &mut [f32]) {
    generic::transposed(Avx2::new(), term, block, g, acc);
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn rows(scale_group: &PackedGroup, rows: &mut GroupRows) {
    generic::rows(Avx2::new(), scale_group, rows);
}

impl Decode for Avx2 {
    #[inline(always)]
    fn decode_bundle(self, bundle: Bundle, codes: &mut [Line], stride: usize) {
        // SAFETY: the token proves the instructions.
        unsafe { decode_bundle(bundle, codes, stride) }
    }

    #[inline(always)]
    fn multiply_tile(self, scale_groups: &DecodedStrips, tile: usize, sums: &mut [RowSums], stride: usize) {
        generic::multiply_tile(self, scale_groups, tile, sums, stride, |dots, bias, factor, sums| {
            // SAFETY: as above.
            unsafe { add_dots(dots, bias, factor, sums) }
        });
    }
}

/// Not inlined: see [`generic::add_dots`].
#[inline(never)]
#[target_feature(enable = "avx2")]
fn add_dots(dots: &RowDots, bias: i32, factor: f32, sums: &mut RowSums) {
    generic::add_dots(dots, bias, factor, sums);
}

/// Magnitudes in tables of sixteen, each `^` the one before.
type Tables<const N: usize> = [[u8; 16]; N];

static COARSE: Tables<4> = tables(&COARSE_MAGNITUDES);
static FINE: Tables<8> = tables(&FINE_MAGNITUDES);

const fn tables<const N: usize>(magnitudes: &[i8]) -> Tables<N> {
    let mut tables = [[0; 16]; N];
    let mut n = 0;
    while n < 16 * N {
        let before = if n < 16 { 0 } else { magnitudes[n - 16] };
        tables[n / 16][n % 16] = (magnitudes[n] ^ before) as u8;
        n += 1;
    }
    tables
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn decode_bundle(bundle: Bundle, codes: &mut [Line], stride: usize) {
    dispatch_code!(bundle.code, decode(bundle, codes, stride))
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn decode<const BITS: usize, const STATE: usize>(bundle: Bundle, codes: &mut [Line], stride: usize) {
    decode_nibbles::<_, BITS, STATE>(Avx2::new(), bundle, codes, stride);
}

impl Nibbles for Avx2 {
    type Tables = ();

    #[inline(always)]
    fn xor(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: here and below, the token proves the instructions.
        unsafe { _mm256_xor_si256(a, b) }
    }

    #[inline(always)]
    fn look_up(self, table: &[u8; 16], index: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_shuffle_epi8(twice(table), index) }
    }

    #[inline(always)]
    fn tables<const BITS: usize>(self) {}

    #[inline(always)]
    fn codes_of<const BITS: usize>(self, (): (), index: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { codes_of::<BITS>(index) }
    }

    #[inline(always)]
    fn store(self, bytes: __m256i, line: &mut Line, part: usize) {
        let half = &mut line.0[32 * part..][..32];
        // SAFETY: half a line is 32 aligned bytes.
        unsafe { _mm256_store_si256(half.as_mut_ptr().cast(), bytes) }
    }
}

/// A table for both halves of a shuffle.
#[target_feature(enable = "avx2")]
#[inline]
fn twice(table: &[u8; 16]) -> __m256i {
    // SAFETY: sixteen bytes of an array of sixteen.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(table.as_ptr().cast()) })
}

/// `value + 128` of indices.
#[target_feature(enable = "avx2")]
#[inline]
fn codes_of<const BITS: usize>(index: __m256i) -> __m256i {
    let top = _mm256_set1_epi8(-128);
    let (magnitude, sign) = if BITS <= usize::from(COARSE_BITS) {
        let magnitude = look_up(&COARSE, _mm256_and_si256(index, _mm256_set1_epi8(0x3f)));
        (magnitude, _mm256_add_epi8(index, index))
    } else {
        (look_up(&FINE, _mm256_andnot_si256(top, index)), index)
    };
    // Not zero, which would make a zero of the value.
    let sign = _mm256_or_si256(sign, _mm256_set1_epi8(1));
    _mm256_xor_si256(_mm256_sign_epi8(magnitude, sign), top)
}

#[target_feature(enable = "avx2")]
#[inline]
fn look_up<const N: usize>(tables: &Tables<N>, mut index: __m256i) -> __m256i {
    let mut magnitude = _mm256_setzero_si256();
    for table in tables {
        magnitude = _mm256_xor_si256(magnitude, _mm256_shuffle_epi8(twice(table), index));
        index = _mm256_sub_epi8(index, _mm256_set1_epi8(16));
    }
    magnitude
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::kernels::generic::decode::assert_codes_of_indices;

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
        unsafe { assert_codes_of_indices(all_codes::<2>(), all_codes::<3>()) }
    }
}
