use super::*;
use crate::codec::term::trellis::QuantizedGroup;
use half::f16;

impl PackedGroup<'_> {
    /// Byte `byte` of a period of a column; those after a period's last are the first of the next.
    fn byte(&self, col: usize, period: usize, byte: usize) -> u8 {
        let (packing, own) = (self.packing, 2 * usize::from(self.code.bits()));
        let (group, member) = (col / QUAD, col % QUAD);
        let (line, period) = if byte >= own && packing.is_full() {
            (byte - own, packing.next_lane(period))
        } else {
            (byte, period)
        };
        let bundle = group / packing.groups() * packing.bundle_lines(self.code.bits());
        self.lines[bundle + line].0[QUAD * (group % packing.groups() * packing.lanes + period) + member]
    }

    /// Sixteen bits from a row's own on; the state is the first of them.
    fn state(&self, row: usize, col: usize) -> u16 {
        let at = row % PERIOD * usize::from(self.code.bits());
        let byte = |n| u32::from(self.byte(col, row / PERIOD, at / 8 + n)) << (8 * n);
        ((byte(0) | byte(1) | byte(2)) >> (at % 8)) as u16
    }
}

/// Scale groups with 1 to 4 bits and none in turn.
pub(in crate::cpu) fn term(layout: Layout) -> Trellis {
    let scale_groups: Vec<_> = scale_groups(layout)
        .map(|scale_group| {
            let bits = ((scale_group.index + 1) % 5) as u8;
            let codes = if bits == 0 { 0 } else { scale_group.len() };
            QuantizedGroup {
                bits,
                scale: f16::from_f32(0.1 + (scale_group.index % 7) as f32 / 9.0),
                codes: (0..codes).map(|n| (n * 89 + n / 3) as u8 & ((1 << bits) - 1)).collect(),
            }
        })
        .collect();
    Trellis::pack(layout, 12 + (layout.rows() % 5) as u8, 0.03125, &scale_groups)
}

#[test]
fn every_state_is_where_it_should_be() {
    for edge in [32, 64, 128, 256] {
        for (rows, cols) in [(1, 200), (2, 31), (5, 64), (16, 33), (40, 1), (129, 300), (256, 260), (512, 64)]
        {
            let layout = Layout::new(rows, cols, edge).unwrap();
            let term = term(layout);
            let laid_out = PackedTrellis::new(&term);
            for block in layout.iter() {
                for (first, scale_group) in laid_out.block_groups(block) {
                    for col in 0..scale_group.width {
                        let (column, scale) = term.column(block, first + col).unwrap();
                        assert_eq!(scale, scale_group.scale);
                        for row in 0..block.height {
                            assert_eq!(
                                scale_group.state(row, col),
                                column.state(row),
                                "row {row} of {block:?}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn rows_of_all_tiles_are_all_rows() {
    for height in 1..=256 {
        let packing = Packing::new(height);
        let places = (0..packing.tiles()).flat_map(|t| (0..TILE_ROWS).map(move |lane| (t, lane)));
        let mut rows: Vec<_> = places.map(|(tile, lane)| packing.row(tile, lane)).collect();
        rows.sort();
        assert!(rows.iter().copied().eq(0..TILE_ROWS * packing.tiles()) && rows.len() >= height);
    }
}

#[test]
fn no_more_bytes_than_the_cycles_have() {
    let layout = Layout::new(256, 512, 256).unwrap();
    for bits in 1..=4u8 {
        let codes = vec![0; 256 * GROUP_COLS];
        let scale_group = QuantizedGroup { bits, scale: f16::ONE, codes };
        let term = Trellis::pack(layout, 12, 1.0, &vec![scale_group; 512 / GROUP_COLS]);
        let laid_out = PackedTrellis::new(&term);
        assert_eq!(size_of_val(&laid_out.lines[..]), 256 * 512 * usize::from(bits) / 8);
    }
}
