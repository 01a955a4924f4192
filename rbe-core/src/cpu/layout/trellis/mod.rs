//! The trellis term laid out for decoding: four columns side by side in the bytes of a lane.
//!
//! A column's cycle of bits is cut into **periods** of 16 rows, which are `2 k` bytes, and a lane of a register takes a
//! period. Four neighbouring columns `a b c d`, a quad, fill `2 k` lines of 64 bytes:
//!
//! ```text
//!     line j, lane p:   byte j of period p of columns a, b, c, d
//! ```
//!
//! Row `16 p + s` has its state at bit `k s` of its period: from bit `k s mod 8` of byte `floor(k s / 8)` on. The bytes that
//! it lies in are so many lines, and what the code makes of them has the order of [`planes`](super::planes).
//!
//! A column of 256 rows fills the sixteen lanes, and its last byte is followed by its first: one rotation of the
//! first lines. Shorter columns share the lanes: a register takes 2, 4 or 8 quads side by side. Where a column does not
//! fill its lanes, the bytes that follow each period are stored as [two more lines](FOLLOWING), for the cycle begins again
//! inside a period. At 256 rows nothing but the cycles themselves is stored.

use super::planes::{Line, QUAD, QUADS, TILE_ROWS};
use crate::codec::term::Trellis;
use crate::codec::term::trellis::{Code, GROUP_COLS, scale_groups};
use crate::codec::{Block, Layout};
use std::ops::Range;

/// Rows of a period: those of a tile.
pub(in crate::cpu) const PERIOD: usize = 16;
/// Bytes after a period's own that states of its rows lie in.
pub(in crate::cpu) const FOLLOWING: usize = 2;
/// Codes of the largest scale group: sixteen tiles of eight quads.
pub(in crate::cpu) const GROUP_LINES: usize = PERIOD * QUADS;

/// A scale group's columns as 8-bit codes, [`BIAS`] added: for each tile of sixteen rows the lines of its eight quads.
pub(in crate::cpu) type GroupCodes = [Line; GROUP_LINES];

/// What is added to values to make unsigned codes of them.
pub(in crate::cpu) const BIAS: i32 = 64;

/// How columns of one height lie in the lanes of a register.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cpu) struct Packing {
    height: usize,
    /// Lanes of a column, a power of two.
    lanes: usize,
}

impl Packing {
    pub(in crate::cpu) fn new(height: usize) -> Self {
        let lanes = height.div_ceil(PERIOD).next_power_of_two();
        // A scale group has no more groups than eight.
        Self { height, lanes: lanes.max(TILE_ROWS / QUADS) }
    }

    /// The lane of the period after a lane's; after a column's last comes its first.
    pub(in crate::cpu) fn next_lane(self, lane: usize) -> usize {
        lane / self.lanes * self.lanes + (lane + 1) % self.lanes
    }

    /// Groups side by side in a register.
    pub(in crate::cpu) fn groups(self) -> usize {
        TILE_ROWS / self.lanes
    }

    /// Tiles of sixteen rows.
    pub(in crate::cpu) fn tiles(self) -> usize {
        self.lanes
    }

    /// Whether the byte after a column's last is its first.
    pub(in crate::cpu) fn is_full(self) -> bool {
        self.height == PERIOD * self.lanes
    }

    /// Lines of one register's groups.
    fn bundle_lines(self, bits: u8) -> usize {
        2 * usize::from(bits) + if self.is_full() { 0 } else { FOLLOWING }
    }

    /// Registers of a scale group.
    fn bundles(self, width: usize) -> usize {
        width.div_ceil(QUAD * self.groups())
    }

    /// The tile and the lane of a period's row: where [`row`](Self::row) is `period * PERIOD + n`.
    pub(in crate::cpu) fn place(self, period: usize, n: usize) -> (usize, usize) {
        (n / self.groups(), n % self.groups() * self.lanes + period)
    }

    /// The row in a lane of a tile; beyond the height there is none.
    pub(in crate::cpu) fn row(self, tile: usize, lane: usize) -> usize {
        lane % self.lanes * PERIOD + tile * self.groups() + lane / self.lanes
    }
}

