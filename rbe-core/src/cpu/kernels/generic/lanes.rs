//! Sixteen rows to the lanes of registers and back.

use crate::cpu::layout::{LANES, Lanes};

/// Sixteen elements of each of sixteen rows to lanes.
#[inline(always)]
pub(in crate::cpu) fn rows_to_lanes(rows: &[f32], stride: usize, lanes: &mut [Lanes; LANES]) {
    for (lane, row) in rows.chunks(stride).take(LANES).enumerate() {
        for (lanes, value) in lanes.iter_mut().zip(&row[..LANES]) {
            lanes.0[lane] = *value;
        }
    }
}

/// Lanes back to rows.
#[inline(always)]
pub(in crate::cpu) fn lanes_to_rows(lanes: &[Lanes; LANES], rows: &mut [f32], stride: usize) {
    for (lane, row) in rows.chunks_mut(stride).take(LANES).enumerate() {
        for (lanes, value) in lanes.iter().zip(&mut row[..LANES]) {
            *value = lanes.0[lane];
        }
    }
}
