//! Products of codes in memory, an instruction for 32 of them, half a line at a time.

use super::isa::Vnni;
use crate::cpu::kernels::generic::dot::{Broadcast, dot_registers};
use crate::cpu::kernels::generic::fused::Multiply;
use crate::cpu::kernels::generic::planes::{Digits, MAX_DIGITS};
use crate::cpu::kernels::generic::trellis::{DIGITS_AT_ONCE, DecodedStrips};
use crate::cpu::kernels::generic::unpack::unpack;
use crate::cpu::kernels::isa::Bytes;
use crate::cpu::kernels::unroll::each;
use crate::cpu::kernels::x86_64::ahead::ask_ahead;
use crate::cpu::kernels::x86_64::avx2::isa::Avx2;
use crate::cpu::kernels::x86_64::avx2::planes::{HALF, add_blocks};
use crate::cpu::layout::planes::{Line, QUAD, QUADS, RowTiles, TILE_COLS};
use crate::cpu::layout::{FINER, QuantizedRows, RowDots, RowSums};
use std::arch::x86_64::*;

impl<P: Vnni> Broadcast for Avx2<P> {
    const CHAINS: usize = 4;

    #[inline(always)]
    fn dot<const PLANES: usize>(self, sums: __m256i, codes: __m256i, x: i32) -> __m256i {
        // SAFETY: here and below, the token proves the instructions.
        self.proof().add_products(sums, codes, unsafe { _mm256_set1_epi32(x) })
    }

    #[inline(always)]
    fn add_lanes(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_add_epi32(a, b) }
    }

    #[inline(always)]
    fn ask_ahead<const PLANES: usize>(self, tile: &[Line; PLANES], n: usize) {
        ask_ahead(tile, n);
    }

    #[inline(always)]
    fn store_dots(self, sums: __m256i, dots: &mut RowDots, part: usize) {
        let dots = &mut dots.0[HALF * part..][..HALF];
        // SAFETY: as above; eight numbers.
        unsafe { _mm256_storeu_si256(dots.as_mut_ptr().cast(), sums) }
    }
}

/// Adds the products of neighbouring blocks with one vector's digits.
#[inline(always)]
pub(super) fn add_run<P: Vnni, const PLANES: usize, const DIGITS: usize>(
    isa: Avx2<P>,
    blocks: RowTiles,
    x: QuantizedRows,
    sums: &mut RowSums,
) {
    add_blocks::<_, PLANES, DIGITS>(isa, blocks, x, sums, |lines, j| {
        let digits = Digits { values: x.values(0, j, 0), stride: x.stride(), count: DIGITS };
        let mut sums = [isa.splat(0); 2];
        for (part, sum) in sums.iter_mut().enumerate() {
            let dots = dot_registers::<_, PLANES, DIGITS>(isa, lines, digits, part);
            *sum = dots[0];
            for fine in &dots[1..] {
                // SAFETY: the token proves the instructions.
                *sum = unsafe { _mm256_add_epi32(_mm256_mullo_epi32(*sum, _mm256_set1_epi32(FINER)), *fine) };
            }
        }
        sums
    });
}

/// Up to [`MAX_DIGITS`] digits, whose sums lie in memory, while a tile's codes are in registers.
#[inline(always)]
pub(super) fn dot<P: Vnni, const PLANES: usize>(
    isa: Avx2<P>,
    lines: &[Line],
    x: Digits,
    dots: &mut [RowDots],
) -> usize {
    let count = x.count.min(MAX_DIGITS);
    for part in 0..2 {
        let mut sums = [isa.splat(0); MAX_DIGITS];
        for (t, tile) in lines.as_chunks::<PLANES>().0.iter().enumerate() {
            let codes = unpack::<_, PLANES>(isa, tile, part);
            for (digit, sum) in sums[..count].iter_mut().enumerate() {
                let x = &x.values[digit * x.stride + t * TILE_COLS..][..TILE_COLS];
                each!(QUAD_INDEX in [0 1 2 3 4 5 6 7] {
                    // SAFETY: four bytes of 32.
                    let four = unsafe { x.as_ptr().add(QUAD_INDEX * QUAD).cast::<i32>().read_unaligned() };
                    *sum = Broadcast::dot::<PLANES>(isa, *sum, codes[QUAD_INDEX], four);
                });
            }
        }
        for (sums, dots) in sums[..count].iter().zip(&mut *dots) {
            isa.store_dots(*sums, dots, part);
        }
    }
    count
}

/// Quads that are multiplied at a time: as many as have the codes of all sixteen rows in half of the registers.
const QUADS_AT_ONCE: usize = QUADS / 2;

/// Adds a tile's products with all digits to the vectors' sums, `stride` apart.
#[inline(always)]
pub(super) fn multiply<P: Vnni>(
    isa: Avx2<P>,
    scale_groups: &DecodedStrips,
    tile: usize,
    sums: &mut [RowSums],
    stride: usize,
) {
    let x = scale_groups.x;
    for (codes, digits) in scale_groups.codes.iter().zip(&scale_groups.digits) {
        let (first, last) = codes[tile * QUADS..][..QUADS].split_at(QUADS_AT_ONCE);
        let mut dots = [[isa.splat(0); 2]; DIGITS_AT_ONCE];
        let dots = &mut dots[..x.slices()];
        let values = |digit: usize| &digits.values[digit * x.stride()..][..TILE_COLS];
        let codes = load(isa, first);
        for (digit, dots) in dots.iter_mut().enumerate() {
            *dots = add_quads(isa, *dots, &codes, &values(digit)[..TILE_COLS / 2]);
        }
        let codes = load(isa, last);
        // The digits of a vector are added to its sums one after another.
        let (mut left, mut at) = (x.slices_per_row(), tile);
        for (digit, dots) in dots.iter().enumerate() {
            let dots = add_quads(isa, *dots, &codes, &values(digit)[TILE_COLS / 2..]);
            let (bias, factor) = (digits.biases[digit], digits.factors[digit]);
            let (sums, _) = sums[at].0.as_chunks_mut::<HALF>();
            for (sums, dots) in sums.iter_mut().zip(dots) {
                isa.add_share(sums, dots, bias, factor);
            }
            left -= 1;
            if left == 0 {
                (left, at) = (x.slices_per_row(), at + stride);
            }
        }
    }
}

/// The codes of some quads in the two halves of a tile's rows.
#[inline(always)]
fn load<P: Vnni>(isa: Avx2<P>, codes: &[Line]) -> [[__m256i; 2]; QUADS_AT_ONCE] {
    let mut all = [[isa.splat(0); 2]; QUADS_AT_ONCE];
    for (all, line) in all.iter_mut().zip(codes) {
        *all = [isa.load(line, 0), isa.load(line, 1)];
    }
    all
}

/// Adds the products of these quads.
#[inline(always)]
fn add_quads<P: Vnni>(
    isa: Avx2<P>,
    mut dots: [__m256i; 2],
    codes: &[[__m256i; 2]; QUADS_AT_ONCE],
    x: &[i8],
) -> [__m256i; 2] {
    for (codes, four) in codes.iter().zip(x.as_chunks::<QUAD>().0) {
        // SAFETY: the token proves the instructions.
        let four = unsafe { _mm256_set1_epi32(i32::from_le_bytes(four.map(i8::cast_unsigned))) };
        for (dots, codes) in dots.iter_mut().zip(codes) {
            *dots = isa.proof().add_products(*dots, *codes, four);
        }
    }
    dots
}
