//! The trellis term laid out for decoding: four columns side by side in the bytes of a lane.
//!
//! A column's cycle of bits is cut into **periods** of 16 rows, which are `2 k` bytes, and a lane of a register takes a
//! period. Four neighbouring columns `a b c d`, a group, fill `2 k` lines of 64 bytes:
//!
//! ```text
//!     line j, lane p:   byte j of period p of columns a, b, c, d
//! ```
//!
//! Row `16 p + s` has its state at bit `k s` of its period: from bit `k s mod 8` of byte `floor(k s / 8)` on. The bytes that
//! it lies in are so many lines, and what the code makes of them has the order of [`tiles`](super::tiles).
//!
//! A column of 256 rows fills the sixteen lanes, and its last byte is followed by its first: one rotation of the
//! first lines. Shorter columns share the lanes: a register takes 2, 4 or 8 groups side by side. Where a column does not
//! fill its lanes, the bytes that follow each period are stored as [two more lines](FOLLOWING), for the cycle begins again
//! inside a period. At 256 rows nothing but the cycles themselves is stored.

use super::tiles::{GROUP, GROUPS, Line, TILE_ROWS};
use crate::codec::term::Trellis;
use crate::codec::term::trellis::{Code, QuantizedStrip, STRIP, strips};
use crate::codec::{Block, Layout};
use half::f16;

/// Rows of a period: those of a tile.
pub(super) const PERIOD: usize = 16;
/// Bytes after a period's own that states of its rows lie in.
pub(super) const FOLLOWING: usize = 2;
/// Codes of the largest strip: sixteen tiles of eight groups.
pub(super) const STRIP_LINES: usize = PERIOD * GROUPS;

/// A strip's columns as 8-bit codes, [`BIAS`] added: for each tile of sixteen rows the lines of its eight groups.
pub(super) type StripCodes = [Line; STRIP_LINES];

/// What is added to values to make unsigned codes of them.
pub(super) const BIAS: i32 = 64;

/// How columns of one height lie in the lanes of a register.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Packing {
    height: usize,
    /// Lanes of a column, a power of two.
    lanes: usize,
}

impl Packing {
    pub(super) fn new(height: usize) -> Self {
        let lanes = height.div_ceil(PERIOD).next_power_of_two();
        // A strip has no more groups than eight.
        Self { height, lanes: lanes.max(TILE_ROWS / GROUPS) }
    }

    /// The lane of the period after a lane's; after a column's last comes its first.
    pub(super) fn next_lane(self, lane: usize) -> usize {
        lane / self.lanes * self.lanes + (lane + 1) % self.lanes
    }

    /// Groups side by side in a register.
    pub(super) fn groups(self) -> usize {
        TILE_ROWS / self.lanes
    }

    /// Tiles of sixteen rows.
    pub(super) fn tiles(self) -> usize {
        self.lanes
    }

    /// Whether the byte after a column's last is its first.
    pub(super) fn is_full(self) -> bool {
        self.height == PERIOD * self.lanes
    }

    /// Lines of one register's groups.
    fn bundle_lines(self, bits: u8) -> usize {
        2 * usize::from(bits) + if self.is_full() { 0 } else { FOLLOWING }
    }

    /// Registers of a strip.
    fn bundles(self, width: usize) -> usize {
        width.div_ceil(GROUP * self.groups())
    }

    /// The row in a lane of a tile; beyond the height there is none.
    pub(super) fn row(self, tile: usize, lane: usize) -> usize {
        lane % self.lanes * PERIOD + tile * self.groups() + lane / self.lanes
    }
}

/// The columns of every strip, laid out.
#[derive(Clone, Debug)]
pub(super) struct TrellisStrips {
    layout: Layout,
    state_bits: u8,
    unit: f32,
    bits: Vec<u8>,
    scales: Vec<f16>,
    /// The first line of each strip; one more than there are strips.
    starts: Vec<usize>,
    lines: Vec<Line>,
}

/// One strip, ready to decode. There is none where all coefficients are zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strip<'a> {
    pub packing: Packing,
    pub code: Code,
    /// What multiplies the values.
    pub scale: f32,
    pub width: usize,
    lines: &'a [Line],
}

/// The groups of a strip that lie side by side in a register.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bundle<'a> {
    pub lines: &'a [Line],
    pub code: Code,
    pub packing: Packing,
}

impl<'a> Strip<'a> {
    pub(super) fn bundles(self) -> impl ExactSizeIterator<Item = Bundle<'a>> {
        let lines = self.lines.chunks_exact(self.packing.bundle_lines(self.code.bits()));
        lines.map(move |lines| Bundle { lines, code: self.code, packing: self.packing })
    }

    /// Byte `byte` of a period of a column; those after a period's last are the first of the next.
    fn byte(&self, col: usize, period: usize, byte: usize) -> u8 {
        let (packing, own) = (self.packing, 2 * usize::from(self.code.bits()));
        let (group, member) = (col / GROUP, col % GROUP);
        let (line, period) = if byte >= own && packing.is_full() {
            (byte - own, packing.next_lane(period))
        } else {
            (byte, period)
        };
        let bundle = group / packing.groups() * packing.bundle_lines(self.code.bits());
        self.lines[bundle + line].0[GROUP * (group % packing.groups() * packing.lanes + period) + member]
    }

    /// Sixteen bits from a row's own on; the state is the first of them.
    fn state(&self, row: usize, col: usize) -> u16 {
        let at = row % PERIOD * usize::from(self.code.bits());
        let byte = |n| u32::from(self.byte(col, row / PERIOD, at / 8 + n)) << (8 * n);
        ((byte(0) | byte(1) | byte(2)) >> (at % 8)) as u16
    }
}

