//! AVX2: 32 products in two instructions, half a line at a time.
//!
//! `vpmaddubsw` multiplies unsigned codes with signed activations and adds pairs in 16 bits. Codes of up to seven
//! bits cannot overflow (2 * 127 * 127 < 2^15); codes of eight go through it as two nibbles.

use super::isa::Avx2;
use crate::codec::Block;
use crate::cpu::kernels::generic::dot::{self, Broadcast};
use crate::cpu::kernels::generic::planes::{self as generic, Digits, DotTile, Tile};
use crate::cpu::kernels::unroll::dispatch;
use crate::cpu::layout::planes::{Line, PackedPlanes};
use crate::cpu::layout::{Input, QuantizedRows, RowDots, RowSums};
use std::arch::x86_64::*;

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn product(
    tiles: &PackedPlanes,
    i: usize,
    row_tile: usize,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    generic::product(Avx2::new(), tiles, i, row_tile, x, sums);
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn transposed(tiles: &PackedPlanes, block: Block, g: Input, acc: &mut [f32]) {
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

/// Up to four digits.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn dot_tile(tile: Tile, x: Digits, dots: &mut [RowDots]) -> usize {
    dispatch!(tile.planes, x.count, dot(tile.lines, x, dots), [4, 3, 2, 1])
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn dot<const PLANES: usize, const BATCH: usize>(lines: &[Line], x: Digits, dots: &mut [RowDots]) -> usize {
    dot::dot::<_, PLANES, BATCH>(Avx2::new(), lines, x, dots)
}

impl Broadcast for Avx2 {
    const CHAINS: usize = 1;

    #[inline(always)]
    fn dot<const PLANES: usize>(self, sums: __m256i, codes: __m256i, x: i32) -> __m256i {
        // SAFETY: the token proves the instructions.
        unsafe {
            let (x, ones) = (_mm256_set1_epi32(x), _mm256_set1_epi16(1));
            let products = if PLANES < 8 {
                _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), ones)
            } else {
                let nibble = _mm256_set1_epi8(0x0f);
                let low = _mm256_maddubs_epi16(_mm256_and_si256(codes, nibble), x);
                let high = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibble);
                let high = _mm256_madd_epi16(_mm256_maddubs_epi16(high, x), _mm256_set1_epi16(16));
                _mm256_add_epi32(_mm256_madd_epi16(low, ones), high)
            };
            _mm256_add_epi32(sums, products)
        }
    }

    #[inline(always)]
    fn add_lanes(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_add_epi32(a, b) }
    }

    #[inline(always)]
    fn store_dots(self, sums: __m256i, dots: &mut RowDots, part: usize) {
        let dots = &mut dots.0[8 * part..][..8];
        // SAFETY: as above, and eight numbers.
        unsafe { _mm256_storeu_si256(dots.as_mut_ptr().cast(), sums) }
    }
}
