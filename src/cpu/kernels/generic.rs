//! Loops that the compiler vectorises well enough by itself. `FMA` says whether a fused multiply-add is one
//! instruction (else it is a call).

use super::Input;
use crate::codec::Block;
use crate::codec::term::Sparse;
use crate::cpu::tiles::{PlaneTiles, TILE_ROWS, row_tiles};

/// The largest block edge.
const EDGE: usize = 256;
/// Vectors whose elements are brought side by side for a sparse term.
const LANES: usize = 16;

#[inline(always)]
fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Sixteen rows at a time: unpack them once, add multiples of them for each vector.
#[inline(always)]
pub(super) fn planes_transposed<const FMA: bool>(
    tiles: &PlaneTiles,
    block: Block,
    g: Input,
    acc: &mut [f32],
) {
    let mut coefficients = [0f32; TILE_ROWS * EDGE];
    for row_tile in 0..row_tiles(block) {
        let first = row_tile * TILE_ROWS;
        let rows = TILE_ROWS.min(block.height - first);
        let coefficients = &mut coefficients[..rows * block.width];
        coefficients.fill(0.0);
        tiles.add_row_tile(block, row_tile, coefficients);
        for (vector, acc) in acc.chunks_exact_mut(block.width).enumerate() {
            let g = &g.vector(vector, block.height)[first..first + rows];
            for (g, row) in g.iter().zip(coefficients.chunks_exact(block.width)) {
                for (acc, coefficient) in acc.iter_mut().zip(row) {
                    *acc = multiply_add::<FMA>(*g, *coefficient, *acc);
                }
            }
        }
    }
}

/// One vector: each entry once. More: tiles of sixteen vectors in lanes, so that each entry is unpacked once for
/// all of them and its multiply-add is a register's.
#[inline(always)]
pub(super) fn sparse<const FMA: bool>(
    term: &Sparse,
    block: Block,
    input: Input,
    acc: &mut [f32],
    transposed: bool,
) {
    let (in_len, out_len) =
        if transposed { (block.height, block.width) } else { (block.width, block.height) };
    let place = |row, col| if transposed { (col, row) } else { (row, col) };
    if input.vectors == 1 {
        let x = input.vector(0, in_len);
        term.for_each(block, 0..block.height, |row, col, value| {
            let (to, from) = place(row, col);
            acc[to] = multiply_add::<FMA>(value, x[from], acc[to]);
        });
        return;
    }
    let mut x = [[0f32; LANES]; EDGE];
    let mut sums = [[0f32; LANES]; EDGE];
    for first in (0..input.vectors).step_by(LANES) {
        let vectors = LANES.min(input.vectors - first);
        for lane in 0..vectors {
            for (x, value) in x.iter_mut().zip(input.vector(first + lane, in_len)) {
                x[lane] = *value;
            }
        }
        sums[..out_len].fill([0.0; LANES]);
        term.for_each(block, 0..block.height, |row, col, value| {
            let (to, from) = place(row, col);
            for lane in 0..LANES {
                sums[to][lane] = multiply_add::<FMA>(value, x[from][lane], sums[to][lane]);
            }
        });
        for lane in 0..vectors {
            let acc = &mut acc[(first + lane) * out_len..][..out_len];
            acc.iter_mut().zip(&sums).for_each(|(acc, sums)| *acc += sums[lane]);
        }
    }
}

/// `out[b][a] = in[a][b]` of 16x16 elements.
#[inline(always)]
pub(super) fn transpose(from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize) {
    for a in 0..LANES {
        let row = &from[a * from_stride..][..LANES];
        for (b, value) in row.iter().enumerate() {
            to[b * to_stride + a] = *value;
        }
    }
}
