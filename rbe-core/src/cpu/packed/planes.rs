//! Products with the planes term: integer dot products of codes and int8 slices, or dense ones of reconstructed blocks.

use super::{Backward, BlockRow, Forms, Inputs, PackedTerm, Product, SharedRoom, add_blockwise};
use crate::codec::Block;
use crate::codec::signs::Side;
use crate::codec::term::planes::ScaleGroup;
use crate::cpu::exec::Exec;
use crate::cpu::kernels::{CodeTile, Kernels};
use crate::cpu::layout::Activations;
use crate::cpu::layout::RowSums;
use crate::cpu::layout::planes::{Line, PackedPlanes, QUADS, TILE_COLS, TILE_ROWS, row_tiles};
use crate::cpu::pool::Shared;
use crate::cpu::product::dense::{self, DenseTerm, Groups};
use std::ops::Range;

/// Rows whose sums one thread holds at a time: 4 KiB, beside a row tile's codes in the first cache.
const BATCH_TILE: usize = 64;

impl PackedTerm for PackedPlanes {
    fn bytes(&self) -> usize {
        PackedPlanes::bytes(self)
    }

    fn parameters_in(&self, block: Block) -> usize {
        self.group().scales_in(block)
    }

    fn reads(&self, _: &Kernels, product: &Product) -> Forms {
        match dense::is_of_integers(product) {
            true => Forms::slices(product.slices),
            false => Forms::FLOATS,
        }
    }

    fn cost(&self, kernels: &Kernels, product: &Product) -> f32 {
        let each = if self.has_long_codes() { kernels.panel_cost().long_codes } else { 1.0 };
        each * self.reads(kernels, product).slices as f32
    }

    fn add_product(&self, exec: Exec, product: &Product, x: &Inputs, out: &mut [f32]) {
        if dense::is_best(product) {
            dense::add_product(exec, self, product, x.rows, out);
        } else {
            add_blockwise(exec, product.sides, x.rows, out, &|block, input, acc| {
                exec.kernels.planes_transposed(self, block, input, acc);
            });
        }
    }

    /// Row tiles, counted over all blocks.
    fn items(&self, product: &Product) -> Option<usize> {
        dense::is_of_integers(product).then(|| self.layout().rows().div_ceil(TILE_ROWS))
    }

    unsafe fn add_items(
        &self,
        kernels: &Kernels,
        product: &Product,
        x: &Inputs,
        _: &SharedRoom,
        out: &Shared<f32>,
        items: Range<usize>,
    ) {
        let call = IntegerProduct { kernels, term: self, x: x.slices, product, out };
        // SAFETY: the caller's promise.
        unsafe {
            match product.batch {
                1 => call.add::<1>(items),
                _ => call.add::<BATCH_TILE>(items),
            }
        }
    }

    fn gradients(&self, exec: Exec, at: &Backward, dx: Option<&mut [f32]>, gradient: &mut [f32]) {
        dense::gradients(exec, self, at, dx, gradient);
    }

    fn add_block(&self, kernels: &Kernels, block: Block, out: &mut [f32]) {
        add_tiles(self, kernels, block, false, out);
    }

    fn add_row(&self, kernels: &Kernels, block: Block, row: &BlockRow, out: &mut [f32]) {
        kernels.planes_transposed(self, block, row.weights, out);
    }
}

impl DenseTerm for PackedPlanes {
    fn scales(&self) -> Vec<f32> {
        PackedPlanes::scales(self)
    }

    fn groups(&self, block: Block, prefer: Side) -> Groups {
        match (self.group(), prefer) {
            (ScaleGroup::Row, _) => Groups { side: Side::Rows, size: 1 },
            (ScaleGroup::Block, Side::Rows) => Groups { side: Side::Rows, size: block.height },
            (ScaleGroup::Block, Side::Cols) => Groups { side: Side::Cols, size: block.width },
        }
    }

    fn reconstruct_unscaled(&self, kernels: &Kernels, block: Block, out: &mut [f32]) {
        out.fill(0.0);
        add_tiles(self, kernels, block, true, out);
    }
}

/// Adds the coefficients of a block to `out` (`height x width`), or multiples of steps without these.
fn add_tiles(term: &PackedPlanes, kernels: &Kernels, block: Block, unscaled: bool, out: &mut [f32]) {
    let planes = term.planes(block);
    if planes == 0 {
        return;
    }
    let mut codes = [Line([0; 64]); QUADS];
    for row_tile in 0..row_tiles(block) {
        let scales = match unscaled {
            true => [1.0; TILE_ROWS],
            false => term.half_steps(block, row_tile).values().map(|half_step| 2.0 * half_step),
        };
        let lines = term.row_tile(block, row_tile).chunks_exact(planes.into());
        for (n, lines) in lines.enumerate() {
            kernels.plane_codes(lines, planes, &mut codes);
            let first = n * TILE_COLS;
            let tile = CodeTile {
                codes: &codes,
                bias: 0.5 * f32::from(1u16 << planes) - 0.5,
                scales,
                width: TILE_COLS.min(block.width - first),
                starts: std::array::from_fn(|lane| (row_tile * TILE_ROWS + lane) * block.width),
            };
            kernels.add_codes(&tile, &mut out[first..]);
        }
    }
}

/// A product of integers, whose outputs are `batch x rows` coefficients.
struct IntegerProduct<'a> {
    kernels: &'a Kernels,
    term: &'a PackedPlanes,
    x: &'a Activations,
    product: &'a Product<'a>,
    out: &'a Shared<'a, f32>,
}

impl IntegerProduct<'_> {
    /// The share of some row tiles, counted over all blocks: `AT_ONCE` vectors at a time.
    ///
    /// # Safety
    /// Nobody else adds to the outputs of the same row tiles.
    unsafe fn add<const AT_ONCE: usize>(&self, row_tiles: Range<usize>) {
        let Self { kernels, term, x, product, out } = *self;
        let (layout, batch, rows) = (term.layout(), product.batch, term.layout().rows());
        let mut sums = [RowSums::ZERO; AT_ONCE];
        // All row tiles of some vectors, whose activations and outputs stay in the nearer caches.
        for first in (0..batch).step_by(AT_ONCE) {
            let vectors = first..(first + AT_ONCE).min(batch);
            let sums = &mut sums[..vectors.len()];
            let mut block_row = 0..0;
            let mut i = 0;
            for item in row_tiles.clone() {
                // Every block begins at a multiple of a tile's rows.
                let first_row = item * TILE_ROWS;
                if !block_row.contains(&first_row) {
                    i = layout.row_cut().block_of(first_row);
                    block_row = layout.row_range(i);
                }
                let (row_tile, count) =
                    ((first_row - block_row.start) / TILE_ROWS, TILE_ROWS.min(rows - first_row));
                sums.fill(RowSums::ZERO);
                kernels.planes(term, i, row_tile, x.rows(vectors.clone(), product.slices), sums);
                for (vector, sums) in vectors.clone().zip(&*sums) {
                    let start = vector * rows + first_row;
                    // SAFETY: the rows of a row tile belong to one item, which the caller has.
                    let out = unsafe { out.part(start..start + count) };
                    out.iter_mut().zip(&sums.0).for_each(|(out, sum)| *out += *sum);
                }
            }
        }
    }
}
