//! From the tiles of a trellis' block row to its rows.
//!
//! Lanes of a tile are periods, and rows of a period are in different tiles ([`Packing::place`]): eight rows of eight periods at a time are
//! exchanged in registers.

use super::strip::{OCTET, Octets};
use crate::cpu::layout::RowSums;
use crate::cpu::layout::planes::TILE_ROWS;
use crate::cpu::layout::trellis::{PERIOD, Packing};

/// A block row's sums over some of the columns each: one part's tiles begin `stride` after another's.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct TileParts<'a> {
    pub packing: Packing,
    pub sums: &'a [RowSums],
    pub stride: usize,
    pub parts: usize,
}

/// Adds up the parts, and adds that to the rows.
#[inline(always)]
pub(in crate::cpu) fn add_tiles<I: Octets>(isa: I, tiles: TileParts, out: &mut [f32]) {
    match tiles.packing.groups() {
        1 if tiles.packing.is_full() => add_octets::<I, 1>(isa, tiles, out),
        2 if tiles.packing.is_full() => add_octets::<I, 2>(isa, tiles, out),
        _ => add_one_by_one(tiles, out),
    }
}

/// Columns that fill their lanes, of which a register has so many `GROUPS` side by side.
#[inline(always)]
fn add_octets<I: Octets, const GROUPS: usize>(isa: I, tiles: TileParts, out: &mut [f32]) {
    let TileParts { sums, stride, parts, .. } = tiles;
    let periods = const { TILE_ROWS / GROUPS };
    let (out, _) = out.as_chunks_mut::<PERIOD>();
    let (out, _) = out.as_chunks_mut::<OCTET>();
    assert!(out.len() == periods / OCTET && sums.len() >= (parts - 1) * stride + periods);
    for (eight, out) in out.iter_mut().enumerate() {
        for half in 0..PERIOD / OCTET {
            let rows = std::array::from_fn(|n| {
                let n = half * OCTET + n;
                let (tile, first) = (n / GROUPS, n % GROUPS * periods + eight * OCTET);
                let part = |part: usize| {
                    let lanes = &sums[part * stride + tile].0.as_chunks::<OCTET>().0[first / OCTET];
                    isa.load(lanes)
                };
                (1..parts).fold(part(0), |total, n| isa.add(total, part(n)))
            });
            for (out, rows) in out.iter_mut().zip(isa.transpose(rows)) {
                let out = &mut out.as_chunks_mut::<OCTET>().0[half];
                let sum = isa.add(isa.load(out), rows);
                isa.store(sum, out);
            }
        }
    }
}

/// Columns of any height.
#[inline(always)]
fn add_one_by_one(tiles: TileParts, out: &mut [f32]) {
    let TileParts { packing, sums, stride, parts } = tiles;
    let mut total = [RowSums::ZERO; TILE_ROWS];
    for part in 0..parts {
        for (total, sums) in total.iter_mut().zip(&sums[part * stride..][..packing.tiles()]) {
            total.0.iter_mut().zip(&sums.0).for_each(|(total, sum)| *total += sum);
        }
    }
    for (period, out) in out.chunks_mut(PERIOD).enumerate() {
        for (n, out) in out.iter_mut().enumerate() {
            let (tile, lane) = packing.place(period, n);
            *out += total[tile].0[lane];
        }
    }
}
