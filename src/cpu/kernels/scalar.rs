//! Plain Rust: what every processor runs, and what the other levels are compared with.

mod level {
    use crate::cpu::activations::Activations;
    use crate::cpu::kernels::RowSums;
    use crate::cpu::tiles::{GROUP, GROUPS, TILE_COLS, TILE_ROWS, unpack};
    use std::ops::Range;

    super::super::table!(fma: false);
    use generic::{lanes_to_rows, rows_to_lanes};

    /// Tile by tile and digit by digit: integer sums of a block's row tile, then one multiple of them.
    fn planes(
        tiles: &PlaneTiles,
        i: usize,
        row_tile: usize,
        x: &Activations,
        vectors: Range<usize>,
        sums: &mut [RowSums],
    ) {
        let layout = tiles.layout();
        let blocks = layout.block_cols();
        for j in 0..blocks {
            let block = layout.block_at(i, j);
            let planes = tiles.planes(block);
            if planes == 0 {
                continue;
            }
            let (lines, steps) = (tiles.row_tile(block, row_tile), tiles.steps(block, row_tile));
            let offset = 1 - (1i32 << planes);
            for (vector, sums) in vectors.clone().zip(sums.iter_mut()) {
                for digit in vector * x.digits..(vector + 1) * x.digits {
                    let digits = &x.values[digit * x.stride + x.starts[j]..];
                    let mut dots = [0i32; TILE_ROWS];
                    for (tile, digits) in
                        lines.chunks_exact(usize::from(planes)).zip(digits.chunks(TILE_COLS))
                    {
                        let codes = unpack(tile, planes);
                        for group in 0..GROUPS {
                            for (n, code) in codes[group].iter().enumerate() {
                                dots[n / GROUP] +=
                                    i32::from(*code) * i32::from(digits[group * GROUP + n % GROUP]);
                            }
                        }
                    }
                    let (scale, sum) = (x.scales[digit * blocks + j], x.sums[digit * blocks + j]);
                    for lane in 0..TILE_ROWS {
                        let level_sum = (2 * dots[lane] + offset * sum) as f32;
                        sums[lane] += level_sum * (0.5 * steps[lane] * scale);
                    }
                }
            }
        }
    }
}

pub(super) use level::TABLE;
