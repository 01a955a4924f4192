//! The product of a sparse term with many vectors: these in lanes, so that an entry is one multiply-add for sixteen of them.

use super::exec::Exec;
use super::layout::{LANES, LaneInput, Lanes, Place, SortedEntries};
use super::pool::Shared;
use super::rows::Rows;
use crate::codec::{Block, Sides};
use std::cell::RefCell;
use std::ops::Range;

/// Groups that one item takes: 128 vectors, whose part of a block is half a second cache.
pub(super) const GROUPS_AT_ONCE: usize = 8;

/// Vectors in lanes: of every sixteen of them, element after element.
#[derive(Debug, Default)]
pub(super) struct InLanes {
    lanes: Vec<Lanes>,
    len: usize,
    batch: usize,
}

impl InLanes {
    /// Lays out other rows in the same memory.
    pub(super) fn fill(&mut self, exec: Exec, rows: Rows) {
        let Rows { values: rows, batch, len } = rows;
        let groups = batch.div_ceil(LANES);
        self.lanes.resize(groups * len, Lanes::ZERO);
        (self.len, self.batch) = (len, batch);
        let shared = Shared::new(&mut self.lanes);
        exec.pool.run(groups, &|range| {
            let mut tile = [0.0; LANES * LANES];
            for group in range {
                // SAFETY: each group is one item.
                let lanes = unsafe { shared.part(group * len..(group + 1) * len) };
                let rows = &rows[group * LANES * len..];
                let count = LANES.min(batch - group * LANES);
                for (n, lanes) in lanes.chunks_mut(LANES).enumerate() {
                    if let (LANES, Ok(lanes)) = (count, <&mut [Lanes; LANES]>::try_from(&mut *lanes)) {
                        exec.kernels.tile_to_lanes(&rows[n * LANES..], len, lanes);
                        continue;
                    }
                    tile.fill(0.0);
                    for (row, tile) in rows.chunks_exact(len).zip(tile.chunks_exact_mut(LANES)).take(count) {
                        tile[..lanes.len()].copy_from_slice(&row[n * LANES..][..lanes.len()]);
                    }
                    let mut whole = [Lanes::ZERO; LANES];
                    exec.kernels.tile_to_lanes(&tile, LANES, &mut whole);
                    lanes.copy_from_slice(&whole[..lanes.len()]);
                }
            }
        });
    }

    /// Groups of sixteen vectors.
    pub(super) fn groups(&self) -> usize {
        self.batch.div_ceil(LANES)
    }

    /// Some groups, from an element on.
    pub(super) fn part(&self, groups: &Range<usize>, start: usize) -> LaneInput<'_> {
        let lanes = &self.lanes[groups.start * self.len + start..];
        LaneInput { lanes, stride: self.len, groups: groups.len() }
    }
}

/// One thread's memory between calls.
#[derive(Default)]
struct Workspace {
    acc: Vec<Lanes>,
    places: Vec<Place>,
    values: Vec<f32>,
    sorted: SortedEntries,
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
}

/// Puts a block's entries in place of others.
pub(super) type Unpack<'a> = dyn Fn(Block, &mut Vec<Place>, &mut Vec<f32>) + Sync + 'a;

/// Adds the share of a term to `out` (`batch x outputs`), all in the coefficient domain.
pub(super) fn add_product(exec: Exec, sides: Sides, unpack: &Unpack, x: &InLanes, out: &mut [f32]) {
    let (input, output) = (sides.input(), sides.output());
    let chunks = x.groups().div_ceil(GROUPS_AT_ONCE);
    let out = Shared::new(out);
    exec.pool.run(output.blocks() * chunks, &|items| {
        WORKSPACE.with_borrow_mut(|Workspace { acc, places, values, sorted }| {
            for item in items {
                let (index, chunk) = (item / chunks, item % chunks);
                let groups = chunk * GROUPS_AT_ONCE..((chunk + 1) * GROUPS_AT_ONCE).min(x.groups());
                let to = output.range(index);
                acc.clear();
                acc.resize(groups.len() * to.len(), Lanes::ZERO);
                for k in 0..input.blocks() {
                    let block = sides.block(index, k);
                    let from = sides.inputs_of(block).start;
                    unpack(block, places, values);
                    sorted.sort(places, values, to.len());
                    exec.kernels.spmm(sorted, x.part(&groups, from), acc, to.len());
                }
                for (group, acc) in groups.zip(acc.chunks_exact(to.len())) {
                    for vector in group * LANES..((group + 1) * LANES).min(x.batch) {
                        let start = vector * output.elements();
                        // SAFETY: an output block of a range of vectors is one item.
                        let out = unsafe { out.part(start + to.start..start + to.end) };
                        out.iter_mut().zip(acc).for_each(|(out, acc)| *out += acc.0[vector % LANES]);
                    }
                }
            }
        });
    });
}
