//! A trellis term's columns, unpacked once for all vectors: as lines of 8-bit codes for the integer products (see
//! [`walk`](super::walk)), as floats for the transposed product.

use super::generic::dot;
use super::{EDGE, Input};
use crate::codec::Block;
use crate::codec::term::Trellis;
use crate::codec::term::trellis::{Column, MAX_BITS, STRIP, VALUES};
use crate::cpu::tiles::{GROUP, Line, TILE_ROWS};

/// Rows whose bits are whole bytes, whatever `k` is.
const ROWS_AT_ONCE: usize = 8;
/// The longest column, and what is read beyond: the bits of its first rows again and the rest of a load.
const STREAM_BYTES: usize = EDGE * MAX_BITS as usize / 8 + 16;

/// The integer values of a column.
#[inline(always)]
fn unpack(column: &Column, values: &mut [i8]) {
    let bits = usize::from(column.code().bits());
    let mut stream = [0u8; STREAM_BYTES];
    stream[..column.bytes().len()].copy_from_slice(column.bytes());
    // After the last bit the cycle begins again.
    let end = values.len() * bits;
    let again = u32::from(column.state(0)) << (end % 8);
    stream[end / 8..].iter_mut().zip(again.to_le_bytes()).for_each(|(byte, again)| *byte |= again);

    let multiplier = column.code().multiplier();
    for (n, values) in values.chunks_mut(ROWS_AT_ONCE).enumerate() {
        let mut word = [0; 8];
        word.copy_from_slice(&stream[n * bits..][..8]);
        let word = u64::from_le_bytes(word);
        for (row, value) in values.iter_mut().enumerate() {
            let state = (word >> (row * bits)) as u16;
            *value = VALUES[usize::from(state.wrapping_mul(multiplier) >> 8)];
        }
    }
}

/// `acc += S' g` for one block; `acc` is `vectors x width`.
#[inline(always)]
pub(super) fn transposed<const FMA: bool>(term: &Trellis, block: Block, g: Input, acc: &mut [f32]) {
    let (mut integers, mut values) = ([0i8; EDGE], [0f32; EDGE]);
    let (integers, values) = (&mut integers[..block.height], &mut values[..block.height]);
    for col in 0..block.width {
        let Some((column, scale)) = term.column(block, col) else { continue };
        unpack(&column, integers);
        values.iter_mut().zip(&*integers).for_each(|(value, integer)| *value = f32::from(*integer));
        for (vector, acc) in acc.chunks_exact_mut(block.width).enumerate() {
            acc[col] += scale * dot::<FMA>(values, g.vector(vector, block.height));
        }
    }
}

/// What is added to the values to make unsigned codes of them.
pub(super) const BIAS: i32 = 128;
/// Lines of the largest strip.
pub(super) const MAX_STRIP_LINES: usize = EDGE * STRIP / size_of::<Line>();
/// Rows whose tiles are filled together.
const TILED_ROWS: usize = 64;

/// Row tiles of a column, as [`tile_row`] counts them.
pub(in crate::cpu) fn strip_tiles(rows: usize) -> usize {
    rows.div_ceil(TILED_ROWS) * (TILED_ROWS / TILE_ROWS)
}

/// The row in a lane of a strip's tile: in the order in which interleaving the bytes of four registers of 64 rows
/// leaves them.
pub(in crate::cpu) fn tile_row(tile: usize, lane: usize) -> usize {
    tile / 4 * TILED_ROWS + lane / GROUP * TILE_ROWS + tile % 4 * GROUP + lane % GROUP
}

/// Four neighbouring columns as lines of codes: `lines[tile * stride]` for every tile.
#[inline(always)]
pub(super) fn decode_group(columns: [&Column; GROUP], rows: usize, lines: &mut [Line], stride: usize) {
    let mut values = [0i8; EDGE];
    for (n, column) in columns.into_iter().enumerate() {
        unpack(column, &mut values[..rows]);
        for tile in 0..strip_tiles(rows) {
            for lane in 0..TILE_ROWS {
                let value = values[tile_row(tile, lane)];
                lines[tile * stride].0[lane * GROUP + n] = value.cast_unsigned() ^ 0x80;
            }
        }
    }
}
