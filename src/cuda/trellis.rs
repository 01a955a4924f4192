//! The trellis term on the device: scale groups whose fields are each row's own bits.

use super::axis::{floats, words};
use super::groups::{DeviceGroups, Own, Source};
use super::machine::{Machine, Module};
use crate::error::Result;
use rbe_core::codec::Layout;
use rbe_core::codec::term::Trellis;
use rbe_core::codec::term::trellis::{Code, GROUP_COLS, STATE_BITS};

/// Lays the term out.
pub(super) fn upload<M>(
    machine: &impl Machine<Memory = M>,
    layout: Layout,
    term: &Trellis,
) -> Result<DeviceGroups<M>> {
    let values = Some((machine.upload(&tables())?, BOOKS.len() * BOOK_FLOATS));
    let own = Own { module: Module::Trellis, values, row_scales: None, unit: 0.0 };
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

/// Numbers of bits whose codes differ in their tables; one bit has those of two.
const BOOKS: [u8; 3] = [2, 3, 4];
/// Levels, how often the offset counts at each, and offsets.
const BOOK_FLOATS: usize = 3 * 16;

/// The kernels' tables, by [windows](rbe_core::codec::term::trellis::Windows): of each book the floats, and then of each what
/// windows change others to, four bits each: two tables for levels and two for offsets.
fn tables() -> Vec<u8> {
    let books = BOOKS.map(|bits| Code::new(bits, *STATE_BITS.end()).windows());
    let tables = books.iter().flat_map(|book| {
        let times = book.doubled.map(|doubled| if doubled { 2.0 } else { 1.0 });
        [book.levels.map(f32::from), times, book.offsets.map(f32::from)].into_iter().flatten()
    });
    let mixes = books.iter().flat_map(|book| book.mix_level.into_iter().chain(book.mix_offset));
    let nibbles = mixes.flat_map(|mix| {
        let word = |half: &[u8]| half.iter().rev().fold(0, |word, window| word << 4 | u32::from(*window));
        [word(&mix[..8]), word(&mix[8..])]
    });
    [floats(tables), words(nibbles)].concat()
}
