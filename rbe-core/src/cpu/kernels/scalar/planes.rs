//! Planes in plain Rust.

use super::isa::Scalar;
use crate::codec::Block;
use crate::cpu::kernels::generic::planes::{self as generic, Digits, DotTile, Tile};
use crate::cpu::layout::planes::{GROUP, GROUPS, Line, PlaneTiles, TILE_COLS, TILE_ROWS, unpack};
use crate::cpu::layout::{Batch, Input, RowDots, RowSums};

pub(super) fn product(tiles: &PlaneTiles, i: usize, row_tile: usize, x: Batch, sums: &mut [RowSums]) {
    generic::product(Scalar, tiles, i, row_tile, x, sums);
}

pub(super) fn transposed(tiles: &PlaneTiles, block: Block, g: Input, acc: &mut [f32]) {
    generic::transposed::<Scalar>(tiles, block, g, acc);
}

impl DotTile for Scalar {
    const BYTE_BIAS: i32 = 0;

    /// One digit.
    #[inline(always)]
    fn dot_tile(self, tile: Tile, x: Digits, dots: &mut [RowDots]) -> usize {
        dot(tile.lines, tile.planes, x.values, &mut dots[0]);
        1
    }
}

/// Not inlined: the optimiser makes less of a number of planes that it knows.
#[inline(never)]
fn dot(lines: &[Line], planes: u8, values: &[i8], dots: &mut RowDots) {
    let mut sums = [0; TILE_ROWS];
    for (tile, values) in lines.chunks_exact(usize::from(planes)).zip(values.chunks(TILE_COLS)) {
        let codes = unpack(tile, planes);
        for group in 0..GROUPS {
            for (n, code) in codes[group].iter().enumerate() {
                sums[n / GROUP] += i32::from(*code) * i32::from(values[group * GROUP + n % GROUP]);
            }
        }
    }
    dots.0 = sums;
}
