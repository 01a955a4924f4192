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
//! it lies in are so many lines, and what the code makes of them has the order of [`planes`](super::planes).
//!
//! A column of 256 rows fills the sixteen lanes, and its last byte is followed by its first: one rotation of the
//! first lines. Shorter columns share the lanes: a register takes 2, 4 or 8 groups side by side. Where a column does not
//! fill its lanes, the bytes that follow each period are stored as [two more lines](FOLLOWING), for the cycle begins again
//! inside a period. At 256 rows nothing but the cycles themselves is stored.

use super::planes::{Line, QUAD, QUADS, TILE_ROWS};
use super::{Backward, BlockRow, Forms, Inputs, PackedTerm, Product, add_blockwise};
use crate::codec::signs::Side;
use crate::codec::term::trellis::{Code, GROUP_COLS, QuantizedGroup, scale_groups};
use crate::codec::term::{Term, Trellis};
use crate::codec::{Block, Layout};
use crate::cpu::activations::Activations;
use crate::cpu::exec::Exec;
use crate::cpu::kernels::{EDGE, Kernels, RowSums};
use crate::cpu::pool::Shared;
use crate::cpu::product::dense::{self, DenseTerm, Groups};
use half::f16;
use std::cell::RefCell;
use std::ops::Range;

/// Rows for which a scale group is decoded once: their sums over a block row stay in the second cache.
const GROUP_BATCH_TILE: usize = 256;
/// Rows for which it is worth to decode a scale group again.
const DECODE_WORTH_BATCH: usize = 32;
/// Items that keep all threads busy to the end.
const ENOUGH_ITEMS: usize = 16;

thread_local! {
    /// Sums of all items, between products.
    static PARTIAL: RefCell<Vec<RowSums>> = RefCell::default();
}

/// Rows of a period: those of a tile.
pub(in crate::cpu) const PERIOD: usize = 16;
/// Bytes after a period's own that states of its rows lie in.
pub(in crate::cpu) const FOLLOWING: usize = 2;
/// Codes of the largest scale_group: sixteen tiles of eight groups.
pub(in crate::cpu) const GROUP_LINES: usize = PERIOD * QUADS;

/// A scale group's columns as 8-bit codes, [`BIAS`] added: for each tile of sixteen rows the lines of its eight groups.
pub(in crate::cpu) type GroupCodes = [Line; GROUP_LINES];

/// What is added to values to make unsigned codes of them.
pub(in crate::cpu) const BIAS: i32 = 128;

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
    unit: f32,
    bits: Vec<u8>,
    scales: Vec<f16>,
    /// The first line of each scale group; one more than there are scale groups.
    starts: Vec<usize>,
    lines: Vec<Line>,
}

/// One scale group, ready to decode. There is none where all coefficients are zero.
#[derive(Clone, Copy, Debug)]
pub(in crate::cpu) struct PackedGroup<'a> {
    pub packing: Packing,
    pub code: Code,
    /// What multiplies the values.
    pub scale: f32,
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

impl PackedTrellis {
    /// Lays out a term.
    pub(in crate::cpu) fn new(term: &Trellis) -> Self {
        let layout = term.layout();
        let count = layout.block_rows() * layout.cols().div_ceil(GROUP_COLS);
        let (mut bits, mut scales) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let mut starts = Vec::with_capacity(count + 1);
        let mut end = 0;
        for (scale_group, (k, scale)) in scale_groups(layout).zip(term.group_scales()) {
            bits.push(k);
            scales.push(scale);
            starts.push(end);
            let packing = Packing::new(scale_group.height);
            end += if k == 0 { 0 } else { packing.bundle_lines(k) * packing.bundles(scale_group.width) };
        }
        starts.push(end);
        let mut lines = vec![Line([0; 64]); end];
        for scale_group in scale_groups(layout) {
            let block = layout.block_with(scale_group.row, scale_group.col);
            let packing = Packing::new(scale_group.height);
            let lines = &mut lines[starts[scale_group.index]..starts[scale_group.index + 1]];
            for col in 0..scale_group.width {
                let Some((column, _)) = term.column(block, scale_group.col - block.col + col) else {
                    continue;
                };
                let k = column.code().bits();
                let (group, member) = (col / QUAD, col % QUAD);
                let bundle = packing.bundle_lines(k);
                let lines = &mut lines[group / packing.groups() * bundle..][..bundle];
                for period in 0..scale_group.height.div_ceil(PERIOD) {
                    let lane = group % packing.groups() * packing.lanes + period;
                    for (byte, line) in lines.iter_mut().enumerate() {
                        let bits = column.bits_from(PERIOD * usize::from(k) * period + 8 * byte);
                        line.0[QUAD * lane + member] = bits as u8;
                    }
                }
            }
        }
        Self { layout, state_bits: term.state_bits(), unit: term.unit(), bits, scales, starts, lines }
    }

