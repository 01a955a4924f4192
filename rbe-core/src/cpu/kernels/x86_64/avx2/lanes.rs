//! Sixteen rows to sixteen lanes and back, in four squares of eight.

use super::isa::Avx2;
use crate::cpu::kernels::generic::strip::{OCTET, Octets};
use crate::cpu::kernels::x86_64::frame::align_frame;
use crate::cpu::layout::{LANES, Lanes};

/// The squares of eight that a square of sixteen has, each by its first row and column.
const SQUARES: [[usize; 2]; 4] = [[0, 0], [0, OCTET], [OCTET, 0], [OCTET, OCTET]];

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn rows_to_lanes(rows: &[f32], stride: usize, lanes: &mut [Lanes; LANES]) {
    align_frame();
    let isa = Avx2::new();
    for [first_row, first_col] in SQUARES {
        let mut square = [isa.splat(0.0); OCTET];
        for (n, row) in square.iter_mut().enumerate() {
            *row = isa.load(octet(&rows[(first_row + n) * stride + first_col..]));
        }
        for (column, lanes) in isa.transpose(square).into_iter().zip(&mut lanes[first_col..]) {
            isa.store(column, octet_mut(&mut lanes.0[first_row..]));
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn lanes_to_rows(lanes: &[Lanes; LANES], rows: &mut [f32], stride: usize) {
    align_frame();
    let isa = Avx2::new();
    for [first_row, first_col] in SQUARES {
        let mut square = [isa.splat(0.0); OCTET];
        for (column, lanes) in square.iter_mut().zip(&lanes[first_col..]) {
            *column = isa.load(octet(&lanes.0[first_row..]));
        }
        for (n, row) in isa.transpose(square).into_iter().enumerate() {
            isa.store(row, octet_mut(&mut rows[(first_row + n) * stride + first_col..]));
        }
    }
}

/// The first eight.
#[inline(always)]
fn octet(x: &[f32]) -> &[f32; OCTET] {
    x.first_chunk().unwrap_or_else(|| unreachable!("squares of eight"))
}

/// The first eight, to be written.
#[inline(always)]
fn octet_mut(x: &mut [f32]) -> &mut [f32; OCTET] {
    x.first_chunk_mut().unwrap_or_else(|| unreachable!("squares of eight"))
}
