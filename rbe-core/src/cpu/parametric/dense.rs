//! Terms that have every coefficient: a tile at a time without its scales, then dense products.
//!
//! For vectors `u` on the side of the columns and `v` on
//! that of the rows, all in the coefficient domain, a tile `U` without scales gives
//!
//! ```text
//!     P = v U  (vectors x width)    or    P = u U'  (vectors x height)
//! ```
//!
//! Where the scales divide the side that `P` lies on (scale groups the columns, row scales the rows; a block's one scale
//! either), `P` holds both what a scale's gradient is made of and, times the scale, the product itself.

use super::super::gemm::{Strided, Write, multiply};
use super::super::kernels::{EDGE, Kernels};
use super::super::loaded::Loaded;
use super::super::packed::planes::row_tiles;
use super::super::pool::{Pool, Shared};
use super::{BATCH_TILE, Part};
use crate::codec::term::planes::ScaleGroup;
use crate::codec::term::trellis::GROUP_COLS;
use crate::codec::{Block, Layout};
use std::ops::Range;

/// A side of a tile.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Rows,
    Cols,
}

/// How a term's scales divide a tile: the side, and how many of its elements share one.
fn groups(term: &Loaded, block: Block, prefer: Side) -> (Side, usize) {
    match term {
        Loaded::Planes(tiles) if tiles.group() == ScaleGroup::Row => (Side::Rows, 1),
        Loaded::Planes(_) if prefer == Side::Rows => (Side::Rows, block.height),
        Loaded::Planes(_) => (Side::Cols, block.width),
        _ => (Side::Cols, GROUP_COLS),
    }
}

/// Writes a tile without scales.
fn unscaled(kernels: &Kernels, term: &Loaded, block: Block, tile: &mut [f32]) {
    tile.fill(0.0);
    match term {
        Loaded::Planes(tiles) if tiles.planes(block) == 0 => {}
        Loaded::Planes(tiles) => {
            let offset = 0.5 - 0.5 * f32::from(1u16 << tiles.planes(block));
            for row_tile in 0..row_tiles(block) {
                tiles.codes(block, row_tile, |row, col, code| {
                    tile[row * block.width + col] = f32::from(code) + offset;
                });
            }
        }
        Loaded::Trellis(scale_groups) => {
            let mut rows = [[0.0; GROUP_COLS]; EDGE];
            for (first, mut scale_group) in scale_groups.block_groups(block) {
                scale_group.scale = 1.0;
                kernels.trellis_rows(&scale_group, &mut rows);
                for (out, row) in tile.chunks_exact_mut(block.width).zip(&rows) {
                    out[first..first + scale_group.width].copy_from_slice(&row[..scale_group.width]);
                }
            }
        }
        Loaded::Basis(_) | Loaded::Sparse(_) => {
            unreachable!("only planes and trellis have every coefficient")
        }
    }
}

/// Multiplies every group of a tile by its scale.
fn scale(tile: &mut [f32], block: Block, (side, size): (Side, usize), scales: &[f32]) {
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

/// The blocks that one output block is made of, and where their tiles begin in a buffer.
fn stripe(layout: Layout, side: Side, index: usize) -> (Vec<Block>, Vec<usize>) {
    let blocks: Vec<Block> = match side {
        Side::Rows => (0..layout.block_cols()).map(|j| layout.block_at(index, j)).collect(),
        Side::Cols => (0..layout.block_rows()).map(|i| layout.block_at(i, index)).collect(),
    };
    let mut starts = vec![0];
    blocks.iter().for_each(|block| starts.push(starts[starts.len() - 1] + block.len()));
    (blocks, starts)
}

/// Calls `f` with every block of a stripe and its tile, on all threads.
fn fill(
    tiles: &mut [f32],
    (blocks, starts): &(Vec<Block>, Vec<usize>),
    pool: &dyn Pool,
    f: &(dyn Fn(Block, &mut [f32]) + Sync),
) {
    let tiles = Shared::new(tiles);
    pool.run(blocks.len(), &|range| {
        for n in range {
            // SAFETY: each tile is one item.
            f(blocks[n], unsafe { tiles.part(starts[n]..starts[n + 1]) });
        }
    });
}

/// Ranges of vectors, one an item.
fn chunks(batch: usize) -> impl Fn(usize) -> Range<usize> {
    move |chunk| chunk * BATCH_TILE..((chunk + 1) * BATCH_TILE).min(batch)
}

/// A tile as the factor from the other side to `side`.
fn factor(tile: &[f32], block: Block, side: Side) -> Strided<'_> {
    let rows = Strided::new(tile, block.height, block.width, block.width);
    if side == Side::Rows { rows.t() } else { rows }
}

/// A block's part of some vectors on one side.
fn segment<'a>(
    layout: Layout,
    values: &'a [f32],
    batch: &Range<usize>,
    block: Block,
    side: Side,
) -> Strided<'a> {
    let (len, start, count) = match side {
        Side::Rows => (layout.rows(), block.row, block.height),
        Side::Cols => (layout.cols(), block.col, block.width),
    };
    Strided::new(&values[batch.start * len + start..], batch.len(), count, len)
}

fn other(side: Side) -> Side {
    if side == Side::Rows { Side::Cols } else { Side::Rows }
}

fn out_side(layout: Layout, transposed: bool) -> (Side, usize, usize) {
    if transposed {
        (Side::Cols, layout.block_cols(), layout.cols())
    } else {
        (Side::Rows, layout.block_rows(), layout.rows())
    }
}

