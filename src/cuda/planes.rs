//! The planes term on the device: scale groups whose fields are the codes.

use super::groups::{DeviceGroups, Own};
use super::lay_out::Source;
use super::machine::{Machine, Module};
use crate::error::Result;
use rbe_core::codec::Layout;
use rbe_core::codec::term::Planes;
use rbe_core::codec::term::planes::ScaleGroup;
use rbe_core::codec::term::trellis::GROUP_COLS;

/// Lays the term out.
pub(super) fn upload<M>(
    machine: &impl Machine<Memory = M>,
    layout: Layout,
    term: &Planes,
) -> Result<DeviceGroups<M>> {
    let by_rows = term.group() == ScaleGroup::Row;
    let row_scales = if by_rows { Some(machine.upload(&row_scales(layout, term))?) } else { None };
    let unit = 0.5 * term.unit();
    let own = Own {
        module: Module::Planes,
        values: None,
        tiles: "tiles",
        tiles_beside: false,
        tile_blocks: 2,
        has_few_exact: true,
        broad_passes: 4,
        reads_on: false,
        row_scales,
        unit,
    };
    DeviceGroups::new(machine, layout, own, |held, place, fields| {
        let block = layout.block_with(place.row, place.col);
        let codes = held.of(block, |codes| term.codes(block, codes));
        fields.fill(0);
        for (col, fields) in fields.chunks_exact_mut(fields.len() / GROUP_COLS).enumerate().take(place.width)
        {
            let first = place.col - block.col + col;
            let column = codes[first..].iter().step_by(block.width);
            fields.iter_mut().zip(column).for_each(|(field, code)| *field = *code);
        }
        // A coefficient is half the scale times an odd integer.
        let scale = if by_rows { 1.0 } else { 0.5 * term.scale(block, 0) };
        Source { bits: term.planes(block), scale, number: 0 }
    })
}

/// `(block columns, rows)` F16 scales.
fn row_scales(layout: Layout, term: &Planes) -> Vec<u8> {
    let scale = |i: usize, j: usize, row: usize| {
        let block = layout.block_at(i, j);
        half::f16::from_f32(term.scale(block, row - block.row) / term.unit())
    };
    (0..layout.block_cols())
        .flat_map(|j| (0..layout.rows()).map(move |row| (j, row)))
        .flat_map(|(j, row)| scale(layout.row_cut().block_of(row), j, row).to_le_bytes())
        .collect()
}
