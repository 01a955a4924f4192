//! NEON with dot products: sixteen products of bytes an instruction.
//!
//! `sdot` multiplies a register of codes, four rows by four columns, with four activations chosen out of a register, and
//! adds each row's to its sum. Unpacking 128 codes of 4 planes costs 12 instructions and is shared by all vectors.
//! Few vectors take a tile as it lies in memory; more take its rows four at a time, so that their sums fit in registers.

use super::isa::NeonDot;
use crate::cpu::kernels::aarch64::neon::unpack::unpack;
use crate::cpu::kernels::generic::planes::{self as generic, Digits, DotTile, Tile};
use crate::cpu::kernels::unroll::{dispatch, each};
use crate::cpu::layout::planes::{Line, PackedPlanes, TILE_COLS};
use crate::cpu::layout::{QuantizedRows, RowDots, RowSums};
use std::arch::aarch64::*;
use std::arch::asm;

#[target_feature(enable = "neon,dotprod")]
pub(super) fn product(
    tiles: &PackedPlanes,
    i: usize,
    row_tile: usize,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    generic::product(NeonDot::with_dot(), tiles, i, row_tile, x, sums);
}

impl DotTile for NeonDot {
    /// Codes of eight bits are made signed.
    const BYTE_BIAS: i32 = 128;

    #[inline(always)]
    fn dot_tile(self, tile: Tile, x: Digits, dots: &mut [RowDots]) -> usize {
        // SAFETY: the token proves the instructions.
        unsafe { dot_tile(tile, x, dots) }
    }
}

/// Up to sixteen digits.
#[target_feature(enable = "neon,dotprod")]
fn dot_tile(tile: Tile, x: Digits, dots: &mut [RowDots]) -> usize {
    dispatch!(tile.planes, x.count, dot(tile.lines, x, dots), [16, 12, 8, 6, 4, 3, 2, 1])
}

#[target_feature(enable = "neon,dotprod")]
fn dot<const PLANES: usize, const BATCH: usize>(lines: &[Line], x: Digits, dots: &mut [RowDots]) -> usize {
    let tiles = lines.as_chunks::<PLANES>().0;
    if BATCH < 4 {
        dot_quarters::<PLANES, BATCH, 4>(tiles, 0, x, dots);
    } else {
        for quarter in 0..4 {
            dot_quarters::<PLANES, BATCH, 1>(tiles, quarter, x, dots);
        }
    }
    BATCH
}

/// Four rows from each of some quarters of the tiles' lines.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn dot_quarters<const PLANES: usize, const BATCH: usize, const QUARTERS: usize>(
    tiles: &[[Line; PLANES]],
    first: usize,
    x: Digits,
    dots: &mut [RowDots],
) {
    let Digits { values, stride, .. } = x;
    // The last read ends with the last tile of the last digit.
    assert!(values.len() >= (BATCH - 1) * stride + tiles.len() * TILE_COLS);
    let mut sums = [[vdupq_n_s32(0); QUARTERS]; BATCH];
    for (t, tile) in tiles.iter().enumerate() {
        each!(QUARTER in [0 1 2 3] if QUARTER < QUARTERS {
            let codes = unpack(tile, first + QUARTER);
            each!(DIGIT in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] if DIGIT < BATCH {
                let at = DIGIT * stride + t * TILE_COLS;
                // SAFETY: 32 bytes inside `values`, by the assertion above.
                let x = unsafe { [vld1q_s8(values.as_ptr().add(at)), vld1q_s8(values.as_ptr().add(at + 16))] };
                let sum = &mut sums[DIGIT][QUARTER];
                each!(GROUP_INDEX in [0 1 2 3 4 5 6 7] {
                    *sum = dot_of_four::<{ GROUP_INDEX % 4 }>(*sum, codes[GROUP_INDEX], x[GROUP_INDEX / 4]);
                });
            });
        });
    }
    for (digit, sums) in sums.iter().enumerate() {
        let out = dots[digit].0[4 * first..].as_chunks_mut().0;
        for (out, sum) in out.iter_mut().zip(sums) {
            let out: &mut [i32; 4] = out;
            // SAFETY: `out` is four numbers.
            unsafe { vst1q_s32(out.as_mut_ptr(), *sum) };
        }
    }
}

/// `sum[r] + sum over c of codes[4r + c] x[4 FOUR + c]`.
#[target_feature(enable = "neon,dotprod")]
#[inline]
pub(super) fn dot_of_four<const FOUR: usize>(
    mut sum: int32x4_t,
    codes: int8x16_t,
    x: int8x16_t,
) -> int32x4_t {
    // `vdotq_laneq_s32` by its instruction: the standard library does not offer it on stable compilers.
    // SAFETY: the instruction exists, by the function's features, and reads and writes only these registers.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {codes:v}.16b, {x:v}.4b[{four}]",
            sum = inout(vreg) sum,
            codes = in(vreg) codes,
            x = in(vreg) x,
            four = const FOUR,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
