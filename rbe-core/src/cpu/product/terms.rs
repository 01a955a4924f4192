//! The terms' shares of a product, in the coefficient domain.

use super::super::activations::Activations;
use super::super::kernels::{Input, Kernels, RowSums};
use super::super::loaded::{Loaded, PackedMatrix};
use super::super::packed::planes::{PackedPlanes, TILE_ROWS};
use super::super::packed::trellis::{PackedTrellis, Packing};
use super::super::pool::{Pool, Shared};
use std::cell::RefCell;

/// Vectors whose sums one thread holds at a time: 4 KiB, beside a row tile's codes in the first cache.
const BATCH_TILE: usize = 64;

/// Vectors for which a scale group is decoded once: their sums over a block row stay in the second cache.
const GROUP_BATCH_TILE: usize = 256;
/// Vectors for which it is worth to decode a scale group again.
const DECODE_WORTH_VECTORS: usize = 32;
/// Items that keep all threads busy to the end.
const ENOUGH_ITEMS: usize = 16;

thread_local! {
    /// Sums of one output block.
    static BLOCK_SUMS: RefCell<Vec<f32>> = RefCell::default();
}

/// Adds a planes term's share to `out` (`batch x rows`, coefficients): row tile by row tile.
pub(super) fn planes(
    kernels: &Kernels,
    tiles: &PackedPlanes,
    x: &Activations,
    batch: usize,
    out: &mut [f32],
    pool: &dyn Pool,
) {
    let layout = tiles.layout();
    let rows = layout.rows();
    let out = Shared::new(out);
    // Every block begins at a multiple of a tile's rows.
    pool.run(rows.div_ceil(TILE_ROWS), &|range| {
        let mut sums = [RowSums::ZERO; BATCH_TILE];
        for item in range {
            let first_row = item * TILE_ROWS;
            let count = TILE_ROWS.min(rows - first_row);
            let i = layout.row_cut().block_of(first_row);
            let row_tile = (first_row - layout.row_range(i).start) / TILE_ROWS;
            for first in (0..batch).step_by(BATCH_TILE) {
                let range = first..(first + BATCH_TILE).min(batch);
                let sums = &mut sums[..range.len()];
                sums.fill(RowSums::ZERO);
                kernels.planes(tiles, i, row_tile, x.rows(range.clone()), sums);
                for (vector, sums) in range.zip(sums) {
                    let start = vector * rows + first_row;
                    // SAFETY: the rows of a row tile belong to one item.
                    let out = unsafe { out.part(start..start + count) };
                    out.iter_mut().zip(&sums.0).for_each(|(out, sum)| *out += *sum);
                }
            }
        }
    });
}

