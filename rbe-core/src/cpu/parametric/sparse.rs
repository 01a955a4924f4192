//! The sparse term with values of its own.

use super::super::kernels::{Kernels, Place};
use super::super::packed::sparse::PackedSparse;
use super::super::pool::{Pool, Shared};
use super::super::spmm::{self, GROUPS_AT_ONCE, InLanes};
use super::Part;
use crate::codec::Block;
use std::ops::Range;

/// Entries whose gradients are one item.
const ENTRIES_AT_ONCE: usize = 1024;

/// The positions of every block's entries, in the order of the parameters.
fn places(term: &PackedSparse, transposed: bool) -> Vec<Place> {
    let mut places = Vec::with_capacity(term.coefficients());
    term.layout().iter().for_each(|block| term.push_places(block, transposed, &mut places));
    places
}

/// Adds the term's share to `out` (`batch x length`), all in the coefficient domain.
pub(super) fn product(
    kernels: &Kernels,
    term: &PackedSparse,
    part: &Part,
    transposed: bool,
    x: &InLanes,
    out: &mut [f32],
    pool: &dyn Pool,
) {
    let unpack = |block: Block, places: &mut Vec<Place>, values: &mut Vec<f32>| {
        places.clear();
        term.push_places(block, transposed, places);
        values.clear();
        values.extend_from_slice(part.of(block));
    };
    spmm::product(kernels, term.layout(), &unpack, transposed, x, out, pool);
}

/// Adds the gradient of every entry: `sum over vectors of v[row] u[col]`.
pub(super) fn gradient(
    kernels: &Kernels,
    term: &PackedSparse,
    part: &Part,
    u: &InLanes,
    v: &InLanes,
    gradient: &mut [f32],
    pool: &dyn Pool,
) {
    let layout = term.layout();
    let places = places(term, false);
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
                kernels.sddmm(&places[entries.clone()], v, u, sums);
            }
        }
    });
}
