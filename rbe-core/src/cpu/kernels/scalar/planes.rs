//! Planes in plain Rust.

use super::isa::Scalar;
use crate::codec::Block;
use crate::cpu::kernels::generic::planes::{self as generic, Digits, DotTile, Tile};
use crate::cpu::kernels::unroll::dispatch;
use crate::cpu::layout::planes::{Line, PackedPlanes, QUAD, QUADS, TILE_COLS, TILE_ROWS, unpack};
use crate::cpu::layout::{Input, QuantizedRows, RowDots, RowSums};

pub(super) fn product(
    tiles: &PackedPlanes,
    i: usize,
    row_tile: usize,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    generic::product(Scalar, tiles, i, row_tile, x, sums);
}

pub(super) fn transposed(tiles: &PackedPlanes, block: Block, g: Input, acc: &mut [f32]) {
    generic::transposed::<Scalar>(tiles, block, g, acc);
}

impl DotTile for Scalar {
    const BYTE_BIAS: i32 = 0;

    fn dot_tile(self, tile: Tile, x: Digits, dots: &mut [RowDots]) -> usize {
        dispatch!(tile.planes, x.count, dot(tile.lines, x, dots), [1])
    }
}

/// One digit.
fn dot<const PLANES: usize, const BATCH: usize>(lines: &[Line], x: Digits, dots: &mut [RowDots]) -> usize {
    let mut sums = [0; TILE_ROWS];
    for (lines, values) in lines.chunks_exact(PLANES).zip(x.values.chunks(TILE_COLS)) {
        let codes = unpack(lines, PLANES as u8);
        for group in 0..QUADS {
            for (n, code) in codes[group].iter().enumerate() {
                sums[n / QUAD] += i32::from(*code) * i32::from(values[group * QUAD + n % QUAD]);
            }
        }
    }
    dots[0].0 = sums;
    BATCH
}
