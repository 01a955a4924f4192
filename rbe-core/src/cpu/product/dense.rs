//! Terms that have every coefficient: reconstruct a block without its scales, then GEMM.
//!
//! For rows `u` on the side of the columns and `v` on that of the rows, all in the coefficient domain, a block `U` without
//! scales gives
//!
//! ```text
//!     P = v U  (batch x width)    or    P = u U'  (batch x height)
//! ```
//!
//! Where the scales divide the side that `P` lies on (scale groups the columns, row scales the rows; a block's one scale
//! either), `P` holds both what a scale's gradient is made of and, times the scale, the product itself.

use crate::codec::signs::Side;
use crate::codec::{Block, Sides};
use crate::cpu::exec::Exec;
use crate::cpu::gemm::{Strided, Write, multiply};
use crate::cpu::kernels::Kernels;
use crate::cpu::packed::{Backward, PackedTerm, Parameters, Product};
use crate::cpu::pool::Shared;
use crate::cpu::rows::Rows;
use std::ops::Range;

/// Rows from which on a transposed product reconstructs whole blocks for a dense product.
const TRANSPOSED_MIN_BATCH: usize = 16;
/// Rows that one item of work takes.
const BATCH_TILE: usize = 64;

/// How a term's scales divide a block: along which side, and how many of its elements share one.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Groups {
    pub side: Side,
    pub size: usize,
}

/// A term that has every coefficient.
pub(in crate::cpu) trait DenseTerm: PackedTerm {
    /// The scales of all groups, block after block.
    fn scales(&self) -> Vec<f32>;

    /// How the scales divide a block; along the side that is preferred where both do.
    fn groups(&self, block: Block, prefer: Side) -> Groups;

    /// Writes a block's coefficients without their scales, where they are not zero.
    fn reconstruct_unscaled(&self, kernels: &Kernels, block: Block, out: &mut [f32]);
}

/// Whether a dense product takes less time, or is the only one there is.
pub(in crate::cpu) fn is_best(product: &Product) -> bool {
    product.parameters.is_some() || (product.sides.is_transposed() && product.batch >= TRANSPOSED_MIN_BATCH)
}

/// Whether a term that has every coefficient is multiplied as integers, with slices of the activations.
pub(in crate::cpu) fn is_of_integers(product: &Product) -> bool {
    !is_best(product) && !product.sides.is_transposed()
}

/// Multiplies every group of a tile by its scale.
fn scale(tile: &mut [f32], block: Block, Groups { side, size }: Groups, scales: &[f32]) {
    match side {
        Side::Cols => {
            for row in tile.chunks_exact_mut(block.width) {
                for (group, scale) in row.chunks_mut(size).zip(scales) {
                    group.iter_mut().for_each(|value| *value *= scale);
                }
            }
        }
        Side::Rows => {
            for (rows, scale) in tile.chunks_mut(size * block.width).zip(scales) {
                rows.iter_mut().for_each(|value| *value *= scale);
            }
        }
    }
}

/// The blocks that one block of outputs is made of, reconstructed one after another.
struct Panel {
    blocks: Vec<Block>,
    /// Where each block begins in `values`; one more than there are blocks.
    starts: Vec<usize>,
    values: Vec<f32>,
}

impl Panel {
    /// The panel of block `index` of the outputs in memory of another; `write` writes each block over zeros, on all threads.
    fn new(
        exec: Exec,
        sides: Sides,
        index: usize,
        mut values: Vec<f32>,
        write: &(dyn Fn(Block, &mut [f32]) + Sync),
    ) -> Self {
        let blocks: Vec<Block> = (0..sides.input().blocks()).map(|k| sides.block(index, k)).collect();
        let mut starts = vec![0];
        blocks.iter().for_each(|block| starts.push(starts[starts.len() - 1] + block.len()));
        values.resize(starts[blocks.len()], 0.0);
        let mut panel = Self { values, blocks, starts };
        panel.for_each(exec, &|block, values| {
            values.fill(0.0);
            write(block, values);
        });
        panel
    }

    /// Calls `f` with every block and its values, on all threads.
    fn for_each(&mut self, exec: Exec, f: &(dyn Fn(Block, &mut [f32]) + Sync)) {
        let values = Shared::new(&mut self.values);
        exec.pool.run(self.blocks.len(), &|range| {
            for n in range {
                // SAFETY: each block is one item.
                f(self.blocks[n], unsafe { values.part(self.starts[n]..self.starts[n + 1]) });
            }
        });
    }

