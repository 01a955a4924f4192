//! Sums over columns: what a transposed product of few vectors makes of codes.

use crate::cpu::kernels::isa::Isa;
use crate::cpu::layout::planes::{QUAD, QUADS, TILE_ROWS};

/// The largest batch whose transposed product sums columns in the order of the codes; a larger one shares rows of coefficients.
pub(in crate::cpu) const COLUMN_SUMS_MAX_BATCH: usize = 4;

/// Sums over the rows of a column tile, before the sixteen lanes of each column are added up: as a tile's lines have them,
/// four columns in each lane.
pub(in crate::cpu) type ColumnSums = [[f32; 64]; QUADS];

/// Adds sixteen rows' codes, each less `bias` and times its row's weight; `weights` has each four times, for its columns.
#[inline(always)]
pub(in crate::cpu) fn add_rows<'a, I: Isa>(
    codes: impl Iterator<Item = &'a [u8; 64]>,
    scale: i32,
    bias: i32,
    weights: &[f32; 64],
    sums: &mut ColumnSums,
) {
    for (codes, sums) in codes.zip(sums) {
        for n in 0..64 {
            sums[n] = I::multiply_add(weights[n], (scale * i32::from(codes[n]) - bias) as f32, sums[n]);
        }
    }
}

/// The sums of columns, added to `out`.
#[inline(always)]
pub(in crate::cpu) fn add_column_sums(sums: &ColumnSums, factor: f32, out: &mut [f32]) {
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
