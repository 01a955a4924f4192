//! NEON with dot products: sixteen products of bytes an instruction.
//!
//! `sdot` multiplies a register of codes, four rows by four columns, with four activations chosen out of a register, and
//! adds each row's to its sum. Unpacking 128 codes of 4 planes costs 12 instructions and is shared by all vectors.
//! Few vectors take a tile as it lies in memory; more take its rows four at a time, so that their sums fit in registers.

use super::super::unroll::{dispatch, each};
use super::unpack::unpack;
use std::arch::aarch64::*;
use std::arch::asm;

super::super::table!(fma: true, "neon,dotprod");
use super::transpose::{lanes_to_rows, rows_to_lanes};

/// Vectors from which on a sparse product is faster in lanes.
const SPMM_MIN_BATCH: usize = 8;
/// Digits multiplied with one unpacked tile.
const MAX_VECTORS: usize = 16;
/// Codes of eight bits are made signed.
const BYTE_BIAS: i32 = 128;

super::super::walks!(fma: true, "neon,dotprod");
use planes_by_blocks as planes;
use trellis_by_blocks as trellis;
super::super::walk::multiplies_decoded!("neon,dotprod");
use super::trellis::decode_bundle;

/// From entry to entry: no instruction looks sixteen numbers up in as many registers as a block's inputs take.
#[target_feature(enable = "neon,dotprod")]
fn sparse(term: &PackedSparse, block: Block, x: Input, acc: &mut [f32]) {
    generic::sparse::<true, false>(term, block, x, acc);
}

/// Integer dot products of a row tile with the next slices, and how many slices it took.
#[target_feature(enable = "neon,dotprod")]
fn dot_row_tile(
    lines: &[Line],
    planes: u8,
    values: &[i8],
    stride: usize,
    left: usize,
    dots: &mut [RowDots],
) -> usize {
    dispatch!(planes, left, dot(lines, values, stride, dots), [16, 12, 8, 6, 4, 3, 2, 1])
}

#[target_feature(enable = "neon,dotprod")]
fn dot<const PLANES: usize, const VECTORS: usize>(
    lines: &[Line],
    values: &[i8],
    stride: usize,
    dots: &mut [RowDots],
) -> usize {
    let tiles = lines.as_chunks::<PLANES>().0;
    if VECTORS < 4 {
        dot_quarters::<PLANES, VECTORS, 4>(tiles, 0, values, stride, dots);
    } else {
        for quarter in 0..4 {
            dot_quarters::<PLANES, VECTORS, 1>(tiles, quarter, values, stride, dots);
        }
    }
    VECTORS
}

/// Four rows from each of some quarters of the tiles' lines.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn dot_quarters<const PLANES: usize, const VECTORS: usize, const QUARTERS: usize>(
    tiles: &[[Line; PLANES]],
    first: usize,
    values: &[i8],
    stride: usize,
    dots: &mut [RowDots],
) {
    // The last read ends with the last tile of the last vector.
    assert!(values.len() >= (VECTORS - 1) * stride + tiles.len() * TILE_COLS);
    let mut sums = [[vdupq_n_s32(0); QUARTERS]; VECTORS];
    for (t, tile) in tiles.iter().enumerate() {
        each!(QUARTER in [0 1 2 3] if QUARTER < QUARTERS {
            let codes = unpack(tile, first + QUARTER);
            each!(VECTOR in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] if VECTOR < VECTORS {
                let at = VECTOR * stride + t * TILE_COLS;
                // SAFETY: 32 bytes inside `values`, by the assertion above.
                let x = unsafe { [vld1q_s8(values.as_ptr().add(at)), vld1q_s8(values.as_ptr().add(at + 16))] };
                let sum = &mut sums[VECTOR][QUARTER];
                each!(GROUP_INDEX in [0 1 2 3 4 5 6 7] {
                    *sum = dot_of_four::<{ GROUP_INDEX % 4 }>(*sum, codes[GROUP_INDEX], x[GROUP_INDEX / 4]);
                });
            });
        });
    }
    for (vector, sums) in sums.iter().enumerate() {
        let out = dots[vector].0[4 * first..].as_chunks_mut().0;
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
fn dot_of_four<const FOUR: usize>(mut sum: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
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
