//! The planes term laid out for integer dot products: sixteen rows in the lanes of a register.
//!
//! A block is cut into row tiles of 16 and these into tiles of 16 x 32 coefficients. The codes `u` of a tile with
//! `n` planes take `64 n` bytes, nothing more: `n` is written as a sum of 8, 4, 2 and 1, and each of these
//! parts packs its bits of all 512 codes into lines of 64 bytes, the most significant part first. In a line, lane
//! `r` (four bytes) belongs to row `r`; a part of `p` bits holds quads `g, g + p, g + 2p, ..` of its line
//! `g` one above the other in each byte (a quad is four neighbouring columns):
//!
//! ```text
//!     line g of a 4-bit part, bytes 4r..4r+4:   row r, columns 4g .. 4g+3      in the low nibbles
//!                                               row r, columns 4g+16 .. 4g+19  in the high nibbles
//! ```
//!
//! So one load, a shift and a mask give sixteen rows by four columns of codes, and `vpdpbusd` (or its like)
//! multiplies them with four activations broadcast to all lanes: no horizontal sums. Tiles at the border are
//! filled up with code 0, whose contribution the kernel cancels by giving them activations of 0, and rows that
//! are not stored.

use crate::codec::term::Planes;
use crate::codec::term::planes::{MAX_PLANES, ScaleGroup};
use crate::codec::{Block, Layout};
use half::f16;
use std::ops::Range;

/// Rows of a tile: the lanes of a 64-byte register.
pub(in crate::cpu) const TILE_ROWS: usize = 16;
/// Columns of a tile: the bits that one byte of a one-bit part can hold, times four.
pub(in crate::cpu) const TILE_COLS: usize = 32;
/// Columns whose codes share a lane: what one dot-product instruction multiplies.
pub(in crate::cpu) const QUAD: usize = 4;
/// Quads of a tile.
pub(in crate::cpu) const QUADS: usize = TILE_COLS / QUAD;

/// 64 bytes at a 64-byte boundary: a cache line and the largest register.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(in crate::cpu) struct Line(pub [u8; 64]);

impl Line {
    /// The bytes of lines one after another.
    pub(in crate::cpu) fn bytes(lines: &[Self]) -> &[u8] {
        // SAFETY: a line is 64 bytes and nothing else.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
    }

    /// The same, to be written.
    pub(in crate::cpu) fn bytes_mut(lines: &mut [Self]) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
    }
}

/// Bits of the parts that `planes` bits are split into, most significant first.
pub(in crate::cpu) const fn parts(planes: u8) -> [u8; 4] {
    [planes & 8, planes & 4, planes & 2, planes & 1]
}

/// A row tile of a block.
pub(in crate::cpu) struct RowTile<'a> {
    pub planes: u8,
    /// The number of its block in the block row.
    pub j: usize,
    /// Those of its tiles, one after another.
    pub lines: &'a [Line],
    /// Half the steps of its rows.
    pub half_steps: HalfSteps<'a>,
}

/// Half the steps of sixteen rows.
#[derive(Clone, Copy)]
pub(in crate::cpu) enum HalfSteps<'a> {
    /// All the same.
    Same(f32),
    /// A scale for each, times half a unit; rows below the block have none.
    Each(&'a [f16], f32),
}

impl HalfSteps<'_> {
    /// As numbers; 0 for rows below the block.
    #[inline(always)]
    pub(in crate::cpu) fn values(self) -> [f32; TILE_ROWS] {
        match self {
            Self::Same(half_step) => [half_step; TILE_ROWS],
            Self::Each(scales, half_unit) => {
                let mut values = [0.0; TILE_ROWS];
                for (value, scale) in values.iter_mut().zip(scales) {
                    *value = scale.to_f32() * half_unit;
                }
                values
            }
        }
    }
}

/// The row tiles of neighbouring blocks, from left to right.
pub(in crate::cpu) struct RowTiles<'a> {
    tiles: &'a PackedPlanes,
    /// The row tile's, over the whole width.
    lines: &'a [Line],
    /// Those of the blocks that are left, and the number of the first.
    heads: &'a [BlockHead],
    j: usize,
    i: usize,
    row_tile: usize,
}

impl<'a> Iterator for RowTiles<'a> {
    type Item = RowTile<'a>;

    #[inline(always)]
    fn next(&mut self) -> Option<RowTile<'a>> {
        let (head, rest) = self.heads.split_first()?;
        self.heads = rest;
        let (tiles, j) = (self.tiles, self.j);
        self.j += 1;
        let half_steps = match tiles.group {
            ScaleGroup::Block => HalfSteps::Same(head.half_step),
            ScaleGroup::Row => {
                let rows = tiles.layout.row_range(self.i);
                let first = rows.start * tiles.layout.block_cols() + j * rows.len();
                tiles.half_steps_of_rows(first, self.row_tile, rows.len())
            }
        };
        let lines = &self.lines[head.start as usize..][..head.lines as usize];
        Some(RowTile { planes: head.planes, j, lines, half_steps })
    }
}

