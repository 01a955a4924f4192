//! How a product with a trellis is shared out.

use crate::codec::Layout;
use crate::codec::term::trellis::GROUP_COLS;
use crate::cpu::layout::trellis::Packing;
use std::ops::Range;

/// Rows for which a scale group is decoded once: their sums over a block row stay in the second cache.
const GROUP_BATCH_TILE: usize = 256;
/// Rows for which it is worth to decode a scale group again.
const DECODE_WORTH_BATCH: usize = 32;
/// Items that keep all threads busy to the end.
const ENOUGH_ITEMS: usize = 32;
/// Weights below which an item is not worth parting, with however many rows: microseconds.
const WORTH_PARTING: usize = 1 << 16;

/// How a product is cut into items: block row by block row. Where there are few block rows, the batch is shared out too, and where that is
/// small, their scale groups, whose sums are then to be added up. How depends on the shape alone, so the sums are the same on any pool;
/// those of a row are also the same beside others, up to twice [`DECODE_WORTH_BATCH`] of them.
#[derive(Clone, Copy)]
pub(super) struct Items {
    layout: Layout,
    batch: usize,
    /// Parts of the batch, and its rows in each.
    batch_parts: usize,
    part_batch: usize,
    /// Parts of the columns of the highest block row.
    column_parts: usize,
    /// Sums of an item.
    stride: usize,
}

/// An item: some scale groups of a block row, times a part of the batch.
pub(super) struct Item {
    /// The block row.
    pub i: usize,
    /// The rows of the batch.
    pub batch: Range<usize>,
    /// The scale groups, counted over the whole width.
    pub groups: Range<usize>,
    /// The number of what `i` and `batch` are: those items add up whose is the same.
    pub place: usize,
    /// These items, one after another.
    pub together: Range<usize>,
}

impl Items {
    pub(super) fn new(layout: Layout, batch: usize) -> Self {
        let tiles = batch.div_ceil(GROUP_BATCH_TILE);
        let wanted = ENOUGH_ITEMS.div_ceil(layout.block_rows());
        let worth = (layout.row_cut().longest() * layout.cols()).div_ceil(WORTH_PARTING);
        let batch_parts = wanted.min(batch / DECODE_WORTH_BATCH).max(tiles);
        let column_parts = wanted.div_ceil(batch_parts).min(worth).min(groups_across(layout));
        let part_batch = batch.div_ceil(batch_parts);
        let stride = part_batch * Packing::new(layout.row_cut().longest()).tiles();
        Self { layout, batch, batch_parts, part_batch, column_parts, stride }
    }

    /// Sums of an item, or room for them.
    pub(super) fn stride(self) -> usize {
        self.stride
    }

    /// Sums of all items, where some are added up.
    pub(super) fn shared_sums(self) -> usize {
        if self.column_parts > 1 { self.count() * self.stride } else { 0 }
    }

    /// How many [places](Item::place) there are.
    pub(super) fn places(self) -> usize {
        self.layout.block_rows() * self.batch_parts
    }

    /// Parts of a block row's columns: of one that is less high, fewer.
    fn parts_of(self, i: usize) -> usize {
        (self.column_parts * self.layout.row_range(i).len()).div_ceil(self.layout.row_cut().longest())
    }

    /// Items of a block row.
    fn of_block_row(self, i: usize) -> usize {
        self.batch_parts * self.parts_of(i)
    }

    /// Block rows of one height, which come first, and how many items they have.
    fn whole(self) -> (usize, usize) {
        let whole = self.layout.row_cut().whole_blocks();
        (whole, if whole > 0 { whole * self.of_block_row(0) } else { 0 })
    }

    /// How many there are.
    pub(super) fn count(self) -> usize {
        let (whole, items) = self.whole();
        items + (whole..self.layout.block_rows()).map(|i| self.of_block_row(i)).sum::<usize>()
    }

    /// One of them.
    pub(super) fn get(self, index: usize) -> Item {
        let (whole, items) = self.whole();
        let (mut i, mut own) = (whole, index);
        if index < items {
            (i, own) = (index / self.of_block_row(0), index % self.of_block_row(0));
        } else {
            own -= items;
            while own >= self.of_block_row(i) {
                own -= self.of_block_row(i);
                i += 1;
            }
        }
        let (parts, groups) = (self.parts_of(i), groups_across(self.layout));
        let (batch_part, part) = (own / parts, own % parts);
        let first = (batch_part * self.part_batch).min(self.batch);
        Item {
            i,
            batch: first..(first + self.part_batch).min(self.batch),
            groups: part * groups / parts..(part + 1) * groups / parts,
            place: i * self.batch_parts + batch_part,
            together: index - part..index - part + parts,
        }
    }
}

/// Scale groups of a block row.
fn groups_across(layout: Layout) -> usize {
    layout.cols().div_ceil(GROUP_COLS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Result;

    #[test]
    fn every_scale_group_is_multiplied_with_every_row_once() -> Result<()> {
        for (rows, cols) in [(1, 1), (576, 576), (192, 1536), (97, 33), (4096, 4096), (300, 20), (31, 5000)] {
            for edge in [32, 64, 128, 256] {
                for batch in [1, 2, 8, 9, 63, 64, 300, 1000] {
                    let layout = Layout::new(rows, cols, edge)?;
                    let items = Items::new(layout, batch);
                    let mut taken = vec![0; layout.block_rows() * groups_across(layout) * batch];
                    let mut at_place = vec![0; items.places()];
                    for index in 0..items.count() {
                        let Item { i, batch: own, groups, place, together } = items.get(index);
                        assert!(
                            together.contains(&index) && own.len() * items.stride() > 0 || own.is_empty()
                        );
                        assert!(together.clone().all(|other| items.get(other).place == place));
                        at_place[place] += 1;
                        assert!(at_place[place] <= together.len());
                        for group in groups {
                            for row in own.clone() {
                                taken[(i * groups_across(layout) + group) * batch + row] += 1;
                            }
                        }
                    }
                    assert!(taken.iter().all(|taken| *taken == 1), "{rows}x{cols} by {edge}, {batch} rows");
                }
            }
        }
        Ok(())
    }
}
