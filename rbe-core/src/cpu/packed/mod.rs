//! The terms in products, each packed in the [`layout`](super::layout) that kernels want.
//!
//! A new term is one file here, one there, and one line in [`pack`].

mod basis;
mod planes;
mod sparse;
mod trellis;

use super::exec::Exec;
use super::kernels::Kernels;
use super::layout::planes::PackedPlanes;
use super::layout::sparse::PackedSparse;
use super::layout::trellis::PackedTrellis;
use super::layout::{Activations, Input, RowSums};
use super::pool::Shared;
use super::rows::Rows;
use super::spmm::InLanes;
use crate::codec::term::{Domain, Term};
use crate::codec::{Block, Layout, Sides};
use std::cell::RefCell;
use std::fmt::Debug;
use std::ops::{BitOr, Range};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

/// Packs a term.
pub(super) fn pack(term: &Term) -> Arc<dyn PackedTerm> {
    match term {
        Term::Basis(term) => Arc::new(basis::PackedBasis::new(term)),
        Term::Sparse(term) => Arc::new(PackedSparse::new(term)),
        Term::Planes(term) => Arc::new(PackedPlanes::new(term)),
        Term::Trellis(term) => Arc::new(Kernels::get().with_squares(PackedTrellis::new(term))),
    }
}

/// A term in its layout for products. What is called once a product or a block goes through here; loops over coefficients are
/// behind it.
pub(super) trait PackedTerm: Debug + Send + Sync {
    /// The domain that products with the term are in.
    fn domain(&self) -> Domain {
        Domain::Coefficients
    }

    /// Bytes in memory.
    fn bytes(&self) -> usize;

    /// As the codec's `Term::parameters_in`.
    fn parameters_in(&self, block: Block) -> usize;

    /// The forms of the input that [`add_product`](Self::add_product) reads.
    fn reads(&self, kernels: &Kernels, product: &Product) -> Forms;

    /// What a product takes for each weight and vector, in digits of a trellis'.
    fn cost(&self, kernels: &Kernels, product: &Product) -> f32 {
        self.reads(kernels, product).slices as f32
    }

    /// Adds the term's share to `out` (`batch x outputs`), all in the term's [`domain`](Self::domain).
    fn add_product(&self, exec: Exec, product: &Product, x: &Inputs, out: &mut [f32]);

    /// Of how many items the product is made, where threads may take these one by one, in any order and beside those of other products;
    /// `None` where it is done otherwise.
    fn items(&self, _product: &Product) -> Option<usize> {
        None
    }

    /// Makes ready what the [items](Self::items) have in common.
    fn prepare<'r>(&self, _product: &Product, room: &'r mut Room) -> SharedRoom<'r> {
        room.share(0, 0)
    }

    /// Adds the shares of some of the [items](Self::items).
    ///
    /// # Safety
    /// Nobody else adds those of the same items, or of another product, to the same output, and the room was
    /// [made ready](Self::prepare) for this product.
    unsafe fn add_items(
        &self,
        _kernels: &Kernels,
        _product: &Product,
        _x: &Inputs,
        _room: &SharedRoom,
        _out: &Shared<f32>,
        _items: Range<usize>,
    ) {
        unreachable!("a term without items");
    }

    /// The gradients of `<g, y>`, `y` being the product with `x`: that of `x` is added to `dx`, unless the term is in the weight
    /// domain, those of the parameters go to `gradient`, which is zero.
    fn gradients(&self, exec: Exec, at: &Backward, dx: Option<&mut [f32]>, gradient: &mut [f32]);

    /// Adds a block's values to `out` (`height x width`).
    fn add_block(&self, kernels: &Kernels, block: Block, out: &mut [f32]);

    /// Adds what the term has of a row of the matrix in a block to `out` (`width`).
    fn add_row(&self, kernels: &Kernels, block: Block, row: &BlockRow, out: &mut [f32]);
}

/// What a product multiplies with.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub sides: Sides,
    pub batch: usize,
    /// Of the activations, where the term takes them in slices.
    pub slices: usize,
    /// In the place of the term's own.
    pub parameters: Option<&'a Parameters<'a>>,
}

/// Where gradients are taken: a product's input, and the gradient of its output.
pub(super) struct Backward<'a> {
    pub sides: Sides,
    pub parameters: &'a Parameters<'a>,
    pub x: Inputs<'a>,
    pub g: Inputs<'a>,
}

impl<'a> Backward<'a> {
    /// What the gradient of the input is the product of.
    fn reversed(&self) -> (Product<'a>, &Inputs<'a>) {
        let (sides, batch) = (self.sides.reversed(), self.g.rows.batch);
        // With parameters of their own all terms take floats.
        (Product { sides, batch, slices: 0, parameters: Some(self.parameters) }, &self.g)
    }