    /// The layout of the matrix.
    pub(in crate::cpu) fn layout(&self) -> Layout {
        self.layout
    }

    fn scale_group(&self, index: usize, height: usize, width: usize) -> Option<PackedGroup<'_>> {
        let bits = self.bits[index];
        (bits > 0).then(|| PackedGroup {
            packing: Packing::new(height),
            code: Code::new(bits, self.state_bits),
            scale: self.scales[index].to_f32() * self.unit,
            width,
            lines: &self.lines[self.starts[index]..self.starts[index + 1]],
        })
    }

    /// The scale groups of a block from left to right, each with its first column in the block.
    pub(in crate::cpu) fn block_groups(
        &self,
        block: Block,
    ) -> impl Iterator<Item = (usize, PackedGroup<'_>)> {
        let first =
            self.layout.place(block).0 * self.layout.cols().div_ceil(GROUP_COLS) + block.col / GROUP_COLS;
        (0..block.width.div_ceil(GROUP_COLS)).filter_map(move |n| {
            let width = GROUP_COLS.min(block.width - n * GROUP_COLS);
            Some((n * GROUP_COLS, self.scale_group(first + n, block.height, width)?))
        })
    }

    /// Calls `f` with the decoded rows of each scale group of a block, and which columns of the block they are.
    fn for_each_decoded(
        &self,
        kernels: &Kernels,
        block: Block,
        scale: impl Fn(f32) -> f32,
        mut f: impl FnMut(Range<usize>, &[[f32; GROUP_COLS]; EDGE]),
    ) {
        let mut rows = [[0.0; GROUP_COLS]; EDGE];
        for (first, mut scale_group) in self.block_groups(block) {
            scale_group.scale = scale(scale_group.scale);
            kernels.trellis_rows(&scale_group, &mut rows);
            f(first..first + scale_group.width, &rows);
        }
    }
}

impl PackedTerm for PackedTrellis {
    fn unpack(&self) -> Term {
        let groups: Vec<_> = scale_groups(self.layout)
            .map(|place| {
                let bits = self.bits[place.index];
                let packed = self.scale_group(place.index, place.height, place.width);
                let codes = packed.map_or_else(Vec::new, |packed| {
                    let own = |n| packed.state(n % place.height, n / place.height) as u8 & ((1 << bits) - 1);
                    (0..place.len()).map(own).collect()
                });
                QuantizedGroup { bits, scale: self.scales[place.index], codes }
            })
            .collect();
        Term::Trellis(Trellis::pack(self.layout, self.state_bits, self.unit, &groups))
    }

    fn bytes(&self) -> usize {
        size_of_val(&self.lines[..])
            + size_of_val(&self.starts[..])
            + size_of_val(&self.scales[..])
            + self.bits.len()
    }

    fn parameters_in(&self, block: Block) -> usize {
        block.width.div_ceil(GROUP_COLS)
    }

    fn reads(&self, _: &Kernels, product: &Product) -> Forms {
        if dense::is_best(product) || product.sides.is_transposed() { Forms::FLOATS } else { Forms::SLICES }
    }

    fn add_product(&self, exec: Exec, product: &Product, x: &Inputs, out: &mut [f32]) {
        if dense::is_best(product) {
            dense::add_product(exec, self, product, x.rows, out);
        } else if product.sides.is_transposed() {
            add_blockwise(exec, product.sides, x.rows, out, &|block, input, acc| {
                exec.kernels.trellis_transposed(self, block, input, acc);
            });
        } else {
            let mut partial = PARTIAL.take();
            let items = Items::new(self.layout, product.batch);
            self.add_integer_product(exec, x.slices, items, &mut partial, out);
            PARTIAL.set(partial);
        }
    }

    fn gradients(&self, exec: Exec, at: &Backward, dx: Option<&mut [f32]>, gradient: &mut [f32]) {
        dense::gradients(exec, self, at, dx, gradient);
    }

    fn add_block(&self, kernels: &Kernels, block: Block, out: &mut [f32]) {
        self.for_each_decoded(
            kernels,
            block,
            |scale| scale,
            |cols, rows| {
                for (out, row) in out.chunks_exact_mut(block.width).zip(rows) {
                    out[cols.clone()].iter_mut().zip(row).for_each(|(out, value)| *out += value);
                }
            },
        );
    }

    fn add_row(&self, kernels: &Kernels, block: Block, row: &BlockRow, out: &mut [f32]) {
        kernels.trellis_transposed(self, block, row.weights, out);
    }
}

impl DenseTerm for PackedTrellis {
    fn scales(&self) -> Vec<f32> {
        self.scales.iter().map(|scale| scale.to_f32() * self.unit).collect()
    }

