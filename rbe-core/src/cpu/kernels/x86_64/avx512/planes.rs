//! AVX-512 with VNNI: 64 products an instruction.
//!
//! A line is a register: lane `r` belongs to row `r`. `vpdpbusd` multiplies its four codes with four activations,
//! read from memory and broadcast to all lanes by the same instruction. Unpacking costs 1.5 instructions per
//! register of 64 codes at 4 planes and is shared by all vectors; with one vector, four partial sums hide the
//! instruction's latency.

use super::Avx512;
use crate::codec::Block;
use crate::cpu::kernels::generic::planes::{self as generic, Digits, DotTile, Tile};
use crate::cpu::kernels::unroll::{dispatch, each};
use crate::cpu::layout::planes::{GROUP, GROUPS, Line, PlaneTiles, TILE_COLS};
use crate::cpu::layout::{Batch, Input, RowDots, RowSums};
use std::arch::x86_64::*;
use std::ops::Range;

/// Digits whose products are multiplied in registers, without a way through memory.
const FEW_DIGITS: usize = 3;

/// As [`generic::product`]; with few digits, neighbouring blocks with as many planes in one go.
#[target_feature(enable = "avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,gfni,popcnt")]
pub(super) fn product(tiles: &PlaneTiles, i: usize, row_tile: usize, x: Batch, sums: &mut [RowSums]) {
    if x.digits() > FEW_DIGITS {
        generic::product(Avx512::new(), tiles, i, row_tile, x, sums);
        return;
    }
    let layout = tiles.layout();
    let blocks = layout.block_cols();
    let planes_of = |j: usize| tiles.planes(layout.block_at(i, j));
    let mut j = 0;
    while j < blocks {
        let planes = planes_of(j);
        let end = (j + 1..blocks).find(|j| planes_of(*j) != planes).unwrap_or(blocks);
        if planes > 0 {
            let run = BlockRun { i, row_tile, blocks: j..end };
            dispatch!(planes, x.digits(), planes_run(tiles, run, x, sums), [3, 2, 1]);
        }
        j = end;
    }
}

/// Neighbouring blocks of a row tile with as many planes.
struct BlockRun {
    i: usize,
    row_tile: usize,
    blocks: Range<usize>,
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn planes_run<const PLANES: usize, const DIGITS: usize>(
    tiles: &PlaneTiles,
    run: BlockRun,
    x: Batch,
    sums: &mut [RowSums],
) {
    let layout = tiles.layout();
    let (lines, offsets) = tiles.band(run.i, run.row_tile);
    let offset = 1 - (1i32 << PLANES);
    for j in run.blocks {
        let block = layout.block_at(run.i, j);
        let lines = &lines[offsets[j]..][..PLANES * block.width.div_ceil(TILE_COLS)];
        let half_steps = tiles.half_steps(block, run.row_tile);
        // SAFETY: sixteen numbers.
        let half_steps = unsafe { _mm512_loadu_ps(half_steps.as_ptr()) };
        let dots = dot_registers::<PLANES, DIGITS>(lines, x.values(0, j, 0), x.stride());
        for (digit, dots) in dots.into_iter().enumerate() {
            let bias = _mm512_set1_epi32(offset * x.sum(digit, j));
            let levels = _mm512_add_epi32(_mm512_slli_epi32::<1>(dots), bias);
            let factor = _mm512_mul_ps(half_steps, _mm512_set1_ps(x.scale(digit, j)));
            let share = _mm512_mul_ps(_mm512_cvtepi32_ps(levels), factor);
            // Either one digit a vector, or all are one vector's.
            let sums = &mut sums[if x.per_vector() == 1 { digit } else { 0 }];
            // SAFETY: `sums` is 64 aligned bytes.
            unsafe {
                let sum = _mm512_load_ps(sums.0.as_ptr());
                _mm512_store_ps(sums.0.as_mut_ptr(), _mm512_add_ps(sum, share));
            }
        }
    }
}

#[target_feature(enable = "avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,gfni,popcnt")]
pub(super) fn transposed(tiles: &PlaneTiles, block: Block, g: Input, acc: &mut [f32]) {
    generic::transposed::<Avx512>(tiles, block, g, acc);
}

impl DotTile for Avx512 {
    const BYTE_BIAS: i32 = 0;

