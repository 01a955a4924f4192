//! Products with the trellis term: integer dot products of decoded scale groups and int8 slices, or dense ones of reconstructed
//! blocks.

mod items;

use super::{Backward, BlockRow, Forms, Inputs, PackedTerm, Product, Room, SharedRoom, add_blockwise};
use crate::codec::Block;
use crate::codec::signs::Side;
use crate::codec::term::trellis::GROUP_COLS;
use crate::cpu::exec::Exec;
use crate::cpu::kernels::{Kernels, TileParts, code_tile};
use crate::cpu::layout::planes::Line;
use crate::cpu::layout::trellis::{GROUP_LINES, PackedTrellis, Packing};
use crate::cpu::layout::{QuantizedRows, RowSums};
use crate::cpu::pool::Shared;
use crate::cpu::product::dense::{self, DenseTerm, Groups};
use items::{Item, Items};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::Ordering;

thread_local! {
    /// The sums of an item that has whole rows: in the nearer caches, where those of all items would not stay.
    static OWN_SUMS: RefCell<Vec<RowSums>> = RefCell::default();
}

impl PackedTerm for PackedTrellis {
    fn bytes(&self) -> usize {
        PackedTrellis::bytes(self)
    }

    fn parameters_in(&self, block: Block) -> usize {
        block.width.div_ceil(GROUP_COLS)
    }

    fn reads(&self, _: &Kernels, product: &Product) -> Forms {
        match dense::is_of_integers(product) {
            true => Forms::slices(product.slices),
            false => Forms::FLOATS,
        }
    }

    fn add_product(&self, exec: Exec, product: &Product, x: &Inputs, out: &mut [f32]) {
        if dense::is_best(product) {
            dense::add_product(exec, self, product, x.rows, out);
        } else {
            add_blockwise(exec, product.sides, x.rows, out, &|block, input, acc| {
                exec.kernels.trellis_transposed(self, block, input, acc);
            });
        }
    }

    fn items(&self, product: &Product) -> Option<usize> {
        dense::is_of_integers(product).then(|| Items::new(self.layout(), product.batch).count())
    }

    fn prepare<'r>(&self, product: &Product, room: &'r mut Room) -> SharedRoom<'r> {
        let items = Items::new(self.layout(), product.batch);
        room.share(items.shared_sums(), items.places())
    }

    unsafe fn add_items(
        &self,
        kernels: &Kernels,
        product: &Product,
        x: &Inputs,
        room: &SharedRoom,
        out: &Shared<f32>,
        items: Range<usize>,
    ) {
        let x = x.slices.rows(0..product.batch, product.slices);
        let call = IntegerProduct {
            kernels,
            term: self,
            items: Items::new(self.layout(), product.batch),
            x,
            room,
            out,
        };
        for index in items {
            // SAFETY: the caller's promise.
            unsafe { call.add(index) };
        }
    }

    fn gradients(&self, exec: Exec, at: &Backward, dx: Option<&mut [f32]>, gradient: &mut [f32]) {
        dense::gradients(exec, self, at, dx, gradient);
    }

    fn add_block(&self, kernels: &Kernels, block: Block, out: &mut [f32]) {
        add_groups(self, kernels, block, |scale| scale, out);
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
        out.fill(0.0);
        add_groups(self, kernels, block, |_| 1.0, out);
    }
}

/// Adds the coefficients of a block to `out` (`height x width`), with these scales in the place of their own.
fn add_groups(
    term: &PackedTrellis,
    kernels: &Kernels,
    block: Block,
    scale: impl Fn(f32) -> f32,
    out: &mut [f32],
) {
    let mut codes = [Line([0; 64]); GROUP_LINES];
    for (first, mut scale_group) in term.block_groups(block) {
        scale_group.scale = scale(scale_group.scale);
        kernels.trellis_codes(&scale_group, &mut codes);
        for tile in 0..scale_group.packing.tiles() {
            kernels.add_codes(&code_tile(&scale_group, &codes, tile, block.width), &mut out[first..]);
        }
    }
}

/// A product of integers, whose outputs are `batch x rows` coefficients, each scale group decoded once for many rows. Who ends the last
/// part of a block row's columns adds up all of them.
struct IntegerProduct<'a> {
    kernels: &'a Kernels,
    term: &'a PackedTrellis,
    items: Items,
    x: QuantizedRows<'a>,
    room: &'a SharedRoom<'a>,
    out: &'a Shared<'a, f32>,
}

impl IntegerProduct<'_> {
    /// The share of an item.
    ///
    /// # Safety
    /// Nobody else adds that of the same item, or to its outputs but for the product's items.
    unsafe fn add(&self, index: usize) {
        let Self { kernels, term, items, x, room: SharedRoom { sums, done }, out } = *self;
        let (layout, stride) = (term.layout(), items.stride());
        let Item { i, batch, groups, place, together } = items.get(index);
        let block_row = layout.row_range(i);
        let packing = Packing::new(block_row.len());
        let len = batch.len() * packing.tiles();
        let add = |sums: &mut [RowSums]| {
            sums.fill(RowSums::ZERO);
            if !batch.is_empty() {
                kernels.trellis(term, i, groups.clone(), x.part(batch.clone()), sums);
            }
        };
        let write = |all: &[RowSums]| {
            for (n, vector) in batch.clone().enumerate() {
                let sums = &all[n * packing.tiles()..];
                let first = vector * layout.rows() + block_row.start;
                // SAFETY: a block row's rows of a part of the batch are written by who is last.
                let out = unsafe { out.part(first..first + block_row.len()) };
                kernels.add_tiles(TileParts { packing, sums, stride, parts: together.len() }, out);
            }
        };
        if together.len() == 1 {
            return OWN_SUMS.with_borrow_mut(|own| {
                own.resize(own.len().max(len), RowSums::ZERO);
                add(&mut own[..len]);
                write(&own[..len]);
            });
        }
        // SAFETY: each item has sums of its own until it counts as done.
        add(unsafe { sums.part(index * stride..index * stride + len) });
        // What the others wrote before they counted is seen by who counts last.
        if done[place].fetch_add(1, Ordering::AcqRel) + 1 == together.len() {
            // SAFETY: all items that add up are done.
            write(unsafe { sums.part(together.start * stride..together.end * stride) });
        }
    }
}
