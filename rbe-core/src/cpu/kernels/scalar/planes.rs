//! Planes in plain Rust.

use super::isa::Scalar;
use crate::codec::Block;
use crate::cpu::kernels::generic::planes::{self as generic, Digits, DotTile, Tile};
use crate::cpu::layout::planes::{GROUP, GROUPS, PlaneTiles, TILE_COLS, TILE_ROWS, unpack};
use crate::cpu::layout::{Batch, Input, RowDots, RowSums};

pub(super) fn product(tiles: &PlaneTiles, i: usize, row_tile: usize, x: Batch, sums: &mut [RowSums]) {
    generic::product(Scalar, tiles, i, row_tile, x, sums);
}

pub(super) fn transposed(tiles: &PlaneTiles, block: Block, g: Input, acc: &mut [f32]) {
    generic::transposed::<Scalar>(tiles, block, g, acc);
}

impl DotTile for Scalar {
    const BYTE_BIAS: i32 = 0;

    /// One digit. A trellis's codes have eight bits, which inlined is a constant.
    #[inline(always)]
    fn dot_tile(self, tile: Tile, x: Digits, dots: &mut [RowDots]) -> usize {
        let mut sums = [0; TILE_ROWS];
        let tiles = tile.lines.chunks_exact(usize::from(tile.planes));
        for (lines, values) in tiles.zip(x.values.chunks(TILE_COLS)) {
            let codes = unpack(lines, tile.planes);
            for group in 0..GROUPS {
                for (n, code) in codes[group].iter().enumerate() {
                    sums[n / GROUP] += i32::from(*code) * i32::from(values[group * GROUP + n % GROUP]);
                }
            }
        }
        dots[0].0 = sums;
        1
    }
}
