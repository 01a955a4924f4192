//! AVX-512 with VNNI: 64 products an instruction.
//!
//! A line is a register: lane `r` belongs to row `r`. `vpdpbusd` multiplies its four codes with four activations,
//! read from memory and broadcast to all lanes by the same instruction. Unpacking costs 1.5 instructions per
//! register of 64 codes at 4 planes and is shared by all vectors; with one vector, four partial sums hide the
//! instruction's latency.

use super::isa::Avx512;
use crate::codec::Block;
use crate::cpu::kernels::generic::dot::{self, Broadcast, dot_registers};
use crate::cpu::kernels::generic::planes::{self as generic, Digits, DotTile, Tile};
use crate::cpu::kernels::unroll::dispatch;
use crate::cpu::kernels::x86_64::frame::align_frame;
use crate::cpu::layout::planes::{Line, PackedPlanes, RowTile};
use crate::cpu::layout::{Input, QuantizedRows, RowDots, RowSums};
use std::arch::x86_64::*;
use std::ops::Range;

/// Digits whose products are multiplied in registers, without a way through memory.
const GEMV_MAX_DIGITS: usize = 3;

/// As [`generic::product`]; with few digits, neighbouring blocks with as many planes in one go.
#[target_feature(enable = "avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,gfni,popcnt")]
pub(super) fn product(
    tiles: &PackedPlanes,
    i: usize,
    row_tile: usize,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    if x.slices() > GEMV_MAX_DIGITS {
        generic::product(Avx512::new(), tiles, i, row_tile, x, sums);
        return;
    }
    for (planes, blocks) in tiles.runs(i) {
        let run = BlockRun { i, row_tile, blocks };
        dispatch!(planes, x.slices(), planes_run(tiles, run, x, sums), [3, 2, 1]);
    }
}

/// Neighbouring blocks of a row tile with as many planes.
struct BlockRun {
    i: usize,
    row_tile: usize,
    blocks: Range<usize>,
}

#[target_feature(enable = "avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,gfni,popcnt")]
fn planes_run<const PLANES: usize, const DIGITS: usize>(
    tiles: &PackedPlanes,
    run: BlockRun,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    let offset = 1 - (1i32 << PLANES);
    // Either one digit a vector, or all are one vector's.
    let of_digit = |digit: usize| if x.slices_per_row() == 1 { digit } else { 0 };
    let mut held = [_mm512_setzero_ps(); DIGITS];
    for (held, sums) in held.iter_mut().zip(&*sums) {
        // SAFETY: sixteen sums are 64 aligned bytes.
        *held = unsafe { _mm512_load_ps(sums.0.as_ptr()) };
    }
    let row_tiles = tiles.row_tiles_across(run.i, run.row_tile, run.blocks.clone());
    for (j, RowTile { lines, half_steps, .. }) in run.blocks.zip(row_tiles) {
        // SAFETY: sixteen numbers.
        let half_steps = unsafe { _mm512_loadu_ps(half_steps.as_ptr()) };
        let digits = Digits { values: x.values(0, j, 0), stride: x.stride(), count: DIGITS };
        let dots = dot_registers::<_, PLANES, DIGITS>(Avx512::new(), lines, digits, 0);
        for (digit, dots) in dots.into_iter().enumerate() {
            let bias = _mm512_set1_epi32(offset * x.sum(digit, j));
            let levels = _mm512_add_epi32(_mm512_slli_epi32::<1>(dots), bias);
            let factor = _mm512_mul_ps(half_steps, _mm512_set1_ps(x.scale(digit, j)));
            let share = _mm512_mul_ps(_mm512_cvtepi32_ps(levels), factor);
            held[of_digit(digit)] = _mm512_add_ps(held[of_digit(digit)], share);
        }
    }
    for (held, sums) in held.iter().zip(sums) {
        // SAFETY: as above.
        unsafe { _mm512_store_ps(sums.0.as_mut_ptr(), *held) };
    }
}

#[target_feature(enable = "avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,gfni,popcnt")]
pub(super) fn transposed(tiles: &PackedPlanes, block: Block, g: Input, acc: &mut [f32]) {
    align_frame();
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
#[target_feature(enable = "avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,gfni,popcnt")]
fn dot_tile(tile: Tile, x: Digits, dots: &mut [RowDots]) -> usize {
    dispatch!(tile.planes, x.count, dot(tile.lines, x, dots), [16, 12, 8, 6, 4, 3, 2, 1])
}

#[target_feature(enable = "avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,gfni,popcnt")]
fn dot<const PLANES: usize, const BATCH: usize>(lines: &[Line], x: Digits, dots: &mut [RowDots]) -> usize {
    align_frame();
    dot::dot::<_, PLANES, BATCH>(Avx512::new(), lines, x, dots)
}

impl Broadcast for Avx512 {
    const CHAINS: usize = 4;

    #[inline(always)]
    fn dot<const PLANES: usize>(self, sums: __m512i, codes: __m512i, x: i32) -> __m512i {
        // SAFETY: the token proves the instructions.
        unsafe { _mm512_dpbusd_epi32(sums, codes, _mm512_set1_epi32(x)) }
    }

    #[inline(always)]
    fn add_lanes(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    fn store_dots(self, sums: __m512i, dots: &mut RowDots, _part: usize) {
        // SAFETY: as above, and 64 aligned bytes.
        unsafe { _mm512_store_si512(dots.0.as_mut_ptr().cast(), sums) }
    }
}
