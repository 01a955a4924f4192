//! Products of planes.

use super::isa::Simd128;
use crate::cpu::kernels::generic::dot;
use crate::cpu::kernels::generic::planes::{self as generic, Digits, DotTile, Tile};
use crate::cpu::kernels::unroll::dispatch;
use crate::cpu::layout::planes::{Line, PackedPlanes};
use crate::cpu::layout::{QuantizedRows, RowDots, RowSums};

pub(super) fn product(
    tiles: &PackedPlanes,
    i: usize,
    row_tile: usize,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    generic::product(Simd128, tiles, i, row_tile, x, sums);
}

impl DotTile for Simd128 {
    const BYTE_BIAS: i32 = 0;

    /// Up to four digits.
    #[inline(always)]
    fn dot_tile(self, tile: Tile, x: Digits, dots: &mut [RowDots]) -> usize {
        dispatch!(tile.planes, x.count, dot_digits(tile.lines, x, dots), [4, 2, 1])
    }
}

fn dot_digits<const PLANES: usize, const BATCH: usize>(
    lines: &[Line],
    x: Digits,
    dots: &mut [RowDots],
) -> usize {
    dot::dot::<_, PLANES, BATCH>(Simd128, lines, x, dots)
}
