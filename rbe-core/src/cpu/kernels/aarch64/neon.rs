//! NEON as every AArch64 processor has it: sixteen products of bytes in two instructions.
//!
//! `smull` and `smlal` multiply signed bytes and add in 16 bits, as many products as cannot overflow there; `sadalp` adds
//! pairs of these to sums of 32 bits, so that a row has two. A quarter of a line, four rows, is a register.

use super::super::unroll::{dispatch, each};
use super::unpack::unpack;
use std::arch::aarch64::*;
use std::arch::asm;

super::super::table!(fma: true, "neon");
use super::transpose::{lanes_to_rows, rows_to_lanes};

/// Vectors from which on a sparse product is faster in lanes.
const SPMM_MIN_BATCH: usize = 8;
/// Digits multiplied with one unpacked tile.
const MAX_VECTORS: usize = 4;
/// Codes of eight bits are made signed.
const BYTE_BIAS: i32 = 128;

super::super::walks!(fma: true, "neon");
use planes_by_blocks as planes;
use trellis_by_blocks as trellis;
super::super::walk::multiplies_decoded!("neon");
use super::trellis::decode_bundle;

/// From entry to entry: no instruction looks sixteen numbers up in as many registers as a block's inputs take.
#[target_feature(enable = "neon")]
fn sparse(term: &PackedSparse, block: Block, x: Input, acc: &mut [f32]) {
    generic::sparse::<true, false>(term, block, x, acc);
}

/// Integer dot products of a row tile with the next slices, and how many slices it took.
#[target_feature(enable = "neon")]
fn dot_row_tile(
    lines: &[Line],
    planes: u8,
    values: &[i8],
    stride: usize,
    left: usize,
    dots: &mut [RowDots],
) -> usize {
    dispatch!(planes, left, dot(lines, values, stride, dots), [4, 3, 2, 1])
}

#[target_feature(enable = "neon")]
fn dot<const PLANES: usize, const VECTORS: usize>(
    lines: &[Line],
    values: &[i8],
    stride: usize,
    dots: &mut [RowDots],
) -> usize {
    let tiles = lines.as_chunks::<PLANES>().0;
    // The last read ends with the last tile of the last vector.
    assert!(values.len() >= (VECTORS - 1) * stride + tiles.len() * TILE_COLS);
    for quarter in 0..TILE_ROWS / 4 {
        let mut sums = [[vdupq_n_s32(0); 2]; VECTORS];
        for (t, tile) in tiles.iter().enumerate() {
            let codes = unpack(tile, quarter);
            each!(VECTOR in [0 1 2 3] if VECTOR < VECTORS {
                let at = VECTOR * stride + t * TILE_COLS;
                // SAFETY: 32 bytes inside `values`, by the assertion above.
                let x = unsafe { [vld1q_s8(values.as_ptr().add(at)), vld1q_s8(values.as_ptr().add(at + 16))] };
                let mut products = [vdupq_n_s16(0); 2];
                each!(GROUP_INDEX in [0 1 2 3 4 5 6 7] {
                    let x = four_times::<{ GROUP_INDEX % 4 }>(x[GROUP_INDEX / 4]);
                    let (codes, at_once) = (codes[GROUP_INDEX], const { groups_in_16_bits(PLANES) });
                    products = if GROUP_INDEX.is_multiple_of(at_once) {
                        [vmull_s8(vget_low_s8(codes), vget_low_s8(x)), vmull_high_s8(codes, x)]
                    } else {
                        let [low, high] = products;
                        [vmlal_s8(low, vget_low_s8(codes), vget_low_s8(x)), vmlal_high_s8(high, codes, x)]
                    };
                    if GROUP_INDEX % at_once == at_once - 1 {
                        let [low, high] = sums[VECTOR];
                        sums[VECTOR] = [vpadalq_s16(low, products[0]), vpadalq_s16(high, products[1])];
                    }
                });
            });
        }
        for (vector, [low, high]) in sums.into_iter().enumerate() {
            let out = &mut dots[vector].0[4 * quarter..][..4];
            // SAFETY: `out` is four numbers.
            unsafe { vst1q_s32(out.as_mut_ptr(), vpaddq_s32(low, high)) };
        }
    }
    VECTORS
}

/// Four bytes of `x`, four times.
#[target_feature(enable = "neon")]
#[inline]
fn four_times<const FOUR: usize>(x: int8x16_t) -> int8x16_t {
    let out;
    // `vdupq_laneq_s32` by its instruction: of two equal halves the optimiser keeps one, and then has to move the upper
    // halves of the codes down to multiply them.
    // SAFETY: an instruction that every NEON has; it reads and writes only these registers.
    unsafe {
        asm!(
            "dup {out:v}.4s, {x:v}.s[{four}]",
            out = lateout(vreg) out,
            x = in(vreg) x,
            four = const FOUR,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    out
}

/// How many products of a code and a slice, of at most 127, 16 bits hold.
const fn groups_in_16_bits(planes: usize) -> usize {
    match planes {
        0..=5 => 8,
        6 => 4,
        // Codes of eight bits are -128 to 127.
        _ => 2,
    }
}
