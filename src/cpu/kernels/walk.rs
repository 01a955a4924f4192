//! The walks over a block row that all levels share. A level brings
//!
//! - `dot_row_tile(lines, planes, values, stride, left, dots)`: the integer products of one row tile's lines
//!   (see [`tiles`](crate::cpu::tiles)) with up to `left` digits, `stride` apart; it says how many it took;
//! - `decode_group(columns, rows, lines, stride)`: four columns of a trellis as lines of 8-bit codes (see
//!   [`trellis`](super::trellis));
//! - `MAX_VECTORS`, the most digits that `dot_row_tile` takes.

macro_rules! walks {
    ($($feature:literal)?) => {
        use crate::codec::term::trellis::STRIP;
        use crate::cpu::activations::Activations;
        use crate::cpu::kernels::{BIAS, MAX_STRIP_LINES, RowSums};
        use crate::cpu::tiles::{GROUPS, Line, TILE_ROWS};
        use std::ops::Range;

        /// Block by block: integer products, then one multiple of them.
        $(#[target_feature(enable = $feature)])?
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
            let digits = vectors.start * x.digits..vectors.end * x.digits;
            let mut dots = [[0; TILE_ROWS]; MAX_VECTORS];
            for j in 0..blocks {
                let block = layout.block_at(i, j);
                let planes = tiles.planes(block);
                if planes == 0 {
                    continue;
                }
                let (lines, steps) = (tiles.row_tile(block, row_tile), tiles.steps(block, row_tile));
                let offset = 1 - (1i32 << planes);
                let mut digit = digits.start;
                while digit < digits.end {
                    let values = &x.values[digit * x.stride + x.starts[j]..];
                    let left = digits.end - digit;
                    let taken = dot_row_tile(lines, planes, values, x.stride, left, &mut dots);
                    for (dots, digit) in dots[..taken].iter().zip(digit..) {
                        let (scale, sum) = (x.scales[digit * blocks + j], x.sums[digit * blocks + j]);
                        let sums = &mut sums[digit / x.digits - vectors.start];
                        for lane in 0..TILE_ROWS {
                            let level_sum = (2 * dots[lane] + offset * sum) as f32;
                            sums[lane] += level_sum * (0.5 * steps[lane] * scale);
                        }
                    }
                    digit += taken;
                }
            }
        }

        /// Strip by strip: decode it once into lines, then as planes of eight bits for all vectors.
        $(#[target_feature(enable = $feature)])?
        fn trellis(term: &Trellis, i: usize, x: &Activations, vectors: Range<usize>, sums: &mut [RowSums]) {
            let layout = term.layout();
            let blocks = layout.block_cols();
            let digits = vectors.start * x.digits..vectors.end * x.digits;
            let tiles = sums.len() / vectors.len();
            let mut dots = [[0; TILE_ROWS]; MAX_VECTORS];
            let mut lines = [Line([0; 64]); MAX_STRIP_LINES];
            for j in 0..blocks {
                let block = layout.block_at(i, j);
                for first in (0..block.width).step_by(STRIP) {
                    let Some((_, scale)) = term.column(block, first) else { continue };
                    let width = STRIP.min(block.width - first);
                    for group in 0..width.div_ceil(GROUP) {
                        // A group beyond the border repeats the last column; its activations are zero.
                        let column = |n: usize| (first + GROUP * group + n).min(block.width - 1);
                        let columns = std::array::from_fn(|n| term.column(block, column(n)));
                        if let [Some((a, _)), Some((b, _)), Some((c, _)), Some((d, _))] = columns {
                            decode_group([&a, &b, &c, &d], block.height, &mut lines[group..], GROUPS);
                        }
                    }
                    let mut digit = digits.start;
                    while digit < digits.end {
                        let values = &x.values[digit * x.stride + x.starts[j] + first..];
                        let left = digits.end - digit;
                        let mut taken = 0;
                        let mut biases = [0; MAX_VECTORS];
                        for (bias, values) in biases.iter_mut().zip(values.chunks(x.stride)).take(left) {
                            *bias = values[..STRIP].iter().map(|digit| i32::from(*digit)).sum::<i32>() * BIAS;
                        }
                        for tile in 0..tiles {
                            let lines = &lines[tile * GROUPS..(tile + 1) * GROUPS];
                            taken = dot_row_tile(lines, 8, values, x.stride, left, &mut dots);
                            for (n, dots) in dots[..taken].iter().enumerate() {
                                let factor = scale * x.scales[(digit + n) * blocks + j];
                                let vector = (digit + n) / x.digits - vectors.start;
                                let sums = &mut sums[vector * tiles + tile];
                                for lane in 0..TILE_ROWS {
                                    sums[lane] += (dots[lane] - biases[n]) as f32 * factor;
                                }
                            }
                        }
                        digit += taken;
                    }
                }
            }
        }
    };
}
pub(super) use walks;
