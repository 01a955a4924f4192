//! Products with the sparse term: entry by entry, or many rows in lanes (SpMM); the gradients of its entries (SDDMM).

use super::{Backward, BlockRow, Forms, Inputs, PackedTerm, Product, add_blockwise};
use crate::codec::Block;
use crate::cpu::exec::Exec;
use crate::cpu::kernels::Kernels;
use crate::cpu::layout::Place;
use crate::cpu::layout::sparse::PackedSparse;
use crate::cpu::pool::Shared;
use crate::cpu::spmm::{self, GROUPS_AT_ONCE};
use std::ops::Range;

/// Rows from which on a transposed product, which goes from entry to entry on every level, is faster in lanes.
const TRANSPOSED_SPMM_MIN_BATCH: usize = 8;
/// Entries whose gradients are one item.
const ENTRIES_AT_ONCE: usize = 1024;

impl PackedTerm for PackedSparse {
    fn bytes(&self) -> usize {
        PackedSparse::bytes(self)
    }

    fn parameters_in(&self, block: Block) -> usize {
        self.count(block)
    }

    fn reads(&self, kernels: &Kernels, product: &Product) -> Forms {
        let min_batch = match product.sides.is_transposed() {
            true => TRANSPOSED_SPMM_MIN_BATCH,
            false => kernels.spmm_min_batch(),
        };
        if product.parameters.is_some() || product.batch >= min_batch { Forms::LANES } else { Forms::FLOATS }
    }

    fn add_product(&self, exec: Exec, product: &Product, x: &Inputs, out: &mut [f32]) {
        let (sides, transposed) = (product.sides, product.sides.is_transposed());
        if let Some(parameters) = product.parameters {
            let entries = |block: Block, places: &mut Vec<Place>, values: &mut Vec<f32>| {
                places.clear();
                self.push_places(block, transposed, places);
                values.clear();
                values.extend_from_slice(parameters.of(block));
            };
            spmm::add_product(exec, sides, &entries, x.lanes, out);
        } else if self.reads(exec.kernels, product).lanes {
            let entries =
                |block, places: &mut _, values: &mut _| self.entries(block, transposed, places, values);
            spmm::add_product(exec, sides, &entries, x.lanes, out);
        } else {
            let kernels = exec.kernels;
            add_blockwise(exec, sides, x.rows, out, &|block, input, acc| match transposed {
                true => kernels.sparse_transposed(self, block, input, acc),
                false => kernels.sparse(self, block, input, acc),
            });
        }
    }

    fn gradients(&self, exec: Exec, at: &Backward, dx: Option<&mut [f32]>, gradient: &mut [f32]) {
        add_parameter_gradient(exec, self, at, gradient);
        if let Some(dx) = dx {
            let (product, g) = at.reversed();
            self.add_product(exec, &product, g, dx);
        }
    }

    fn add_block(&self, _: &Kernels, block: Block, out: &mut [f32]) {
        let (format, scale) = (self.format(), self.scale(block));
        self.for_each_field(block, |row, col, field| {
            out[row * block.width + col] += format.value(field, scale);
        });
    }

    fn add_row(&self, kernels: &Kernels, block: Block, row: &BlockRow, out: &mut [f32]) {
        kernels.sparse_transposed(self, block, row.weights, out);
    }
}

/// Adds the gradient of every entry: `sum over the batch of v[row] u[col]`.
fn add_parameter_gradient(exec: Exec, term: &PackedSparse, at: &Backward, gradient: &mut [f32]) {
    let (u, v) = at.on_matrix();
    let mut places = Vec::with_capacity(term.coefficients());
    let mut items: Vec<(Block, Range<usize>)> = Vec::new();
    for block in term.layout().iter() {
        term.push_places(block, false, &mut places);
        let entries = at.parameters.range(block);
        let firsts = entries.clone().step_by(ENTRIES_AT_ONCE);
        items.extend(firsts.map(|first| (block, first..(first + ENTRIES_AT_ONCE).min(entries.end))));
    }
    let gradient = Shared::new(gradient);
    exec.pool.run(items.len(), &|range| {
        for (block, entries) in &items[range] {
            // SAFETY: each range of entries is one item.
            let sums = unsafe { gradient.part(entries.clone()) };
            for first in (0..u.lanes.groups()).step_by(GROUPS_AT_ONCE) {
                let groups = first..(first + GROUPS_AT_ONCE).min(u.lanes.groups());
                let (v, u) = (v.lanes.part(&groups, block.row), u.lanes.part(&groups, block.col));
                exec.kernels.sddmm(&places[entries.clone()], v, u, sums);
            }
        }
    });
}