    #[inline(always)]
    fn dot_tile(self, tile: Tile, x: Digits, dots: &mut [RowDots]) -> usize {
        // SAFETY: the token proves the instructions.
        unsafe { dot_tile(tile, x, dots) }
    }
}

/// Up to sixteen digits.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn dot_tile(tile: Tile, x: Digits, dots: &mut [RowDots]) -> usize {
    dispatch!(tile.planes, x.count, dot(tile.lines, x, dots), [16, 12, 8, 6, 4, 3, 2, 1])
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn dot<const PLANES: usize, const BATCH: usize>(lines: &[Line], x: Digits, dots: &mut [RowDots]) -> usize {
    for (digit, sum) in dot_registers::<PLANES, BATCH>(lines, x.values, x.stride).into_iter().enumerate() {
        // SAFETY: it stores 64 aligned bytes.
        unsafe { _mm512_store_si512(dots[digit].0.as_mut_ptr().cast(), sum) };
    }
    BATCH
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn dot_registers<const PLANES: usize, const BATCH: usize>(
    lines: &[Line],
    values: &[i8],
    stride: usize,
) -> [__m512i; BATCH] {
    let tiles = lines.as_chunks::<PLANES>().0;
    // The last read is four bytes at the end of the last tile of the last digit.
    assert!(values.len() >= (BATCH - 1) * stride + tiles.len() * TILE_COLS);
    // Few digits: several sums each, so that an instruction does not wait for the one before.
    let chains = const { if BATCH < 4 { 4 / BATCH } else { 1 } };
    let mut sums = [[_mm512_setzero_si512(); 4]; BATCH];
    for (t, tile) in tiles.iter().enumerate() {
        let codes = unpack(tile);
        each!(GROUP_INDEX in [0 1 2 3 4 5 6 7] {
            for (digit, sums) in sums.iter_mut().enumerate() {
                let at = digit * stride + t * TILE_COLS + GROUP_INDEX * GROUP;
                // SAFETY: four bytes inside `values`, by the assertion above.
                let x = unsafe { values.as_ptr().add(at).cast::<i32>().read_unaligned() };
                let sum = &mut sums[GROUP_INDEX % chains];
                *sum = _mm512_dpbusd_epi32(*sum, codes[GROUP_INDEX], _mm512_set1_epi32(x));
            }
        });
    }
    let mut totals = [_mm512_setzero_si512(); BATCH];
    for (total, [a, b, c, d]) in totals.iter_mut().zip(sums) {
        *total = _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d));
    }
    totals
}

/// [`planes::unpack`](crate::cpu::layout::planes::unpack) in registers.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn unpack<const PLANES: usize>(tile: &[Line; PLANES]) -> [__m512i; GROUPS] {
    let mut codes = [_mm512_setzero_si512(); GROUPS];
    let mut first = 0;
    if PLANES & 8 != 0 {
        codes = add_part::<8>(&tile[first..], codes);
        first += 8;
    }
    if PLANES & 4 != 0 {
        codes = add_part::<4>(&tile[first..], codes);
        first += 4;
    }
    if PLANES & 2 != 0 {
        codes = add_part::<2>(&tile[first..], codes);
        first += 2;
    }
    if PLANES & 1 != 0 {
        codes = add_part::<1>(&tile[first..], codes);
    }
    codes
}

/// `codes << BITS | field` for every column group of a part.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn add_part<const BITS: usize>(part: &[Line], codes: [__m512i; GROUPS]) -> [__m512i; GROUPS] {
    each!(GROUP_INDEX in [0 1 2 3 4 5 6 7] {
        // SAFETY: a line is 64 aligned bytes.
        let line = unsafe { _mm512_load_si512(part[GROUP_INDEX % BITS].0.as_ptr().cast()) };
        if BITS == 8 {
            line
        } else {
            // 16-bit shifts bring in a neighbour's bits, which the mask takes away.
            let shift = _mm_cvtsi32_si128(((GROUP_INDEX / BITS * BITS) as u32).cast_signed());
            let field = _mm512_srl_epi16(line, shift);
            let mask = _mm512_set1_epi8((1 << BITS) - 1);
            let above = _mm512_sll_epi16(codes[GROUP_INDEX], _mm_cvtsi32_si128((BITS as u32).cast_signed()));
            // field & mask | above; codes above are below 2^7 and stay in their bytes.
            _mm512_ternarylogic_epi32::<0xea>(field, mask, above)
        }
    })
}