/// The bit-planes of every block in tiles.
#[derive(Clone, Debug)]
pub(in crate::cpu) struct PackedPlanes {
    layout: Layout,
    group: ScaleGroup,
    unit: f32,
    scales: Vec<f16>,
    blocks: Vec<BlockHead>,
    /// For each block row, its first line and the lines of one of its row tiles.
    bands: Vec<(usize, usize)>,
    /// Row tile after row tile over the whole width, so that a product reads memory from front to back.
    lines: Vec<Line>,
    has_long_codes: bool,
}

/// What a product reads of a block for each row tile, together: out of memory, as it reads the lines.
#[derive(Clone, Copy, Debug)]
struct BlockHead {
    /// Where its part begins in every row tile of its block row, and the lines that this has.
    start: u32,
    lines: u16,
    planes: u8,
    /// Half the step of its rows, where all have one: what half integers are multiplied with.
    half_step: f32,
}

/// Tiles across a block.
pub(in crate::cpu) fn col_tiles(block: Block) -> usize {
    block.width.div_ceil(TILE_COLS)
}

/// Tiles down a block.
pub(in crate::cpu) fn row_tiles(block: Block) -> usize {
    block.height.div_ceil(TILE_ROWS)
}

impl PackedPlanes {
    /// Packs a term.
    pub(in crate::cpu) fn new(term: &Planes) -> Self {
        let layout = term.layout();
        let mut tiles = Self {
            layout,
            group: term.group(),
            unit: term.unit(),
            scales: term.scales().to_vec(),
            blocks: Vec::with_capacity(layout.blocks()),
            bands: Vec::with_capacity(layout.block_rows()),
            lines: Vec::new(),
            has_long_codes: false,
        };
        let scales = if tiles.group == ScaleGroup::Block { tiles.scales() } else { Vec::new() };
        let mut first = 0;
        for i in 0..layout.block_rows() {
            let mut width = 0;
            for j in 0..layout.block_cols() {
                let block = layout.block_at(i, j);
                let planes = term.planes(block);
                let lines = usize::from(planes) * col_tiles(block);
                tiles.blocks.push(BlockHead {
                    // Of at most 2^32 columns, a line for four at least.
                    start: width as u32,
                    lines: lines as u16,
                    planes,
                    half_step: scales.get(block.index).map_or(0.0, |scale| 0.5 * scale),
                });
                width += lines;
            }
            tiles.bands.push((first, width));
            first += width * row_tiles(layout.block_at(i, 0));
        }
        let lines = |long: bool| {
            let of = tiles.blocks.iter().filter(|block| (block.planes > 6) == long);
            of.map(|block| usize::from(block.lines)).sum::<usize>()
        };
        tiles.has_long_codes = lines(true) > lines(false);
        tiles.lines.reserve_exact(first);
        let mut codes = Vec::new();
        for i in 0..layout.block_rows() {
            let blocks = (0..layout.block_cols()).map(|j| layout.block_at(i, j));
            // Blocks without planes have no tiles: what is done is in proportion to the bytes that there are.
            let blocks: Vec<Block> = blocks.filter(|block| term.planes(*block) > 0).collect();
            if blocks.is_empty() {
                continue;
            }
            codes.resize(blocks.iter().map(Block::len).sum(), 0u8);
            let mut rest = &mut codes[..];
            for block in &blocks {
                let own;
                (own, rest) = std::mem::take(&mut rest).split_at_mut(block.len());
                term.codes(*block, own);
            }
            for row_tile in 0..row_tiles(blocks[0]) {
                let mut at = 0;
                for block in &blocks {
                    let codes = &codes[at..at + block.len()];
                    at += block.len();
                    (0..col_tiles(*block)).for_each(|tile| tiles.push_tile(*block, codes, row_tile, tile));
                }
            }
        }
        tiles
    }

    /// Lines of one row tile of a block.
    fn lines_across(&self, block: Block) -> usize {
        self.blocks[block.index].lines.into()
    }

    fn push_tile(&mut self, block: Block, codes: &[u8], row_tile: usize, col_tile: usize) {
        let (first_row, first_col) = (row_tile * TILE_ROWS, col_tile * TILE_COLS);
        let mut tile = [[0; 64]; QUADS];
        let rows = codes[first_row * block.width..].chunks_exact(block.width).take(TILE_ROWS);
        for (lane, row) in rows.enumerate() {
            let row = &row[first_col..];
            for (line, codes) in tile.iter_mut().zip(row.chunks(QUAD)) {
                line[lane * QUAD..][..codes.len()].copy_from_slice(codes);
            }
        }
        pack(&tile, self.planes(block), &mut self.lines);
    }

