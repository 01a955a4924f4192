//! The trellis term on the device: scale groups whose fields are each row's own bits.

use super::axis::floats;
use super::groups::{DeviceGroups, Own, Source};
use super::machine::{Machine, Module};
use crate::error::Result;
use rbe_core::codec::Layout;
use rbe_core::codec::term::Trellis;
use rbe_core::codec::term::trellis::{COARSE_MAGNITUDES, FINE_MAGNITUDES, GROUP_COLS};

/// Lays the term out.
pub(super) fn upload<M>(
    machine: &impl Machine<Memory = M>,
    layout: Layout,
    term: &Trellis,
) -> Result<DeviceGroups<M>> {
    let values = Some((machine.upload(&floats(magnitudes()))?, magnitudes().count()));
    let own = Own { module: Module::Trellis, values, row_scales: None, unit: 0.0 };
    DeviceGroups::new(machine, layout, own, |_, place, fields| {
        let block = layout.block_with(place.row, place.col);
        let mut source = Source::default();
        fields.fill(0);
        for (col, fields) in fields.chunks_exact_mut(fields.len() / GROUP_COLS).enumerate().take(place.width)
        {
            let Some((column, scale)) = term.column(block, place.col - block.col + col) else { break };
            let code = column.code();
            let [a, b, c] = code.shifts();
            let number = u32::from_le_bytes([32 - code.state_bits(), a, b, c]);
            source = Source { bits: code.bits(), scale, number };
            // Below the block the cycle goes on from its beginning.
            for (row, field) in fields.iter_mut().enumerate() {
                *field = (column.state(row % place.height) & ((1 << code.bits()) - 1)) as u8;
            }
        }
        source
    })
}

/// The kernels' tables: the magnitudes of up to two bits, then those of more.
fn magnitudes() -> impl Iterator<Item = f32> {
    COARSE_MAGNITUDES.iter().chain(&FINE_MAGNITUDES).map(|magnitude| f32::from(*magnitude))
}