    fn groups(&self, _: Block, _: Side) -> Groups {
        Groups { side: Side::Cols, size: GROUP_COLS }
    }

    fn reconstruct_unscaled(&self, kernels: &Kernels, block: Block, out: &mut [f32]) {
        self.for_each_decoded(
            kernels,
            block,
            |_| 1.0,
            |cols, rows| {
                for (out, row) in out.chunks_exact_mut(block.width).zip(rows) {
                    out[cols.clone()].copy_from_slice(&row[..cols.len()]);
                }
            },
        );
    }
}

/// How a product is cut into items: block row by block row. Where there are few block rows, their part of the batch or else
/// their blocks are shared out too. How depends on the shape alone, so the sums are the same on any pool.
#[derive(Clone, Copy)]
struct Items {
    layout: Layout,
    batch: usize,
    /// Parts of the batch, and its rows in each.
    batch_parts: usize,
    part_batch: usize,
    /// Parts of the block columns.
    column_parts: usize,
    /// Sums of an item.
    stride: usize,
}

impl Items {
    fn new(layout: Layout, batch: usize) -> Self {
        let wanted = ENOUGH_ITEMS.div_ceil(layout.block_rows());
        let batch_parts = wanted.min(batch / DECODE_WORTH_BATCH).max(batch.div_ceil(GROUP_BATCH_TILE)).max(1);
        let part_batch = batch.div_ceil(batch_parts);
        let column_parts = (wanted / batch_parts).clamp(1, layout.block_cols());
        let stride = part_batch * Packing::new(layout.row_cut().longest()).tiles();
        Self { layout, batch, batch_parts, part_batch, column_parts, stride }
    }

    fn count(self) -> usize {
        self.layout.block_rows() * self.batch_parts * self.column_parts
    }

    /// The block row of an item, and its part of the batch.
    fn place(self, item: usize) -> (usize, Range<usize>) {
        let part = item / self.column_parts % self.batch_parts;
        let first = (part * self.part_batch).min(self.batch);
        (item / (self.batch_parts * self.column_parts), first..(first + self.part_batch).min(self.batch))
    }

    /// The block columns of an item.
    fn columns(self, item: usize) -> Range<usize> {
        let (part, blocks) = (item % self.column_parts, self.layout.block_cols());
        part * blocks / self.column_parts..(part + 1) * blocks / self.column_parts
    }
}

impl PackedTrellis {
    /// Adds the term's share to `out` (`batch x rows`, coefficients), each scale group decoded once for many rows.
    fn add_integer_product(
        &self,
        exec: Exec,
        x: &Activations,
        items: Items,
        partial: &mut Vec<RowSums>,
        out: &mut [f32],
    ) {
        let (layout, rows, stride) = (self.layout, self.layout.rows(), items.stride);
        partial.resize(items.count() * stride, RowSums::ZERO);
        let sums = Shared::new(partial);
        exec.pool.run(items.count(), &|range| {
            for item in range {
                let (i, batch) = items.place(item);
                let packing = Packing::new(layout.row_range(i).len());
                // SAFETY: each item has sums of its own.
                let sums = unsafe { sums.part(item * stride..item * stride + batch.len() * packing.tiles()) };
                sums.fill(RowSums::ZERO);
                if !batch.is_empty() {
                    exec.kernels.trellis(self, i, items.columns(item), x.rows(batch), sums);
                }
            }
        });
        let (sums, out) = (&*partial, Shared::new(out));
        exec.pool.run(layout.block_rows(), &|range| {
            let per_row = items.batch_parts * items.column_parts;
            for item in range.start * per_row..range.end * per_row {
                let (i, batch) = items.place(item);
                let packing = Packing::new(layout.row_range(i).len());
                let sums = sums[item * stride..].chunks_exact(packing.tiles());
                for (vector, sums) in batch.zip(sums) {
                    let place = layout.row_range(i);
                    // SAFETY: a block row's rows belong to one item.
                    let out = unsafe { out.part(vector * rows + place.start..vector * rows + place.end) };
                    for (tile, sums) in sums.iter().enumerate() {
                        for (lane, sum) in sums.0.iter().enumerate() {
                            if let Some(out) = out.get_mut(packing.row(tile, lane)) {
                                *out += sum;
                            }
                        }
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            for (rows, cols) in
                [(1, 200), (2, 31), (5, 64), (16, 33), (40, 1), (129, 300), (256, 260), (512, 64)]
            {
                let layout = Layout::new(rows, cols, edge).unwrap();
                let term = term(layout);
                let laid_out = PackedTrellis::new(&term);
                assert_eq!(laid_out.unpack(), Term::Trellis(term.clone()), "{rows}x{cols} by {edge}");
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
}