    /// The layout of the matrix.
    pub(in crate::cpu) fn layout(&self) -> Layout {
        self.layout
    }

    /// Planes of a block.
    pub(in crate::cpu) fn planes(&self, block: Block) -> u8 {
        self.blocks[block.index].planes
    }

    /// Whether most of the lines are of blocks with eight planes, or seven.
    pub(in crate::cpu) fn has_long_codes(&self) -> bool {
        self.has_long_codes
    }

    /// The tiles of one row tile of a block, [`planes`](Self::planes) lines each.
    pub(in crate::cpu) fn row_tile(&self, block: Block, row_tile: usize) -> &[Line] {
        let (first, width) = self.bands[self.layout.place(block).0];
        &self.lines[first + row_tile * width + self.blocks[block.index].start as usize..]
            [..self.lines_across(block)]
    }

    /// Neighbouring blocks of block row `i` with as many planes, and how many; those without any are left out.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(in crate::cpu) fn runs(&self, i: usize) -> impl Iterator<Item = (u8, Range<usize>)> {
        let blocks = self.layout.block_cols();
        let runs = self.blocks[i * blocks..][..blocks].chunk_by(|one, next| one.planes == next.planes);
        let place = |end: &mut usize, run: &[BlockHead]| {
            let first = std::mem::replace(end, *end + run.len());
            Some((run[0].planes, first..*end))
        };
        runs.scan(0, place).filter(|(planes, _)| *planes > 0)
    }

    /// Row tile `row_tile` of some blocks of block row `i`, from left to right.
    #[inline(always)]
    pub(in crate::cpu) fn row_tiles_across(
        &self,
        i: usize,
        row_tile: usize,
        blocks: Range<usize>,
    ) -> RowTiles<'_> {
        let (first, width) = self.bands[i];
        let lines = &self.lines[first + row_tile * width..][..width];
        let heads = &self.blocks[i * self.layout.block_cols()..][blocks.clone()];
        RowTiles { tiles: self, lines, heads, j: blocks.start, i, row_tile }
    }

    /// Half the steps of the sixteen rows of a row tile.
    #[inline(always)]
    pub(in crate::cpu) fn half_steps(&self, block: Block, row_tile: usize) -> HalfSteps<'_> {
        match self.group {
            ScaleGroup::Block => HalfSteps::Same(self.blocks[block.index].half_step),
            ScaleGroup::Row => {
                let first = block.row * self.layout.block_cols() + self.layout.place(block).1 * block.height;
                self.half_steps_of_rows(first, row_tile, block.height)
            }
        }
    }

    /// [`half_steps`](Self::half_steps) of a block of so many rows, whose scales begin with number `first`.
    #[inline(always)]
    fn half_steps_of_rows(&self, first: usize, row_tile: usize, height: usize) -> HalfSteps<'_> {
        let own = row_tile * TILE_ROWS..height.min((row_tile + 1) * TILE_ROWS);
        HalfSteps::Each(&self.scales[first + own.start..first + own.end], 0.5 * self.unit)
    }

    /// Visits the codes of a row tile as `(row, column, code)` in the block.
    pub(in crate::cpu) fn codes(&self, block: Block, row_tile: usize, mut f: impl FnMut(usize, usize, u8)) {
        let planes = self.planes(block);
        let tiles = self.row_tile(block, row_tile);
        for col_tile in 0..col_tiles(block) {
            let tile = &tiles[col_tile * usize::from(planes)..][..usize::from(planes)];
            let unpacked = unpack(tile, planes);
            for lane in 0..TILE_ROWS.min(block.height - row_tile * TILE_ROWS) {
                for col in 0..TILE_COLS.min(block.width - col_tile * TILE_COLS) {
                    let code = unpacked[col / QUAD][lane * QUAD + col % QUAD];
                    f(row_tile * TILE_ROWS + lane, col_tile * TILE_COLS + col, code);
                }
            }
        }
    }

    /// Which coefficients share a scale.
    pub(in crate::cpu) fn group(&self) -> ScaleGroup {
        self.group
    }

    /// The scales of all blocks one after another.
    pub(in crate::cpu) fn scales(&self) -> Vec<f32> {
        self.scales.iter().map(|scale| scale.to_f32() * self.unit).collect()
    }

    /// Bytes in memory.
    pub(in crate::cpu) fn bytes(&self) -> usize {
        size_of_val(&self.lines[..]) + size_of_val(&self.blocks[..]) + size_of_val(&self.scales[..])
    }

    /// Adds a row tile's coefficients to `out` (`rows of the tile x width`).
    pub(in crate::cpu) fn add_row_tile(&self, block: Block, row_tile: usize, out: &mut [f32]) {
        if self.planes(block) == 0 {
            return;
        }
        let offset = 1.0 - f32::from(1u16 << self.planes(block));
        let half_steps = self.half_steps(block, row_tile).values();
        let first = row_tile * TILE_ROWS;
        self.codes(block, row_tile, |row, col, code| {
            let row = row - first;
            out[row * block.width + col] += half_steps[row] * (f32::from(code) * 2.0 + offset);
        });
    }
}

