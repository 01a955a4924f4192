//! Loops that the compiler vectorises well enough by itself. `FMA` says whether a fused multiply-add is one
//! instruction (else it is a call).

use super::{EDGE, Input, LaneInput, Place};
use crate::codec::Block;
use crate::cpu::layout::planes::{PackedPlanes, QUAD, QUADS, TILE_COLS, TILE_ROWS, row_tiles, unpack};
use crate::cpu::layout::sparse::{CHUNK_ROWS, PackedSparse};
use crate::cpu::spmm::SortedEntries;
use crate::cpu::transform::{LANES, Lanes};

/// Slots of a chunk that are unpacked together.
const SLOTS_AT_ONCE: usize = 8;

#[inline(always)]
pub(super) fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Vectors up to which a transposed product sums columns in the order of the codes; more share rows of coefficients.
pub(super) const FEW_VECTORS: usize = 4;

/// Sums over the rows of a column tile, before the sixteen lanes of each column are added up: as a tile's lines have them,
/// four columns in each lane.
pub(super) type ColumnSums = [[f32; 64]; QUADS];

/// Adds sixteen rows' codes, each less `bias` and times its row's weight; `weights` has each four times, for its columns.
#[inline(always)]
pub(super) fn add_rows<'a, const FMA: bool>(
    codes: impl Iterator<Item = &'a [u8; 64]>,
    scale: i32,
    bias: i32,
    weights: &[f32; 64],
    sums: &mut ColumnSums,
) {
    for (codes, sums) in codes.zip(sums) {
        for n in 0..64 {
            sums[n] = multiply_add::<FMA>(weights[n], (scale * i32::from(codes[n]) - bias) as f32, sums[n]);
        }
    }
}

/// The sums of columns, added to `out`.
#[inline(always)]
pub(super) fn add_column_sums(sums: &ColumnSums, factor: f32, out: &mut [f32]) {
    for (sums, out) in sums.iter().zip(out.chunks_mut(QUAD)) {
        let mut columns = [0f32; QUAD];
        for lane in 0..TILE_ROWS {
            for column in 0..QUAD {
                columns[column] += sums[lane * QUAD + column];
            }
        }
        out.iter_mut().zip(columns).for_each(|(out, sum)| *out += sum * factor);
    }
}

/// `acc += S' g` for one block.
#[inline(always)]
pub(super) fn planes_transposed<const FMA: bool>(
    tiles: &PackedPlanes,
    block: Block,
    g: Input,
    acc: &mut [f32],
) {
    let planes = tiles.planes(block);
    if planes == 0 {
        return;
    }
    if acc.len() > FEW_VECTORS * block.width {
        planes_transposed_by_rows::<FMA>(tiles, block, g, acc);
        return;
    }
    let bias = (1i32 << planes) - 1;
    for (vector, acc) in acc.chunks_exact_mut(block.width).enumerate() {
        let g = g.vector(vector, block.height);
        let mut sums = [[[0f32; 64]; QUADS]; EDGE / TILE_COLS];
        for (row_tile, g) in g.chunks(TILE_ROWS).enumerate() {
            let half_steps = tiles.half_steps(block, row_tile);
            let mut weights = [0f32; 64];
            for (lane, g) in g.iter().enumerate() {
                weights[lane * QUAD..][..QUAD].fill(g * half_steps[lane]);
            }
            let lines = tiles.row_tile(block, row_tile).chunks_exact(planes.into());
            for (lines, sums) in lines.zip(&mut sums) {
                let codes = unpack(lines, planes);
                add_rows::<FMA>(codes.iter(), 2, bias, &weights, sums);
            }
        }
        for (sums, acc) in sums.iter().zip(acc.chunks_mut(TILE_COLS)) {
            add_column_sums(sums, 1.0, acc);
        }
    }
}

