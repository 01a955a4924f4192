//! Integer products in plain Rust.

use super::Scalar;
use crate::cpu::kernels::generic::planes::{Digits, DotTile, Tile};
use crate::cpu::layout::RowDots;
use crate::cpu::layout::planes::{GROUP, GROUPS, TILE_COLS, TILE_ROWS, unpack};

impl DotTile for Scalar {
    const BYTE_BIAS: i32 = 0;

    /// One digit.
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
