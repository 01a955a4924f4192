//! Products with planes: the macro-kernel over a block row, and the transposed product.

use super::columns::{COLUMN_SUMS_MAX_BATCH, add_column_sums, add_rows};
use crate::codec::Block;
use crate::cpu::kernels::isa::Isa;
use crate::cpu::layout::planes::{
    Line, PackedPlanes, QUAD, QUADS, RowTile, TILE_COLS, TILE_ROWS, row_tiles, unpack,
};
use crate::cpu::layout::{EDGE, FINER, Input, QuantizedRows, RowDots, RowSums};

/// The most digits that a micro-kernel takes.
pub(in crate::cpu) const MAX_DIGITS: usize = 16;

/// A row tile of a block: `planes` lines for each of its tiles.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Tile<'a> {
    pub lines: &'a [Line],
    pub planes: u8,
}

/// Int8 digits of a batch, from the first column of a row tile on.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Digits<'a> {
    pub values: &'a [i8],
    /// Bytes from one digit to the next.
    pub stride: usize,
    pub count: usize,
}

impl Digits<'_> {
    /// Those from the given one on.
    #[inline(always)]
    pub(in crate::cpu) fn from(self, digit: usize) -> Self {
        Self { values: &self.values[digit * self.stride..], count: self.count - digit, ..self }
    }
}

/// A level's integer products.
pub(in crate::cpu) trait DotTile: Isa {
    /// What the micro-kernel takes away from codes of eight bits: 128 where it multiplies signed bytes, else 0.
    const BYTE_BIAS: i32;

    /// The micro-kernel: integer products of a row tile with as many of the digits as it takes at once, at most
    /// [`MAX_DIGITS`]; it says how many.
    fn dot_tile(self, tile: Tile, x: Digits, dots: &mut [RowDots]) -> usize;
}

/// The macro-kernel, block by block: integer products, then one multiple of them.
#[inline(always)]
pub(in crate::cpu) fn product<I: DotTile>(
    isa: I,
    tiles: &PackedPlanes,
    i: usize,
    row_tile: usize,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    let mut dots = [RowDots::ZERO; MAX_DIGITS];
    let all = 0..tiles.layout().block_cols();
    for RowTile { planes, j, lines, half_steps } in tiles.row_tiles_across(i, row_tile, all) {
        if planes == 0 {
            continue;
        }
        let (tile, half_steps) = (Tile { lines, planes }, half_steps.values());
        let offset = 1 - (1i32 << planes) + if planes == 8 { 2 * I::BYTE_BIAS } else { 0 };
        let all = Digits { values: x.values(0, j, 0), stride: x.stride(), count: x.slices() };
        for first in (0..x.slices()).step_by(MAX_DIGITS) {
            // A multiple of two, so that no two slices of a vector are parted.
            let count = MAX_DIGITS.min(x.slices() - first);
            let mut taken = 0;
            while taken < count {
                let digits = Digits { count: count - taken, ..all.from(first + taken) };
                taken += isa.dot_tile(tile, digits, &mut dots[taken..]);
            }
            let dots = &dots[..count];
            if x.slices_per_row() == 2 {
                for (dots, vector) in dots.as_chunks::<2>().0.iter().zip(first / 2..) {
                    let (scale, bias) =
                        (x.scale(2 * vector + 1, j), offset.wrapping_mul(x.sum_of_two(vector, j)));
                    add_levels(&joined(dots), bias, scale, &half_steps, &mut sums[vector]);
                }
                continue;
            }
            for (dots, digit) in dots.iter().zip(first..) {
                let (scale, bias) = (x.scale(digit, j), offset * x.sum(digit, j));
                add_levels(dots, bias, scale, &half_steps, &mut sums[digit / x.slices_per_row()]);
            }
        }
    }
}

/// The products with the integers that two slices are: at most `256 * 255 * (127 * 254 + 127)`, which 32 bits hold.
#[inline(always)]
pub(in crate::cpu) fn joined([coarse, fine]: &[RowDots; 2]) -> RowDots {
    let mut dots = RowDots::ZERO;
    for ((dot, coarse), fine) in dots.0.iter_mut().zip(&coarse.0).zip(&fine.0) {
        *dot = coarse.wrapping_mul(FINER).wrapping_add(*fine);
    }
    dots
}

/// Adds multiples of half steps: twice the products of codes and what their offset adds. The sum of both is at most as large as
/// [`joined`] products, so that it is right where either has left 32 bits.
#[inline(always)]
fn add_levels(dots: &RowDots, bias: i32, scale: f32, half_steps: &[f32; TILE_ROWS], sums: &mut RowSums) {
    for ((sum, dot), half_step) in sums.0.iter_mut().zip(&dots.0).zip(half_steps) {
        *sum += dot.wrapping_mul(2).wrapping_add(bias) as f32 * (half_step * scale);
    }
}

/// `acc += S' g` for one block.
#[inline(always)]
pub(in crate::cpu) fn transposed<I: Isa>(tiles: &PackedPlanes, block: Block, g: Input, acc: &mut [f32]) {
    let planes = tiles.planes(block);
    if planes == 0 {
        return;
    }
    if acc.len() > COLUMN_SUMS_MAX_BATCH * block.width {
        transposed_by_rows::<I>(tiles, block, g, acc);
        return;
    }
    let bias = (1i32 << planes) - 1;
    for (vector, acc) in acc.chunks_exact_mut(block.width).enumerate() {
        let g = g.vector(vector, block.height);
        let mut sums = [[[0f32; 64]; QUADS]; EDGE / TILE_COLS];
        for (row_tile, g) in g.chunks(TILE_ROWS).enumerate() {
            let half_steps = tiles.half_steps(block, row_tile).values();
            let mut weights = [0f32; 64];
            for (lane, g) in g.iter().enumerate() {
                weights[lane * QUAD..][..QUAD].fill(g * half_steps[lane]);
            }
            let lines = tiles.row_tile(block, row_tile).chunks_exact(planes.into());
            for (lines, sums) in lines.zip(&mut sums) {
                let codes = unpack(lines, planes);
                add_rows::<I>(codes.iter(), 2, bias, &weights, sums);
            }
        }
        for (sums, acc) in sums.iter().zip(acc.chunks_mut(TILE_COLS)) {
            add_column_sums(sums, 1.0, acc);
        }
    }
}

/// Sixteen rows at a time: unpack them once, add multiples of them for each vector.
#[inline(always)]
fn transposed_by_rows<I: Isa>(tiles: &PackedPlanes, block: Block, g: Input, acc: &mut [f32]) {
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
                    *acc = I::multiply_add(*g, *coefficient, *acc);
                }
            }
        }
    }
}
