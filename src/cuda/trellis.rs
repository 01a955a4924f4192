//! The trellis term on the device: scale groups whose fields are each row's own bits.

use super::axis::words;
use super::blocks::WARP;
use super::groups::{DeviceGroups, Own};
use super::lay_out::Source;
use super::machine::{Machine, Module};
use crate::error::Result;
use half::f16;
use rbe_core::codec::Layout;
use rbe_core::codec::term::Trellis;
use rbe_core::codec::term::trellis::{Code, GROUP_COLS, STATE_BITS};

/// Lays the term out.
pub(super) fn upload<M>(
    machine: &impl Machine<Memory = M>,
    layout: Layout,
    term: &Trellis,
) -> Result<DeviceGroups<M>> {
    let values = Some((machine.upload(&table())?, (INDICES + COARSE_INDICES) * WARP));
    let is_short = term.state_bits() == *STATE_BITS.start();
    let (tiles, tile_blocks) = if is_short { ("short_tiles", 2) } else { ("tiles", 1) };
    let own = Own {
        module: Module::Trellis,
        values,
        tiles,
        tiles_beside: true,
        tile_blocks,
        row_scales: None,
        has_few_exact: false,
        broad_passes: 2,
        reads_on: true,
        unit: 0.0,
    };
    DeviceGroups::new(machine, layout, own, |_, place, fields| {
        let block = layout.block_with(place.row, place.col);
        let mut source = Source::default();
        fields.fill(0);
        for (col, fields) in fields.chunks_exact_mut(fields.len() / GROUP_COLS).enumerate().take(place.width)
        {
            let Some((column, scale)) = term.column(block, place.col - block.col + col) else { break };
            let code = column.code();
            source = Source { bits: code.bits(), scale, number: code.state_bits().into() };
            // Below the block the cycle goes on from its beginning.
            for (row, field) in fields.iter_mut().enumerate() {
                *field = (column.state(row % place.height) & ((1 << code.bits()) - 1)) as u8;
            }
        }
        source
    })
}

/// Indices of three bits a row and of four, and of fewer.
const INDICES: usize = 256;
const COARSE_INDICES: usize = 128;

/// A shift of the state to the right and four bits, those of it that count.
type Shift = (u32, u16);

/// The shifts whose sum modulo 2 is the number of a level, and those of an offset: `kernels/trellis.cu` has them too.
///
/// They come from a search over the bases that a level's number and an offset's may have, for the fewest shifts.
fn shifts(bits: u8) -> [&'static [Shift]; 2] {
    match bits {
        1 | 2 => {
            [&[(0, 15), (7, 14), (6, 12), (9, 7), (11, 14), (13, 7)], &[(4, 7), (6, 3), (11, 2), (15, 1)]]
        }
        3 => [&[(0, 15), (4, 12), (3, 8), (7, 7), (12, 15), (11, 14)], &[(3, 15), (8, 14), (14, 3), (15, 1)]],
        _ => [&[(0, 15), (6, 12), (9, 15), (11, 15), (14, 3)], &[(4, 15), (11, 14)]],
    }
}

/// The kernels' index of a state of sixteen bits.
fn index(bits: u8, state: u16) -> usize {
    let [level, offset] = shifts(bits).map(|shifts| {
        shifts.iter().fold(0, |sum, (shift, mask)| sum ^ (state.checked_shr(*shift).unwrap_or(0) & mask))
    });
    usize::from(level | offset << 4)
}

/// The value of each index of the kernels.
fn values(bits: u8) -> [f32; INDICES] {
    let code = Code::new(bits, *STATE_BITS.end());
    let mut values = [0.0; INDICES];
    for state in 0..=u16::MAX {
        values[index(bits, state)] = f32::from(code.value(state));
    }
    values
}

/// The kernels' table: words of two numbers in half precision, the value with four bits above that with three, and then words of that with
/// one or two.
fn table() -> Vec<u8> {
    let [coarse, three, four] = [2, 3, 4].map(values);
    // Small integers are exact in half precision.
    let half = |value: f32| u32::from(f16::from_f32(value).to_bits());
    let fine = four.into_iter().zip(three).map(|(four, three)| half(four) << 16 | half(three));
    words(fine.chain(coarse[..COARSE_INDICES].iter().map(|value| half(*value) << 16)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shifts_say_all_of_a_states_value() {
        for bits in 1..=4 {
            let values = values(bits);
            for state_bits in STATE_BITS {
                let code = Code::new(bits, state_bits);
                for state in 0..=u16::MAX >> (16 - state_bits) {
                    let value = values[index(bits, state)];
                    assert_eq!(value, f32::from(code.value(state)), "{code:?} {state:x}");
                    assert_eq!(f16::from_f32(value).to_f32(), value, "{code:?} {state:x}");
                }
            }
        }
    }
}