/// Sixteen rows at a time: unpack them once, add multiples of them for each vector.
#[inline(always)]
fn planes_transposed_by_rows<const FMA: bool>(tiles: &PackedPlanes, block: Block, g: Input, acc: &mut [f32]) {
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

/// `acc += S x` for one block, or `acc += S' g` when transposed: a few entries unpacked at a time, then vector by vector.
#[inline(always)]
pub(super) fn sparse<const FMA: bool, const TRANSPOSED: bool>(
    term: &PackedSparse,
    block: Block,
    input: Input,
    acc: &mut [f32],
) {
    let (in_len, out_len) =
        if TRANSPOSED { (block.height, block.width) } else { (block.width, block.height) };
    let (format, scale) = (term.format(), term.scale(block));
    let mut entries = [(Place { to: 0, from: 0 }, 0f32); SLOTS_AT_ONCE * CHUNK_ROWS];
    for chunk in term.chunks(block) {
        let (mut cols, mut fields) = (chunk.cols, chunk.fields);
        for masks in chunk.masks.chunks(SLOTS_AT_ONCE) {
            let mut count = 0;
            for mask in masks {
                let mut mask = *mask;
                while mask != 0 {
                    let row = chunk.row as u8 + mask.trailing_zeros() as u8;
                    let place = Place::new(row, cols[count], TRANSPOSED);
                    entries[count] = (place, format.value(fields[count], scale));
                    count += 1;
                    mask &= mask - 1;
                }
            }
            (cols, fields) = (&cols[count..], &fields[count..]);
            for (vector, acc) in acc.chunks_exact_mut(out_len).enumerate() {
                let x = input.vector(vector, in_len);
                for (Place { to, from }, value) in &entries[..count] {
                    let acc = &mut acc[usize::from(*to)];
                    *acc = multiply_add::<FMA>(*value, x[usize::from(*from)], *acc);
                }
            }
        }
    }
}

/// `acc[to] += sum of value * x[from]` over the entries that go there, in every lane; `acc` holds groups `stride` apart.
#[inline(always)]
pub(super) fn spmm<const FMA: bool>(entries: &SortedEntries, x: LaneInput, acc: &mut [Lanes], stride: usize) {
    let mut group = 0;
    while group < x.groups {
        let (x_lanes, acc) = (&x.lanes[group * x.stride..], &mut acc[group * stride..]);
        group += match x.groups - group {
            4.. => some_groups::<FMA, 4>(entries, x_lanes, x.stride, acc, stride),
            2.. => some_groups::<FMA, 2>(entries, x_lanes, x.stride, acc, stride),
            _ => some_groups::<FMA, 1>(entries, x_lanes, x.stride, acc, stride),
        };
    }
}

/// `COUNT` groups, whose sums stay in registers from one entry to the next; how many they were.
#[inline(always)]
fn some_groups<const FMA: bool, const COUNT: usize>(
    entries: &SortedEntries,
    x: &[Lanes],
    x_stride: usize,
    acc: &mut [Lanes],
    stride: usize,
) -> usize {
    for (to, entries) in entries.by_target() {
        let mut sums = [Lanes::ZERO; COUNT];
        for group in 0..COUNT {
            sums[group] = acc[group * stride + to];
        }
        for (from, value) in entries {
            for group in 0..COUNT {
                let x = &x[group * x_stride + *from as usize];
                for lane in 0..LANES {
                    sums[group].0[lane] = multiply_add::<FMA>(*value, x.0[lane], sums[group].0[lane]);
                }
            }
        }
        for group in 0..COUNT {
            acc[group * stride + to] = sums[group];
        }
    }
    COUNT
}

/// `sums[n] += sum over all lanes of a[to] * b[from]` for every place.
#[inline(always)]
pub(super) fn sddmm<const FMA: bool>(places: &[Place], a: LaneInput, b: LaneInput, sums: &mut [f32]) {
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

/// Takes the slice `round(x / scale)` of every element away from it.
///
/// Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits (`|x / scale|`
/// is below 2^22). A scale of zero, or one that is not finite, gives zeros.
#[inline(always)]
pub(super) fn quantize_slice(x: &mut [f32], scale: f32, slices: &mut [i8]) {
    const TO_INTEGER: f32 = (3 << 22) as f32;
    let inverse = scale.recip();
    if !inverse.is_finite() || inverse == 0.0 {
        slices.fill(0);
        return;
    }
    for (slice, x) in slices.iter_mut().zip(x) {
        let shifted = *x * inverse + TO_INTEGER;
        let integer = shifted.to_bits().wrapping_sub(TO_INTEGER.to_bits());
        *slice = (integer as u8).cast_signed();
        *x -= (shifted - TO_INTEGER) * scale;
    }
}