    /// What lies on the matrix's columns, and what on its rows.
    pub(in crate::cpu) fn on_matrix(&self) -> (&Inputs<'a>, &Inputs<'a>) {
        if self.sides.is_transposed() { (&self.g, &self.x) } else { (&self.x, &self.g) }
    }
}

/// One row of a block row, as terms of either domain see it.
pub(super) struct BlockRow<'a> {
    /// The row in the block.
    pub index: usize,
    /// What it is a combination of: the weight of each row of coefficients.
    pub weights: Input<'a>,
}

/// Forms in which terms read their input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Forms {
    /// In F32.
    pub floats: bool,
    /// In F32, sixteen rows in the lanes of a register.
    pub lanes: bool,
    /// As so many int8 slices.
    pub slices: usize,
}

impl Forms {
    pub(super) const FLOATS: Self = Self { floats: true, lanes: false, slices: 0 };
    pub(super) const LANES: Self = Self { floats: true, lanes: true, slices: 0 };

    pub(super) fn slices(slices: usize) -> Self {
        Self { slices, ..Self::default() }
    }
}

impl BitOr for Forms {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self {
            floats: self.floats | other.floats,
            lanes: self.lanes | other.lanes,
            slices: self.slices.max(other.slices),
        }
    }
}

/// What the items of a product have in common, kept from one product to the next.
#[derive(Default)]
pub(super) struct Room {
    sums: Vec<RowSums>,
    done: Vec<AtomicUsize>,
}

/// [`Room`], which several threads use.
pub(super) struct SharedRoom<'r> {
    /// Sums that are added up.
    sums: Shared<'r, RowSums>,
    /// For each place that several items add to, how many of them are done.
    done: &'r [AtomicUsize],
}

impl Room {
    /// So many sums, and places where nothing is done.
    fn share(&mut self, sums: usize, places: usize) -> SharedRoom<'_> {
        if self.sums.len() < sums {
            self.sums.resize(sums, RowSums::ZERO);
        }
        self.done.clear();
        self.done.resize_with(places, AtomicUsize::default);
        SharedRoom { sums: Shared::new(&mut self.sums[..sums]), done: &self.done }
    }
}

/// The input of a product in the forms that its terms read; the others are not there.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub rows: Rows<'a>,
    pub lanes: &'a InLanes,
    pub slices: &'a Activations,
}

/// The parameters of a term.
pub(super) struct Parameters<'a> {
    values: &'a [f32],
    /// Where each block's begin; one more than there are blocks.
    starts: Vec<usize>,
}

impl<'a> Parameters<'a> {
    /// The first of `values` are the term's.
    pub(super) fn new(term: &dyn PackedTerm, layout: Layout, values: &'a [f32]) -> Self {
        let mut starts = vec![0];
        let mut end = 0;
        for block in layout.iter() {
            end += term.parameters_in(block);
            starts.push(end);
        }
        Self { values: &values[..end], starts }
    }

    /// All of them.
    pub(super) fn values(&self) -> &'a [f32] {
        self.values
    }

    /// Those of a block.
    pub(super) fn of(&self, block: Block) -> &'a [f32] {
        &self.values[self.range(block)]
    }

    /// Where those of a block lie.
    pub(super) fn range(&self, block: Block) -> std::ops::Range<usize> {
        self.starts[block.index]..self.starts[block.index + 1]
    }
}

thread_local! {
    /// Sums of one output block.
    static BLOCK_SUMS: RefCell<Vec<f32>> = RefCell::default();
}

/// Adds a product to `out` (`batch x outputs`), output block by output block; `add` adds a block's share to its
/// `batch x outputs of the block`.
fn add_blockwise(
    exec: Exec,
    sides: Sides,
    x: Rows,
    out: &mut [f32],
    add: &(dyn Fn(Block, Input, &mut [f32]) + Sync),
) {
    let out_len = sides.output().elements();
    let out = Shared::new(out);
    exec.pool.run(sides.output().blocks(), &|range| {
        BLOCK_SUMS.with_borrow_mut(|acc| {
            for index in range {
                let outputs = sides.output().range(index);
                acc.clear();
                acc.resize(x.batch * outputs.len(), 0.0);
                for k in 0..sides.input().blocks() {
                    let block = sides.block(index, k);
                    let values = &x.values[sides.inputs_of(block).start..];
                    add(block, Input { values, stride: x.len }, acc);
                }
                for (row, acc) in acc.chunks_exact(outputs.len()).enumerate() {
                    let start = row * out_len + outputs.start;
                    // SAFETY: an output block belongs to one item.
                    let out = unsafe { out.part(start..start + outputs.len()) };
                    out.iter_mut().zip(acc).for_each(|(out, acc)| *out += acc);
                }
            }
        });
    });
}
