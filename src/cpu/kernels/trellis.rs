//! Products with a trellis term: column by column, each unpacked once for all vectors.

use super::generic::{dot, multiply_add};
use super::{EDGE, Input};
use crate::codec::Block;
use crate::codec::term::Trellis;
use crate::codec::term::trellis::{Column, MAX_BITS, VALUES};

/// Rows whose bits are whole bytes, whatever `k` is.
const ROWS_AT_ONCE: usize = 8;
/// The longest column, and what is read beyond: the bits of its first rows again and the rest of a load.
const STREAM_BYTES: usize = EDGE * MAX_BITS as usize / 8 + 16;

/// The integer values of a column's first rows.
#[inline(always)]
fn unpack(column: &Column, values: &mut [f32]) {
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
            *value = f32::from(VALUES[usize::from(state.wrapping_mul(multiplier) >> 8)]);
        }
    }
}

/// `acc += S x` for one block, `acc` being `vectors x height`, or with `S'` and `vectors x width`.
#[inline(always)]
pub(super) fn trellis<const FMA: bool>(
    term: &Trellis,
    block: Block,
    input: Input,
    acc: &mut [f32],
    transposed: bool,
) {
    let mut values = [0f32; EDGE];
    let values = &mut values[..block.height];
    for col in 0..block.width {
        let Some((column, scale)) = term.column(block, col) else { continue };
        unpack(&column, values);
        if transposed {
            for (vector, acc) in acc.chunks_exact_mut(block.width).enumerate() {
                acc[col] += scale * dot::<FMA>(values, input.vector(vector, block.height));
            }
        } else {
            for (vector, acc) in acc.chunks_exact_mut(block.height).enumerate() {
                let x = scale * input.vector(vector, block.width)[col];
                for (acc, value) in acc.iter_mut().zip(&*values) {
                    *acc = multiply_add::<FMA>(x, *value, *acc);
                }
            }
        }
    }
}