impl TrellisStrips {
    /// Lays out a term.
    pub(super) fn new(term: &Trellis) -> Self {
        let layout = term.layout();
        let count = layout.block_rows() * layout.cols().div_ceil(STRIP);
        let (mut bits, mut scales) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let mut starts = Vec::with_capacity(count + 1);
        let mut end = 0;
        for (strip, (k, scale)) in strips(layout).zip(term.strip_scales()) {
            bits.push(k);
            scales.push(scale);
            starts.push(end);
            let packing = Packing::new(strip.height);
            end += if k == 0 { 0 } else { packing.bundle_lines(k) * packing.bundles(strip.width) };
        }
        starts.push(end);
        let mut lines = vec![Line([0; 64]); end];
        for strip in strips(layout) {
            let block = layout.block_with(strip.row, strip.col);
            let packing = Packing::new(strip.height);
            let lines = &mut lines[starts[strip.index]..starts[strip.index + 1]];
            for col in 0..strip.width {
                let Some((column, _)) = term.column(block, strip.col - block.col + col) else { continue };
                let k = column.code().bits();
                let (group, member) = (col / GROUP, col % GROUP);
                let bundle = packing.bundle_lines(k);
                let lines = &mut lines[group / packing.groups() * bundle..][..bundle];
                for period in 0..strip.height.div_ceil(PERIOD) {
                    let lane = group % packing.groups() * packing.lanes + period;
                    for (byte, line) in lines.iter_mut().enumerate() {
                        let bits = column.bits_from(PERIOD * usize::from(k) * period + 8 * byte);
                        line.0[GROUP * lane + member] = bits as u8;
                    }
                }
            }
        }
        Self { layout, state_bits: term.state_bits(), unit: term.unit(), bits, scales, starts, lines }
    }

    /// The term that was laid out, bit for bit.
    pub(super) fn to_term(&self) -> Trellis {
        let strips: Vec<_> = strips(self.layout)
            .map(|place| {
                let bits = self.bits[place.index];
                let codes =
                    self.strip(place.index, place.height, place.width).map_or_else(Vec::new, |strip| {
                        let own =
                            |n| strip.state(n % place.height, n / place.height) as u8 & ((1 << bits) - 1);
                        (0..place.len()).map(own).collect()
                    });
                QuantizedStrip { bits, scale: self.scales[place.index], codes }
            })
            .collect();
        Trellis::pack(self.layout, self.state_bits, self.unit, &strips)
    }

    /// The layout of the matrix.
    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    /// What multiplies the values of each strip.
    pub(super) fn scales(&self) -> Vec<f32> {
        self.scales.iter().map(|scale| scale.to_f32() * self.unit).collect()
    }

    fn strip(&self, index: usize, height: usize, width: usize) -> Option<Strip<'_>> {
        let bits = self.bits[index];
        (bits > 0).then(|| Strip {
            packing: Packing::new(height),
            code: Code::new(bits, self.state_bits),
            scale: self.scales[index].to_f32() * self.unit,
            width,
            lines: &self.lines[self.starts[index]..self.starts[index + 1]],
        })
    }

    /// The strips of a block from left to right, each with its first column in the block.
    pub(super) fn block_strips(&self, block: Block) -> impl Iterator<Item = (usize, Strip<'_>)> {
        let first = self.layout.place(block).0 * self.layout.cols().div_ceil(STRIP) + block.col / STRIP;
        (0..block.width.div_ceil(STRIP)).filter_map(move |n| {
            let width = STRIP.min(block.width - n * STRIP);
            Some((n * STRIP, self.strip(first + n, block.height, width)?))
        })
    }

    /// Bytes in memory.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&self.lines[..])
            + size_of_val(&self.starts[..])
            + size_of_val(&self.scales[..])
            + self.bits.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Strips with 1 to 4 bits and none in turn.
    pub(in crate::cpu) fn term(layout: Layout) -> Trellis {
        let strips: Vec<_> = strips(layout)
            .map(|strip| {
                let bits = ((strip.index + 1) % 5) as u8;
                let codes = if bits == 0 { 0 } else { strip.len() };
                QuantizedStrip {
                    bits,
                    scale: f16::from_f32(0.1 + (strip.index % 7) as f32 / 9.0),
                    codes: (0..codes).map(|n| (n * 89 + n / 3) as u8 & ((1 << bits) - 1)).collect(),
                }
            })
            .collect();
        Trellis::pack(layout, 12 + (layout.rows() % 5) as u8, 0.03125, &strips)
    }

    #[test]
    fn every_state_is_where_it_should_be() {
        for edge in [32, 64, 128, 256] {
            for (rows, cols) in
                [(1, 200), (2, 31), (5, 64), (16, 33), (40, 1), (129, 300), (256, 260), (512, 64)]
            {
                let layout = Layout::new(rows, cols, edge).unwrap();
                let term = term(layout);
                let laid_out = TrellisStrips::new(&term);
                assert_eq!(laid_out.to_term(), term, "{rows}x{cols} by {edge}");
                for block in layout.iter() {
                    for (first, strip) in laid_out.block_strips(block) {
                        for col in 0..strip.width {
                            let (column, scale) = term.column(block, first + col).unwrap();
                            assert_eq!(scale, strip.scale);
                            for row in 0..block.height {
                                assert_eq!(
                                    strip.state(row, col),
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
            let codes = vec![0; 256 * STRIP];
            let strip = QuantizedStrip { bits, scale: f16::ONE, codes };
            let term = Trellis::pack(layout, 12, 1.0, &vec![strip; 512 / STRIP]);
            let laid_out = TrellisStrips::new(&term);
            assert_eq!(size_of_val(&laid_out.lines[..]), 256 * 512 * usize::from(bits) / 8);
        }
    }
}