/// The columns of every scale group, laid out.
#[derive(Clone, Debug)]
pub(in crate::cpu) struct PackedTrellis {
    layout: Layout,
    state_bits: u8,
    /// In the order of their lines, and one more, which has none.
    groups: Vec<GroupHead>,
    lines: Vec<Line>,
}

/// What a scale group's decoding begins with, together: a product reads that of every group, out of memory as it reads the lines.
#[derive(Clone, Copy, Debug)]
struct GroupHead {
    /// The first line.
    start: usize,
    /// What multiplies the values.
    scale: f32,
    /// As in [`PackedGroup`].
    squares: u16,
    /// Bits a row.
    bits: u8,
}

/// What is taken for squares that nobody has looked at: sixteen of the largest values have fewer.
const UNKNOWN_SQUARES: u16 = u16::MAX;

/// One scale group, ready to decode. There is none where all coefficients are zero.
#[derive(Clone, Copy, Debug)]
pub(in crate::cpu) struct PackedGroup<'a> {
    pub packing: Packing,
    pub code: Code,
    /// What multiplies the values.
    pub scale: f32,
    /// At most so much are the squares of a lane's values, summed up: of a row, those in the first two columns of every quad or in the last.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub squares: u16,
    pub width: usize,
    lines: &'a [Line],
}

/// The groups of a scale group that lie side by side in a register.
#[derive(Clone, Copy, Debug)]
pub(in crate::cpu) struct Bundle<'a> {
    pub lines: &'a [Line],
    pub code: Code,
    pub packing: Packing,
}

impl<'a> PackedGroup<'a> {
    pub(in crate::cpu) fn bundles(self) -> impl ExactSizeIterator<Item = Bundle<'a>> {
        let lines = self.lines.chunks_exact(self.packing.bundle_lines(self.code.bits()));
        lines.map(move |lines| Bundle { lines, code: self.code, packing: self.packing })
    }
}

impl PackedTrellis {
    /// Packs a term.
    pub(in crate::cpu) fn new(term: &Trellis) -> Self {
        let layout = term.layout();
        let count = layout.block_rows() * layout.cols().div_ceil(GROUP_COLS);
        let mut groups = Vec::with_capacity(count + 1);
        let mut end = 0;
        for (scale_group, (k, scale)) in scale_groups(layout).zip(term.group_scales()) {
            let scale = scale.to_f32() * term.unit();
            groups.push(GroupHead { start: end, scale, squares: UNKNOWN_SQUARES, bits: k });
            let packing = Packing::new(scale_group.height);
            end += if k == 0 { 0 } else { packing.bundle_lines(k) * packing.bundles(scale_group.width) };
        }
        groups.push(GroupHead { start: end, scale: 0.0, squares: 0, bits: 0 });
        let mut lines = vec![Line([0; 64]); end];
        for scale_group in scale_groups(layout) {
            let block = layout.block_with(scale_group.row, scale_group.col);
            let packing = Packing::new(scale_group.height);
            let lines = &mut lines[groups[scale_group.index].start..groups[scale_group.index + 1].start];
            for col in 0..scale_group.width {
                let Some((column, _)) = term.column(block, scale_group.col - block.col + col) else {
                    continue;
                };
                let k = column.code().bits();
                let (group, member) = (col / QUAD, col % QUAD);
                let bundle = packing.bundle_lines(k);
                let lines = &mut lines[group / packing.groups() * bundle..][..bundle];
                let first_lane = group % packing.groups() * packing.lanes;
                let place = |period: usize| QUAD * (first_lane + period) + member;
                // So are nearly all columns, and copying their bytes takes far less time.
                if let Some(bytes) = column.whole_bytes().filter(|_| packing.is_full()) {
                    for (period, bytes) in bytes.chunks_exact(lines.len()).enumerate() {
                        for (line, byte) in lines.iter_mut().zip(bytes) {
                            line.0[place(period)] = *byte;
                        }
                    }
                    continue;
                }
                for period in 0..scale_group.height.div_ceil(PERIOD) {
                    for (byte, line) in lines.iter_mut().enumerate() {
                        let bits = column.bits_from(PERIOD * usize::from(k) * period + 8 * byte);
                        line.0[place(period)] = bits as u8;
                    }
                }
            }
        }
        Self { layout, state_bits: term.state_bits(), groups, lines }
    }

