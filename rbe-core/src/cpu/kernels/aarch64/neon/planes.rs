//! NEON as every AArch64 processor has it: sixteen products of bytes in two instructions.
//!
//! `smull` and `smlal` multiply signed bytes and add in 16 bits, as many products as cannot overflow there; `sadalp` adds
//! pairs of these to sums of 32 bits, so that a row has two. A quarter of a line, four rows, is a register.

use super::isa::Neon;
use super::unpack::unpack;
use crate::codec::Block;
use crate::cpu::kernels::generic::planes::{self as generic, Digits, DotTile, Tile};
use crate::cpu::kernels::unroll::{dispatch, each};
use crate::cpu::layout::planes::{Line, PackedPlanes, TILE_COLS, TILE_ROWS};
use crate::cpu::layout::{Input, QuantizedRows, RowDots, RowSums};
use std::arch::aarch64::*;
use std::arch::asm;

#[target_feature(enable = "neon")]
pub(super) fn product(
    tiles: &PackedPlanes,
    i: usize,
    row_tile: usize,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    generic::product(Neon::new(), tiles, i, row_tile, x, sums);
}

#[target_feature(enable = "neon")]
pub(super) fn transposed(tiles: &PackedPlanes, block: Block, g: Input, acc: &mut [f32]) {
    generic::transposed::<Neon>(tiles, block, g, acc);
}

impl DotTile for Neon {
    /// Codes of eight bits are made signed.
    const BYTE_BIAS: i32 = 128;

    #[inline(always)]
    fn dot_tile(self, tile: Tile, x: Digits, dots: &mut [RowDots]) -> usize {
        // SAFETY: the token proves the instructions.
        unsafe { dot_tile(tile, x, dots) }
    }
}

/// Up to four digits.
#[target_feature(enable = "neon")]
fn dot_tile(tile: Tile, x: Digits, dots: &mut [RowDots]) -> usize {
    dispatch!(tile.planes, x.count, dot(tile.lines, x, dots), [4, 3, 2, 1])
}

#[target_feature(enable = "neon")]
fn dot<const PLANES: usize, const BATCH: usize>(lines: &[Line], x: Digits, dots: &mut [RowDots]) -> usize {
    let Digits { values, stride, .. } = x;
    let tiles = lines.as_chunks::<PLANES>().0;
    // The last read ends with the last tile of the last digit.
    assert!(values.len() >= (BATCH - 1) * stride + tiles.len() * TILE_COLS);
    for quarter in 0..TILE_ROWS / 4 {
        let mut sums = [[vdupq_n_s32(0); 2]; BATCH];
        for (t, tile) in tiles.iter().enumerate() {
            let codes = unpack(tile, quarter);
            each!(DIGIT in [0 1 2 3] if DIGIT < BATCH {
                let at = DIGIT * stride + t * TILE_COLS;
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
                        let [low, high] = sums[DIGIT];
                        sums[DIGIT] = [vpadalq_s16(low, products[0]), vpadalq_s16(high, products[1])];
                    }
                });
            });
        }
        for (digit, [low, high]) in sums.into_iter().enumerate() {
            let out = &mut dots[digit].0[4 * quarter..][..4];
            // SAFETY: `out` is four numbers.
            unsafe { vst1q_s32(out.as_mut_ptr(), vpaddq_s32(low, high)) };
        }
    }
    BATCH
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

/// How many products of a code and a digit, of at most 127, 16 bits hold.
const fn groups_in_16_bits(planes: usize) -> usize {
    match planes {
        0..=5 => 8,
        6 => 4,
        // Codes of eight bits are -128 to 127.
        _ => 2,
    }
}