/// Adds the term's share to `out`, all in the coefficient domain.
#[allow(clippy::too_many_arguments)]
pub(super) fn product(
    kernels: &Kernels,
    part: &Part,
    layout: Layout,
    transposed: bool,
    x: &[f32],
    batch: usize,
    out: &mut [f32],
    pool: &dyn Pool,
) {
    let (side, out_blocks, out_len) = out_side(layout, transposed);
    let out = Shared::new(out);
    let mut tiles = Vec::new();
    for index in 0..out_blocks {
        let stripe = stripe(layout, side, index);
        tiles.resize(stripe.1[stripe.0.len()], 0.0);
        fill(&mut tiles, &stripe, pool, &|block, tile| {
            unscaled(kernels, part.term, block, tile);
            scale(tile, block, groups(part.term, block, side), part.of(block));
        });
        let chunk = chunks(batch);
        pool.run(batch.div_ceil(BATCH_TILE), &|range| {
            for range in range.map(&chunk) {
                // SAFETY: each range of vectors is one item.
                let out = unsafe { out.part(range.start * out_len..range.end * out_len) };
                for (block, start) in stripe.0.iter().zip(&stripe.1) {
                    let out_start = if side == Side::Rows { block.row } else { block.col };
                    let x = segment(layout, x, &range, *block, other(side));
                    let tile = factor(&tiles[*start..], *block, side);
                    multiply(&mut out[out_start..], out_len, x, tile, Write::Add);
                }
            }
        });
    }
}

/// The gradients of `v' S u`, summed over all vectors: that of the input's spectrum is added to `dx`, those of the
/// scales to `gradient`.
#[allow(clippy::too_many_arguments)]
pub(super) fn backward(
    kernels: &Kernels,
    part: &Part,
    layout: Layout,
    transposed: bool,
    u: &[f32],
    v: &[f32],
    batch: usize,
    dx: Option<&mut [f32]>,
    gradient: &mut [f32],
    pool: &dyn Pool,
) {
    // The input's gradient lies on the side that the output does not.
    let (side, dx_blocks, dx_len) = out_side(layout, !transposed);
    let shared_dx = dx.map(Shared::new);
    let on = |side: Side| if side == Side::Rows { v } else { u };
    let (mut tiles, mut scaled) = (Vec::new(), Vec::new());
    for index in 0..dx_blocks {
        let stripe = stripe(layout, side, index);
        let (blocks, starts) = &stripe;
        tiles.resize(starts[blocks.len()], 0.0);
        fill(&mut tiles, &stripe, pool, &|block, tile| unscaled(kernels, part.term, block, tile));
        let aligned = groups(part.term, blocks[0], side).0 == side;
        if !aligned && shared_dx.is_some() {
            scaled.clone_from(&tiles);
            fill(&mut scaled, &stripe, pool, &|block, tile| {
                scale(tile, block, groups(part.term, block, side), part.of(block));
            });
        }
        // Every chunk's share of the gradient, added up in their order.
        let firsts: Vec<usize> = blocks
            .iter()
            .scan(0, |end, block| Some(std::mem::replace(end, *end + part.of(*block).len())))
            .collect();
        let count: usize = blocks.iter().map(|block| part.of(*block).len()).sum();
        let chunk_count = batch.div_ceil(BATCH_TILE);
        let mut shares = vec![0.0; chunk_count * count];
        let shared_shares = Shared::new(&mut shares);
        let chunk = chunks(batch);
        pool.run(chunk_count, &|items| {
            let mut product = Vec::new();
            for item in items {
                let range = chunk(item);
                // SAFETY: here and below, each range of vectors is one item.
                let shares = unsafe { shared_shares.part(item * count..(item + 1) * count) };
                let mut dx = shared_dx
                    .as_ref()
                    // SAFETY: as above.
                    .map(|dx| unsafe { dx.part(range.start * dx_len..range.end * dx_len) });
                for (n, block) in blocks.iter().enumerate() {
                    let (group_side, size) = groups(part.term, *block, side);
                    let (scales, shares) = (part.of(*block), &mut shares[firsts[n]..]);
                    let tile = factor(&tiles[starts[n]..], *block, group_side);
                    let from = segment(layout, on(other(group_side)), &range, *block, other(group_side));
                    let with = segment(layout, on(group_side), &range, *block, group_side);
                    product.resize(range.len() * with.cols, 0.0);
                    multiply(&mut product, with.cols, from, tile, Write::Over);
                    let dx_start = if side == Side::Rows { block.row } else { block.col };
                    for (row, product) in product.chunks_exact(with.cols).enumerate() {
                        let with = &with.values[row * with.row_stride..][..with.cols];
                        let groups = product.chunks(size).zip(with.chunks(size)).zip(shares.iter_mut());
                        for ((product, with), share) in groups {
                            *share += product.iter().zip(with).map(|(a, b)| a * b).sum::<f32>();
                        }
                        if let Some(dx) = dx.as_deref_mut().filter(|_| aligned) {
                            let dx = &mut dx[row * dx_len + dx_start..];
                            let groups = product.chunks(size).zip(dx.chunks_mut(size)).zip(scales);
                            for ((product, dx), scale) in groups {
                                dx.iter_mut().zip(product).for_each(|(dx, product)| *dx += scale * product);
                            }
                        }
                    }
                    if let Some(dx) = dx.as_deref_mut().filter(|_| !aligned) {
                        let tile = factor(&scaled[starts[n]..], *block, side);
                        let from = segment(layout, on(other(side)), &range, *block, other(side));
                        multiply(&mut dx[dx_start..], dx_len, from, tile, Write::Add);
                    }
                }
            }
        });
        for (block, first) in blocks.iter().zip(&firsts) {
            let own = &mut gradient[part.starts[block.index]..part.starts[block.index + 1]];
            for shares in shares.chunks_exact(count.max(1)) {
                own.iter_mut().zip(&shares[*first..]).for_each(|(own, share)| *own += share);
            }
        }
    }
}
