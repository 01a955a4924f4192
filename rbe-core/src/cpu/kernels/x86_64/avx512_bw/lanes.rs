//! Sixteen rows to sixteen lanes and back, in one square of registers.

use crate::cpu::layout::{LANES, Lanes};
use std::arch::x86_64::*;

#[target_feature(enable = "avx512f")]
pub(super) fn rows_to_lanes(rows: &[f32], stride: usize, lanes: &mut [Lanes; LANES]) {
    assert!(rows.len() >= (LANES - 1) * stride + LANES);
    let mut registers = [_mm512_setzero_ps(); LANES];
    for (n, register) in registers.iter_mut().enumerate() {
        // SAFETY: sixteen elements inside `rows`, by the assertion above.
        *register = unsafe { _mm512_loadu_ps(rows.as_ptr().add(n * stride)) };
    }
    for (lanes, column) in lanes.iter_mut().zip(transpose(registers)) {
        // SAFETY: lanes are 64 aligned bytes.
        unsafe { _mm512_store_ps(lanes.0.as_mut_ptr(), column) };
    }
}

#[target_feature(enable = "avx512f")]
pub(super) fn lanes_to_rows(lanes: &[Lanes; LANES], rows: &mut [f32], stride: usize) {
    assert!(rows.len() >= (LANES - 1) * stride + LANES);
    let mut registers = [_mm512_setzero_ps(); LANES];
    for (register, lanes) in registers.iter_mut().zip(lanes) {
        // SAFETY: lanes are 64 aligned bytes.
        *register = unsafe { _mm512_load_ps(lanes.0.as_ptr()) };
    }
    for (n, column) in transpose(registers).into_iter().enumerate() {
        // SAFETY: sixteen elements inside `rows`, by the assertion above.
        unsafe { _mm512_storeu_ps(rows.as_mut_ptr().add(n * stride), column) };
    }
}

/// `out[b][a] = in[a][b]`: pairs of rows, of two, of four, of eight.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose(rows: [__m512; LANES]) -> [__m512; LANES] {
    // Elements of rows 4a..4a+4 side by side in each 128-bit quarter: column 4q + n of quarter q.
    let mut quads = [_mm512_setzero_ps(); 16];
    for a in 0..4 {
        let [r0, r1, r2, r3] = [rows[4 * a], rows[4 * a + 1], rows[4 * a + 2], rows[4 * a + 3]];
        let (low01, high01) = (_mm512_unpacklo_ps(r0, r1), _mm512_unpackhi_ps(r0, r1));
        let (low23, high23) = (_mm512_unpacklo_ps(r2, r3), _mm512_unpackhi_ps(r2, r3));
        let [low01, high01, low23, high23] = [low01, high01, low23, high23].map(|r| _mm512_castps_pd(r));
        quads[4 * a] = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23));
        quads[4 * a + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
        quads[4 * a + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
        quads[4 * a + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
    }
    let mut out = rows;
    for n in 0..4 {
        let [q0, q1, q2, q3] = [quads[n], quads[4 + n], quads[8 + n], quads[12 + n]];
        let (even01, odd01) = (_mm512_shuffle_f32x4::<0x88>(q0, q1), _mm512_shuffle_f32x4::<0xdd>(q0, q1));
        let (even23, odd23) = (_mm512_shuffle_f32x4::<0x88>(q2, q3), _mm512_shuffle_f32x4::<0xdd>(q2, q3));
        let columns = [
            _mm512_shuffle_f32x4::<0x88>(even01, even23),
            _mm512_shuffle_f32x4::<0x88>(odd01, odd23),
            _mm512_shuffle_f32x4::<0xdd>(even01, even23),
            _mm512_shuffle_f32x4::<0xdd>(odd01, odd23),
        ];
        for (quarter, column) in columns.into_iter().enumerate() {
            out[4 * quarter + n] = column;
        }
    }
    out
}