    /// The same with what is found of every scale group's [squares](PackedGroup::squares).
    pub(in crate::cpu) fn with_squares(mut self, find: impl Fn(&PackedGroup) -> u16) -> Self {
        let per_row = self.layout.cols().div_ceil(GROUP_COLS);
        for n in 0..self.groups.len() - 1 {
            let (i, group) = (n / per_row, n % per_row);
            let squares = self.blocks_across(i, group..group + 1).flat_map(|(_, groups)| groups);
            let squares: Option<u16> = squares.map(|(_, scale_group)| find(&scale_group)).next();
            self.groups[n].squares = squares.unwrap_or(0);
        }
        self
    }

    /// The layout of the matrix.
    pub(in crate::cpu) fn layout(&self) -> Layout {
        self.layout
    }

    /// Some scale groups of block row `i` that are in the block with these columns, counted over the whole width: each with its first column in
    /// the block.
    #[inline(always)]
    fn groups_in(
        &self,
        i: usize,
        cols: Range<usize>,
        groups: Range<usize>,
    ) -> impl Iterator<Item = (usize, PackedGroup<'_>)> {
        let packing = Packing::new(self.layout.row_range(i).len());
        let first = i * self.layout.cols().div_ceil(GROUP_COLS);
        groups.filter_map(move |n| {
            let &[GroupHead { start, scale, squares, bits }, next, ..] = &self.groups[first + n..] else {
                return None;
            };
            let col = n * GROUP_COLS;
            let group = || PackedGroup {
                packing,
                code: Code::new(bits, self.state_bits),
                scale,
                squares,
                width: GROUP_COLS.min(cols.end - col),
                lines: &self.lines[start..next.start],
            };
            Some((col - cols.start, (bits > 0).then(group)?))
        })
    }

    /// The scale groups of a block from left to right, each with its first column in the block.
    #[inline(always)]
    pub(in crate::cpu) fn block_groups(
        &self,
        block: Block,
    ) -> impl Iterator<Item = (usize, PackedGroup<'_>)> {
        // Every block begins where a scale group does.
        let (cols, groups) = (block.cols(), block.col / GROUP_COLS..block.cols().end.div_ceil(GROUP_COLS));
        self.groups_in(self.layout.place(block).0, cols, groups)
    }

    /// Scale groups of block row `i`, counted over the whole width, block by block: the block's column, and those of its scale groups that are
    /// among them, as in [`block_groups`](Self::block_groups).
    #[inline(always)]
    pub(in crate::cpu) fn blocks_across(
        &self,
        i: usize,
        groups: Range<usize>,
    ) -> impl Iterator<Item = (usize, impl Iterator<Item = (usize, PackedGroup<'_>)>)> {
        let mut next = groups.start;
        std::iter::from_fn(move || {
            let j = (next < groups.end).then(|| self.layout.col_cut().block_of(next * GROUP_COLS))?;
            let cols = self.layout.col_range(j);
            let own = next..groups.end.min(cols.end.div_ceil(GROUP_COLS));
            next = own.end;
            Some((j, self.groups_in(i, cols, own)))
        })
    }

    /// What multiplies the values of each scale group.
    pub(in crate::cpu) fn scales(&self) -> Vec<f32> {
        self.groups[..self.groups.len() - 1].iter().map(|head| head.scale).collect()
    }

    /// Bytes in memory.
    pub(in crate::cpu) fn bytes(&self) -> usize {
        size_of_val(&self.lines[..]) + size_of_val(&self.groups[..])
    }
}

#[cfg(test)]
pub(in crate::cpu) mod tests;
