//! The sparse term: vectors in lanes, so that an entry is one multiply-add for sixteen of them.

use super::super::kernels::{Kernels, LaneInput, Place};
use super::super::pool::{Pool, Shared};
use super::super::transform::{LANES, Lanes};
use super::Part;
use crate::codec::term::Sparse;
use crate::codec::{Block, Layout};
use std::ops::Range;

/// Groups that one item takes: 128 vectors, whose part of a block is half a second cache.
const GROUPS_AT_ONCE: usize = 8;
/// Entries whose gradients are one item.
const ENTRIES_AT_ONCE: usize = 1024;

/// Vectors in lanes: of every sixteen of them, element after element.
pub(super) struct Spectrum {
    lanes: Vec<Lanes>,
    len: usize,
    vectors: usize,
}

impl Spectrum {
    /// Lays out `vectors` rows of `len` elements.
    pub(super) fn new(kernels: &Kernels, rows: &[f32], len: usize, vectors: usize, pool: &dyn Pool) -> Self {
        let groups = vectors.div_ceil(LANES);
        let mut lanes = vec![Lanes::ZERO; groups * len];
        let shared = Shared::new(&mut lanes);
        pool.run(groups, &|range| {
            let mut tile = [0.0; LANES * LANES];
            for group in range {
                // SAFETY: each group is one item.
                let lanes = unsafe { shared.part(group * len..(group + 1) * len) };
                let rows = &rows[group * LANES * len..];
                let count = LANES.min(vectors - group * LANES);
                for (n, lanes) in lanes.chunks_mut(LANES).enumerate() {
                    if let (LANES, Ok(lanes)) = (count, <&mut [Lanes; LANES]>::try_from(&mut *lanes)) {
                        kernels.tile_to_lanes(&rows[n * LANES..], len, lanes);
                        continue;
                    }
                    tile.fill(0.0);
                    for (row, tile) in rows.chunks_exact(len).zip(tile.chunks_exact_mut(LANES)).take(count) {
                        tile[..lanes.len()].copy_from_slice(&row[n * LANES..][..lanes.len()]);
                    }
                    let mut whole = [Lanes::ZERO; LANES];
                    kernels.tile_to_lanes(&tile, LANES, &mut whole);
                    lanes.copy_from_slice(&whole[..lanes.len()]);
                }
            }
        });
        Self { lanes, len, vectors }
    }

    fn groups(&self) -> usize {
        self.vectors.div_ceil(LANES)
    }

    /// Some groups, from an element on.
    fn part(&self, groups: &Range<usize>, start: usize) -> LaneInput<'_> {
        let lanes = &self.lanes[groups.start * self.len + start..];
        LaneInput { lanes, stride: self.len, groups: groups.len() }
    }
}

/// The positions of every block's entries.
fn places(term: &Sparse, layout: Layout, transposed: bool) -> Vec<Place> {
    let mut places = Vec::with_capacity(term.coefficients());
    for block in layout.iter() {
        term.for_each(block, 0..block.height, |row, col, _| {
            let (to, from) = if transposed { (col, row) } else { (row, col) };
            places.push(Place { to: to as u8, from: from as u8 });
        });
    }
    places
}

/// Adds the term's share to `out` (`vectors x length`), all in the coefficient domain.
pub(super) fn product(
    kernels: &Kernels,
    term: &Sparse,
    part: &Part,
    transposed: bool,
    x: &Spectrum,
    out: &mut [f32],
    pool: &dyn Pool,
) {
    let layout = term.layout();
    let places = places(term, layout, transposed);
    let (in_blocks, out_blocks, out_len) = if transposed {
        (layout.block_rows(), layout.block_cols(), layout.cols())
    } else {
        (layout.block_cols(), layout.block_rows(), layout.rows())
    };
    let chunks = x.groups().div_ceil(GROUPS_AT_ONCE);
    let out = Shared::new(out);
    pool.run(out_blocks * chunks, &|items| {
        let mut acc = Vec::new();
        for item in items {
            let (index, chunk) = (item / chunks, item % chunks);
            let groups = chunk * GROUPS_AT_ONCE..((chunk + 1) * GROUPS_AT_ONCE).min(x.groups());
            let to = if transposed { layout.col_range(index) } else { layout.row_range(index) };
            acc.clear();
            acc.resize(groups.len() * to.len(), Lanes::ZERO);
            for k in 0..in_blocks {
                let block = if transposed { layout.block_at(k, index) } else { layout.block_at(index, k) };
                let from = if transposed { block.row } else { block.col };
                let entries = part.starts[block.index]..part.starts[block.index + 1];
                kernels.scatter(&places[entries], part.of(block), x.part(&groups, from), &mut acc, to.len());
            }
            for (group, acc) in groups.zip(acc.chunks_exact(to.len())) {
                for vector in group * LANES..((group + 1) * LANES).min(x.vectors) {
                    let start = vector * out_len;
                    // SAFETY: an output block of a range of vectors is one item.
                    let out = unsafe { out.part(start + to.start..start + to.end) };
                    out.iter_mut().zip(acc).for_each(|(out, acc)| *out += acc.0[vector % LANES]);
                }
            }
        }
    });
}

/// Adds the gradient of every entry: `sum over vectors of v[row] u[col]`.
pub(super) fn gradient(
    kernels: &Kernels,
    term: &Sparse,
    part: &Part,
    u: &Spectrum,
    v: &Spectrum,
    gradient: &mut [f32],
    pool: &dyn Pool,
) {
    let layout = term.layout();
    let places = places(term, layout, false);
    let mut items: Vec<(Block, Range<usize>)> = Vec::new();
    for block in layout.iter() {
        let entries = part.starts[block.index]..part.starts[block.index + 1];
        let firsts = entries.clone().step_by(ENTRIES_AT_ONCE);
        items.extend(firsts.map(|first| (block, first..(first + ENTRIES_AT_ONCE).min(entries.end))));
    }
    let gradient = Shared::new(gradient);
    pool.run(items.len(), &|range| {
        for (block, entries) in &items[range] {
            // SAFETY: each range of entries is one item.
            let sums = unsafe { gradient.part(entries.clone()) };
            for first in (0..u.groups()).step_by(GROUPS_AT_ONCE) {
                let groups = first..(first + GROUPS_AT_ONCE).min(u.groups());
                let (v, u) = (v.part(&groups, block.row), u.part(&groups, block.col));
                kernels.correlate(&places[entries.clone()], v, u, sums);
            }
        }
    });
}