    /// Block `n` as the factor from the other side to `side`.
    fn factor(&self, n: usize, side: Side) -> Strided<'_> {
        let block = self.blocks[n];
        let rows = Strided::new(&self.values[self.starts[n]..], block.height, block.width, block.width);
        if side == Side::Rows { rows.t() } else { rows }
    }
}

/// The elements of a block on a side.
fn range_on(side: Side, block: Block) -> Range<usize> {
    match side {
        Side::Rows => block.rows(),
        Side::Cols => block.cols(),
    }
}

fn other(side: Side) -> Side {
    if side == Side::Rows { Side::Cols } else { Side::Rows }
}

/// A block's part, on a side, of some rows that are as long as it.
fn segment<'a>(rows: Rows<'a>, batch: &Range<usize>, block: Block, side: Side) -> Strided<'a> {
    let place = range_on(side, block);
    Strided::new(&rows.values[batch.start * rows.len + place.start..], batch.len(), place.len(), rows.len)
}

/// The rows of an item.
fn tile(item: usize, batch: usize) -> Range<usize> {
    item * BATCH_TILE..((item + 1) * BATCH_TILE).min(batch)
}

/// Adds the term's share to `out`, all in the coefficient domain.
pub(in crate::cpu) fn add_product(
    exec: Exec,
    term: &dyn DenseTerm,
    product: &Product,
    x: Rows,
    out: &mut [f32],
) {
    let (own_scales, own);
    let parameters = match product.parameters {
        Some(parameters) => parameters,
        None => {
            own_scales = term.scales();
            own = Parameters::new(term, product.sides.layout(), &own_scales);
            &own
        }
    };
    let sides = product.sides;
    let (side, out_len) = (sides.output_side(), sides.output().elements());
    let out = Shared::new(out);
    let mut memory = Vec::new();
    for index in 0..sides.output().blocks() {
        let panel = Panel::new(exec, sides, index, memory, &|block, values| {
            term.reconstruct_unscaled(exec.kernels, block, values);
            scale(values, block, term.groups(block, side), parameters.of(block));
        });
        exec.pool.run(x.batch.div_ceil(BATCH_TILE), &|items| {
            for batch in items.map(|item| tile(item, x.batch)) {
                // SAFETY: each range of rows is one item.
                let out = unsafe { out.part(batch.start * out_len..batch.end * out_len) };
                for (n, block) in panel.blocks.iter().enumerate() {
                    let x = segment(x, &batch, *block, other(side));
                    let out = &mut out[range_on(side, *block).start..];
                    multiply(out, out_len, x, panel.factor(n, side), Write::Add);
                }
            }
        });
        memory = panel.values;
    }
}

/// Adds the gradients of `v' S u`, summed over the batch: that of the input's spectrum to `dx`, those of the scales to
/// `gradient`.
pub(in crate::cpu) fn gradients(
    exec: Exec,
    term: &dyn DenseTerm,
    at: &Backward,
    dx: Option<&mut [f32]>,
    gradient: &mut [f32],
) {
    // The input's gradient lies on the side that the output does not.
    let sides = at.sides.reversed();
    let dx = dx.map(Shared::new);
    let mut memory = [Vec::new(), Vec::new()];
    for index in 0..sides.output().blocks() {
        let [plain, scaled] = memory;
        let panel = Panel::new(exec, sides, index, plain, &|block, values| {
            term.reconstruct_unscaled(exec.kernels, block, values);
        });
        let own = PanelGradients::new(exec, term, at, panel, dx.is_some().then_some(scaled));
        let count = own.parameters();
        let items = at.x.rows.batch.div_ceil(BATCH_TILE);
        let mut shares = vec![0.0; items * count];
        let shared = Shared::new(&mut shares);
        exec.pool.run(items, &|range| {
            let mut product = Vec::new();
            for item in range {
                let batch = tile(item, at.x.rows.batch);
                // SAFETY: here and below, each range of rows is one item.
                let shares = unsafe { shared.part(item * count..(item + 1) * count) };
                let len = sides.output().elements();
                // SAFETY: as above.
                let mut dx = dx.as_ref().map(|dx| unsafe { dx.part(batch.start * len..batch.end * len) });
                for n in 0..own.panel.blocks.len() {
                    own.add_block(n, &batch, dx.as_deref_mut(), shares, &mut product);
                }
            }
        });
        // Every item's share of the gradient, added up in their order.
        for (block, first) in own.panel.blocks.iter().zip(&own.firsts) {
            let gradient = &mut gradient[at.parameters.range(*block)];
            for shares in shares.chunks_exact(count.max(1)) {
                gradient.iter_mut().zip(&shares[*first..]).for_each(|(own, share)| *own += share);
            }
        }
        memory = [own.panel.values, own.scaled.map_or_else(Vec::new, |scaled| scaled.values)];
    }
}

