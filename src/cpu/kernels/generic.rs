//! Loops that the compiler vectorises well enough by itself. `FMA` says whether a fused multiply-add is one
//! instruction (else it is a call).

use super::{EDGE, Input, LaneInput, Place};
use crate::codec::Block;
use crate::codec::term::Sparse;
use crate::cpu::tiles::{PlaneTiles, TILE_ROWS, row_tiles};
use crate::cpu::transform::{LANES, Lanes};

#[inline(always)]
pub(super) fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
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

/// Vector by vector. (Sixteen in the lanes of a register take longer: the loop over them is too large for the compiler to
/// put into each format's walk, and outside of it there is no fused multiply-add.)
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
    for (vector, acc) in acc.chunks_exact_mut(out_len).enumerate() {
        let x = input.vector(vector, in_len);
        term.for_each(block, 0..block.height, |row, col, value| {
            let (to, from) = if transposed { (col, row) } else { (row, col) };
            acc[to] = multiply_add::<FMA>(value, x[from], acc[to]);
        });
    }
}

/// `acc[to] += value * x[from]` for every place and lane; `acc` holds groups `stride` apart.
#[inline(always)]
pub(super) fn scatter<const FMA: bool>(
    places: &[Place],
    values: &[f32],
    x: LaneInput,
    acc: &mut [Lanes],
    stride: usize,
) {
    for (place, value) in places.iter().zip(values) {
        for group in 0..x.groups {
            let x = &x.lanes[group * x.stride + usize::from(place.from)];
            let acc = &mut acc[group * stride + usize::from(place.to)];
            for lane in 0..LANES {
                acc.0[lane] = multiply_add::<FMA>(*value, x.0[lane], acc.0[lane]);
            }
        }
    }
}

/// `sums[n] += sum over all lanes of a[to] * b[from]` for every place.
#[inline(always)]
pub(super) fn correlate<const FMA: bool>(places: &[Place], a: LaneInput, b: LaneInput, sums: &mut [f32]) {
    for (place, sum) in places.iter().zip(sums) {
        let mut lanes = [0f32; LANES];
        for group in 0..a.groups {
            let a = &a.lanes[group * a.stride + usize::from(place.to)];
            let b = &b.lanes[group * b.stride + usize::from(place.from)];
            for (lane, (a, b)) in lanes.iter_mut().zip(a.0.iter().zip(&b.0)) {
                *lane = multiply_add::<FMA>(*a, *b, *lane);
            }
        }
        *sum += lanes.iter().sum::<f32>();
    }
}

/// Sixteen elements of each of sixteen rows to lanes.
#[inline(always)]
pub(super) fn rows_to_lanes(rows: &[f32], stride: usize, lanes: &mut [Lanes; LANES]) {
    for (lane, row) in rows.chunks(stride).take(LANES).enumerate() {
        for (lanes, value) in lanes.iter_mut().zip(&row[..LANES]) {
            lanes.0[lane] = *value;
        }
    }
}

/// Lanes back to rows.
#[inline(always)]
pub(super) fn lanes_to_rows(lanes: &[Lanes; LANES], rows: &mut [f32], stride: usize) {
    for (lane, row) in rows.chunks_mut(stride).take(LANES).enumerate() {
        for (lanes, value) in lanes.iter().zip(&mut row[..LANES]) {
            *value = lanes.0[lane];
        }
    }
}

/// The largest magnitude; NaN where an element is not finite, so that the product shows it.
#[inline(always)]
pub(super) fn largest(x: &[f32]) -> f32 {
    let (mut largest, mut poison) = ([0f32; LANES], [0f32; LANES]);
    for chunk in x.chunks(LANES) {
        for (lane, value) in chunk.iter().enumerate() {
            largest[lane] = if value.abs() > largest[lane] { value.abs() } else { largest[lane] };
            poison[lane] += value * 0.0;
        }
    }
    largest.into_iter().fold(0.0, f32::max) + poison.into_iter().sum::<f32>()
}

/// Takes the digit `round(x / scale)` of every element away from it.
///
/// Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits (`|x / scale|`
/// is below 2^22). A scale of zero, or one that is not finite, gives zeros.
#[inline(always)]
pub(super) fn take_digit(x: &mut [f32], scale: f32, digits: &mut [i8]) {
    const TO_INTEGER: f32 = (3 << 22) as f32;
    let inverse = scale.recip();
    if !inverse.is_finite() || inverse == 0.0 {
        digits.fill(0);
        return;
    }
    for (digit, x) in digits.iter_mut().zip(x) {
        let shifted = *x * inverse + TO_INTEGER;
        let integer = shifted.to_bits().wrapping_sub(TO_INTEGER.to_bits());
        *digit = (integer as u8).cast_signed();
        *x -= (shifted - TO_INTEGER) * scale;
    }
}