/// A tile of these codes: for each quad a line of bytes, lane by lane.
fn pack(codes: &[[u8; 64]; QUADS], planes: u8, lines: &mut Vec<Line>) {
    let mut below = planes;
    for bits in parts(planes).into_iter().filter(|bits| *bits > 0) {
        below -= bits;
        let mask = ((1u16 << bits) - 1) as u8;
        for first in 0..usize::from(bits) {
            let mut bytes = [0; 64];
            let groups = codes[first..].iter().step_by(bits.into());
            for (codes, shift) in groups.zip((0..8).step_by(bits.into())) {
                let fields = codes.iter().map(|code| (code >> below & mask) << shift);
                bytes.iter_mut().zip(fields).for_each(|(byte, field)| *byte |= field);
            }
            lines.push(Line(bytes));
        }
    }
}

/// The codes of a tile, as [`pack`] takes them. The reference of every level's own.
#[inline(always)]
pub(in crate::cpu) fn unpack(tile: &[Line], planes: u8) -> [[u8; 64]; QUADS] {
    debug_assert!(planes <= MAX_PLANES);
    let mut codes = [[0; 64]; QUADS];
    let mut lines = tile;
    for bits in parts(planes).into_iter().filter(|bits| *bits > 0) {
        let (part, rest) = lines.split_at(usize::from(bits));
        lines = rest;
        let mask = ((1u16 << bits) - 1) as u8;
        for (group, codes) in codes.iter_mut().enumerate() {
            let (slot, line) = (group / usize::from(bits), group % usize::from(bits));
            let shift = slot * usize::from(bits);
            for (code, byte) in codes.iter_mut().zip(&part[line].0) {
                // Eight bits are never above other parts, and shifting by eight is not defined.
                *code = if bits == 8 { *byte } else { *code << bits | byte >> shift & mask };
            }
        }
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::term::planes::QuantizedBlock;
    use crate::codec::term::summand::Summand;

    #[test]
    fn laying_out_loses_nothing() {
        for (rows, cols, edge) in [(1, 1, 32), (33, 70, 32), (100, 259, 64), (256, 256, 256)] {
            let layout = Layout::new(rows, cols, edge).unwrap();
            for group in [ScaleGroup::Block, ScaleGroup::Row] {
                let blocks: Vec<_> = layout
                    .iter()
                    .map(|block| {
                        let planes = ((block.index + 4) % 9) as u8;
                        let mask = ((1u16 << planes) - 1) as u8;
                        QuantizedBlock {
                            planes,
                            scales: (0..group.scales_in(block))
                                .map(|n| f16::from_f32(1.0 + n as f32))
                                .collect(),
                            codes: (0..block.len()).map(|n| (n * 157 + n / 7) as u8 & mask).collect(),
                        }
                    })
                    .collect();
                let term = Planes::pack(layout, group, 0.5, &blocks);
                let tiles = PackedPlanes::new(&term);
                for block in layout.iter() {
                    let mut codes = vec![0; block.len()];
                    term.codes(block, &mut codes);
                    for row_tile in (0..row_tiles(block)).filter(|_| term.planes(block) > 0) {
                        tiles.codes(block, row_tile, |row, col, code| {
                            assert_eq!(code, codes[row * block.width + col], "{row}, {col} of {block:?}");
                        });
                    }
                    let (mut a, mut b) = (vec![0.0; block.len()], vec![0.0; block.len()]);
                    term.add_rows(block, 0..block.height, &mut a);
                    for (tile, out) in b.chunks_mut(TILE_ROWS * block.width).enumerate() {
                        tiles.add_row_tile(block, tile, out);
                    }
                    assert_eq!(a, b);
                }
            }
        }
    }

    #[test]
    fn no_more_bytes_than_the_planes_have() {
        let layout = Layout::new(256, 512, 256).unwrap();
        for planes in 1..=8u8 {
            let block = QuantizedBlock { planes, scales: vec![f16::ONE], codes: vec![0; 256 * 256] };
            let term = Planes::pack(layout, ScaleGroup::Block, 1.0, &[block.clone(), block]);
            let tiles = PackedPlanes::new(&term);
            assert_eq!(size_of_val(&tiles.lines[..]), 256 * 512 * usize::from(planes) / 8);
        }
    }
}