/// What the gradients of a panel's blocks are made of.
struct PanelGradients<'a> {
    term: &'a dyn DenseTerm,
    at: &'a Backward<'a>,
    /// The side that the input's gradient lies on.
    side: Side,
    /// Without scales.
    panel: Panel,
    /// With them, where they do not divide the input's gradient and that is asked for.
    scaled: Option<Panel>,
    /// Where each block's parameters begin among those of the panel; one more than there are blocks.
    firsts: Vec<usize>,
}

impl<'a> PanelGradients<'a> {
    /// `scaled` is memory, where the input's gradient is asked for.
    fn new(
        exec: Exec,
        term: &'a dyn DenseTerm,
        at: &'a Backward<'a>,
        panel: Panel,
        scaled: Option<Vec<f32>>,
    ) -> Self {
        let side = other(at.sides.output_side());
        let aligned = term.groups(panel.blocks[0], side).side == side;
        let scaled = scaled.filter(|_| !aligned).map(|mut values| {
            values.clone_from(&panel.values);
            let mut scaled = Panel { blocks: panel.blocks.clone(), starts: panel.starts.clone(), values };
            scaled.for_each(exec, &|block, values| {
                scale(values, block, term.groups(block, side), at.parameters.of(block));
            });
            scaled
        });
        let mut firsts = vec![0];
        for block in &panel.blocks {
            firsts.push(firsts[firsts.len() - 1] + at.parameters.of(*block).len());
        }
        Self { term, at, side, panel, scaled, firsts }
    }

    /// Parameters of all blocks.
    fn parameters(&self) -> usize {
        self.firsts[self.panel.blocks.len()]
    }

    /// Rows on a side of the matrix.
    fn on(&self, side: Side) -> Rows<'a> {
        let (u, v) = self.at.on_matrix();
        if side == Side::Rows { v.rows } else { u.rows }
    }

    /// Adds what some rows of the batch make of block `n`; `product` is scratch.
    fn add_block(
        &self,
        n: usize,
        batch: &Range<usize>,
        mut dx: Option<&mut [f32]>,
        shares: &mut [f32],
        product: &mut Vec<f32>,
    ) {
        let (block, side) = (self.panel.blocks[n], self.side);
        let Groups { side: group_side, size } = self.term.groups(block, side);
        let (scales, shares) = (self.at.parameters.of(block), &mut shares[self.firsts[n]..]);
        let from = segment(self.on(other(group_side)), batch, block, other(group_side));
        let with = segment(self.on(group_side), batch, block, group_side);
        product.resize(batch.len() * with.cols, 0.0);
        multiply(product, with.cols, from, self.panel.factor(n, group_side), Write::Over);
        let (dx_start, dx_len) = (range_on(side, block).start, self.on(side).len);
        for (row, product) in product.chunks_exact(with.cols).enumerate() {
            let with = &with.values[row * with.row_stride..][..with.cols];
            let groups = product.chunks(size).zip(with.chunks(size)).zip(shares.iter_mut());
            for ((product, with), share) in groups {
                *share += product.iter().zip(with).map(|(a, b)| a * b).sum::<f32>();
            }
            if let Some(dx) = dx.as_deref_mut().filter(|_| group_side == side) {
                let dx = &mut dx[row * dx_len + dx_start..];
                let groups = product.chunks(size).zip(dx.chunks_mut(size)).zip(scales);
                for ((product, dx), scale) in groups {
                    dx.iter_mut().zip(product).for_each(|(dx, product)| *dx += scale * product);
                }
            }
        }
        if let (Some(dx), Some(scaled)) = (dx, &self.scaled) {
            let from = segment(self.on(other(side)), batch, block, other(side));
            multiply(&mut dx[dx_start..], dx_len, from, scaled.factor(n, side), Write::Add);
        }
    }
}
