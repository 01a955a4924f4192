//! Codes to the coefficients that they are, row by row.

use crate::codec::term::trellis::GROUP_COLS;
use crate::cpu::layout::planes::{Line, QUAD, QUADS, TILE_COLS, TILE_ROWS, unpack};

/// A tile's codes, quad by quad, and what becomes of them: `(code - bias) scale`.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct CodeTile<'a> {
    pub codes: &'a [Line; QUADS],
    pub bias: f32,
    /// Of each lane.
    pub scales: [f32; TILE_ROWS],
    /// Columns, at most 32.
    pub width: usize,
    /// Where each lane's row begins in what is written; none where that is not a number of it.
    pub starts: [usize; TILE_ROWS],
}

const _: () = assert!(GROUP_COLS == TILE_COLS);

/// The codes of a tile of so many planes.
#[inline(always)]
pub(in crate::cpu) fn plane_codes(tile: &[Line], planes: u8, codes: &mut [Line; QUADS]) {
    *codes = unpack(tile, planes).map(Line);
}

/// Adds a tile's coefficients to `out`.
#[inline(always)]
pub(in crate::cpu) fn add_codes(tile: &CodeTile, out: &mut [f32]) {
    for (lane, (start, scale)) in tile.starts.iter().zip(tile.scales).enumerate() {
        let Some(out) = out.get_mut(*start..).and_then(|out| out.get_mut(..tile.width)) else { continue };
        let mut codes = [[0; QUAD]; QUADS];
        for (four, line) in codes.iter_mut().zip(tile.codes) {
            *four = line.0.as_chunks().0[lane];
        }
        let codes = codes.as_flattened();
        match out.as_chunks_mut::<TILE_COLS>().0 {
            [whole] => add_row(codes, tile.bias, scale, whole),
            _ => add_row(codes, tile.bias, scale, out),
        }
    }
}

#[inline(always)]
fn add_row(codes: &[u8], bias: f32, scale: f32, out: &mut [f32]) {
    for (out, code) in out.iter_mut().zip(codes) {
        *out += (f32::from(*code) - bias) * scale;
    }
}