/// Adds a trellis term's share to `out` (`batch x rows`, coefficients): block row by block row, each scale group of
/// columns decoded once for all vectors.
///
/// Where there are few block rows, their vectors or else their blocks are shared out too. How depends on the shape
/// alone, so the sums are the same on any pool.
pub(super) fn trellis(
    kernels: &Kernels,
    term: &PackedTrellis,
    x: &Activations,
    batch: usize,
    partial: &mut Vec<RowSums>,
    out: &mut [f32],
    pool: &dyn Pool,
) {
    let layout = term.layout();
    let (rows, blocks) = (layout.rows(), layout.block_cols());
    let wanted = ENOUGH_ITEMS.div_ceil(layout.block_rows());
    let vector_parts = wanted.min(batch / DECODE_WORTH_VECTORS).max(batch.div_ceil(GROUP_BATCH_TILE)).max(1);
    let part_vectors = batch.div_ceil(vector_parts);
    let column_parts = (wanted / vector_parts).clamp(1, blocks);
    let items = layout.block_rows() * vector_parts * column_parts;
    let tiles = Packing::new(layout.row_cut().longest()).tiles();
    let stride = part_vectors * tiles;
    partial.resize(items * stride, RowSums::ZERO);
    let sums_of = |item: usize| {
        let (i, part) = (item / (vector_parts * column_parts), item / column_parts % vector_parts);
        let batch = (part * part_vectors).min(batch)..((part + 1) * part_vectors).min(batch);
        (i, batch, Packing::new(layout.row_range(i).len()))
    };
    let sums = Shared::new(partial);
    pool.run(items, &|range| {
        for item in range {
            let (i, batch, packing) = sums_of(item);
            let part = item % column_parts;
            let blocks = part * blocks / column_parts..(part + 1) * blocks / column_parts;
            // SAFETY: each item has sums of its own.
            let sums = unsafe { sums.part(item * stride..item * stride + batch.len() * packing.tiles()) };
            sums.fill(RowSums::ZERO);
            if !batch.is_empty() {
                kernels.trellis(term, i, blocks, x.rows(batch), sums);
            }
        }
    });
    let (sums, out) = (&*partial, Shared::new(out));
    pool.run(layout.block_rows(), &|range| {
        for item in range.start * vector_parts * column_parts..range.end * vector_parts * column_parts {
            let (i, batch, packing) = sums_of(item);
            let sums = sums[item * stride..].chunks_exact(packing.tiles());
            for (vector, sums) in batch.zip(sums) {
                let place = layout.row_range(i);
                // SAFETY: a block row's rows belong to one item.
                let out = unsafe { out.part(vector * rows + place.start..vector * rows + place.end) };
                for (tile, sums) in sums.iter().enumerate() {
                    for (lane, sum) in sums.0.iter().enumerate() {
                        if let Some(out) = out.get_mut(packing.row(tile, lane)) {
                            *out += sum;
                        }
                    }
                }
            }
        }
    });
}

/// Adds a term's share to `out` (`batch x rows`, or `x cols` when transposed), output block by output block.
#[allow(clippy::too_many_arguments)]
pub(super) fn accumulate(
    kernels: &Kernels,
    matrix: &PackedMatrix,
    term: &Loaded,
    transposed: bool,
    spectrum: &[f32],
    batch: usize,
    out: &mut [f32],
    pool: &dyn Pool,
) {
    let layout = matrix.layout();
    let (in_blocks, out_blocks) = if transposed {
        (layout.block_rows(), layout.block_cols())
    } else {
        (layout.block_cols(), layout.block_rows())
    };
    let (in_len, out_len) = (spectrum.len() / batch, out.len() / batch);
    let out = Shared::new(out);
    pool.run(out_blocks, &|range| {
        BLOCK_SUMS.with_borrow_mut(|acc| {
            for index in range {
                let columns = if transposed { layout.col_range(index) } else { layout.row_range(index) };
                acc.clear();
                acc.resize(batch * columns.len(), 0.0);
                for k in 0..in_blocks {
                    let block =
                        if transposed { layout.block_at(k, index) } else { layout.block_at(index, k) };
                    let first = if transposed { block.row } else { block.col };
                    let values = &spectrum[first..];
                    let input = Input { values, stride: in_len };
                    match term {
                        Loaded::Sparse(slices) if transposed => {
                            kernels.sparse_transposed(slices, block, input, acc)
                        }
                        Loaded::Sparse(slices) => kernels.sparse(slices, block, input, acc),
                        Loaded::Trellis(trellis) => kernels.trellis_transposed(trellis, block, input, acc),
                        Loaded::Planes(tiles) => kernels.planes_transposed(tiles, block, input, acc),
                        Loaded::Basis(_) => {}
                    }
                }
                for (vector, acc) in acc.chunks_exact(columns.len()).enumerate() {
                    let start = vector * out_len + columns.start;
                    // SAFETY: an output block belongs to one item.
                    let out = unsafe { out.part(start..start + columns.len()) };
                    out.iter_mut().zip(acc).for_each(|(out, acc)| *out += acc);
                }
            }
        });
    });
}
