//! Products with the trellis term: integer dot products of decoded scale groups and int8 slices, or dense ones of reconstructed
//! blocks.

use super::{Backward, BlockRow, Forms, Inputs, PackedTerm, Product, add_blockwise};
use crate::codec::signs::Side;
use crate::codec::term::trellis::GROUP_COLS;
use crate::codec::{Block, Layout};
use crate::cpu::exec::Exec;
use crate::cpu::kernels::Kernels;
use crate::cpu::layout::planes::TILE_ROWS;
use crate::cpu::layout::trellis::{PERIOD, PackedTrellis, Packing};
use crate::cpu::layout::{EDGE, QuantizedRows, RowSums};
use crate::cpu::pool::Shared;
use crate::cpu::product::dense::{self, DenseTerm, Groups};
use std::cell::RefCell;
use std::ops::Range;

/// Rows for which a scale group is decoded once: their sums over a block row stay in the second cache.
const GROUP_BATCH_TILE: usize = 256;
/// Rows for which it is worth to decode a scale group again.
const DECODE_WORTH_BATCH: usize = 32;
/// Items that keep all threads busy to the end.
const ENOUGH_ITEMS: usize = 32;

thread_local! {
    /// Sums of all items, between products.
    static PARTIAL: RefCell<Vec<RowSums>> = RefCell::default();
}

impl PackedTerm for PackedTrellis {
    fn bytes(&self) -> usize {
        PackedTrellis::bytes(self)
    }

    fn parameters_in(&self, block: Block) -> usize {
        block.width.div_ceil(GROUP_COLS)
    }

    fn reads(&self, _: &Kernels, product: &Product) -> Forms {
        match dense::is_best(product) || product.sides.is_transposed() {
            true => Forms::FLOATS,
            false => Forms::slices(product.slices),
        }
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
            let items = Items::new(self.layout(), product.batch);
            let x = x.slices.rows(0..product.batch, product.slices);
            add_integer_product(exec, self, (x, items), &mut partial, out);
            PARTIAL.set(partial);
        }
    }

    fn gradients(&self, exec: Exec, at: &Backward, dx: Option<&mut [f32]>, gradient: &mut [f32]) {
        dense::gradients(exec, self, at, dx, gradient);
    }

    fn add_block(&self, kernels: &Kernels, block: Block, out: &mut [f32]) {
        for_each_decoded(
            self,
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
        PackedTrellis::scales(self)
    }

    fn groups(&self, _: Block, _: Side) -> Groups {
        Groups { side: Side::Cols, size: GROUP_COLS }
    }

    fn reconstruct_unscaled(&self, kernels: &Kernels, block: Block, out: &mut [f32]) {
        for_each_decoded(
            self,
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

/// How a product is cut into items: block row by block row. Where there are few block rows, their blocks are shared out too, and
/// where these are few, their part of the batch. How depends on the shape alone, so the sums are the same on any pool.
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
        let tiles = batch.div_ceil(GROUP_BATCH_TILE);
        let column_parts = wanted.div_ceil(tiles).clamp(1, layout.block_cols());
        let batch_parts = (wanted / column_parts).min(batch / DECODE_WORTH_BATCH).max(tiles);
        let part_batch = batch.div_ceil(batch_parts);
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

/// Calls `f` with the decoded rows of each scale group of a block, and which columns of the block they are.
fn for_each_decoded(
    term: &PackedTrellis,
    kernels: &Kernels,
    block: Block,
    scale: impl Fn(f32) -> f32,
    mut f: impl FnMut(Range<usize>, &[[f32; GROUP_COLS]; EDGE]),
) {
    let mut rows = [[0.0; GROUP_COLS]; EDGE];
    for (first, mut scale_group) in term.block_groups(block) {
        scale_group.scale = scale(scale_group.scale);
        kernels.trellis_rows(&scale_group, &mut rows);
        f(first..first + scale_group.width, &rows);
    }
}

/// Adds the term's share to `out` (`batch x rows`, coefficients), each scale group decoded once for many rows.
fn add_integer_product(
    exec: Exec,
    term: &PackedTrellis,
    (x, items): (QuantizedRows, Items),
    partial: &mut Vec<RowSums>,
    out: &mut [f32],
) {
    let (layout, rows, stride) = (term.layout(), term.layout().rows(), items.stride);
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
                exec.kernels.trellis(term, i, items.columns(item), x.part(batch), sums);
            }
        }
    });
    let (sums, out) = (&*partial, Shared::new(out));
    exec.pool.run(items.count() / items.column_parts, &|range| {
        for first in range.map(|part| part * items.column_parts) {
            let (i, batch) = items.place(first);
            let (place, packing) = (layout.row_range(i), Packing::new(layout.row_range(i).len()));
            for (n, vector) in batch.enumerate() {
                let of_columns = (first..first + items.column_parts)
                    .map(|item| &sums[item * stride + n * packing.tiles()..][..packing.tiles()]);
                // SAFETY: a block row's rows of a part of the batch belong to one item.
                let out = unsafe { out.part(vector * rows + place.start..vector * rows + place.end) };
                add_sums(packing, of_columns, out);
            }
        }
    });
}

/// Adds up what parts of the columns made of a block row's tiles, and adds that to its rows.
fn add_sums<'s>(packing: Packing, of_columns: impl Iterator<Item = &'s [RowSums]>, out: &mut [f32]) {
    let mut total = [RowSums::ZERO; TILE_ROWS];
    for sums in of_columns {
        for (total, sums) in total.iter_mut().zip(sums) {
            total.0.iter_mut().zip(&sums.0).for_each(|(total, sum)| *total += sum);
        }
    }
    for (period, out) in out.chunks_mut(PERIOD).enumerate() {
        for (n, out) in out.iter_mut().enumerate() {
            let (tile, lane) = packing.place(period, n);
            *out += total[tile].0[lane];
        }
    }
}
