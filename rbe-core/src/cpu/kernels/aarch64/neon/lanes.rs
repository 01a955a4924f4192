//! Sixteen rows to sixteen lanes and back, in squares of four.

use crate::cpu::layout::{LANES, Lanes};
use std::arch::aarch64::*;

#[target_feature(enable = "neon")]
pub(super) fn rows_to_lanes(rows: &[f32], stride: usize, lanes: &mut [Lanes; LANES]) {
    assert!(rows.len() >= (LANES - 1) * stride + LANES);
    for row in (0..LANES).step_by(4) {
        for (n, lanes) in lanes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let mut square = [vdupq_n_f32(0.0); 4];
            for (m, register) in square.iter_mut().enumerate() {
                // SAFETY: four elements inside `rows`, by the assertion above.
                *register = unsafe { vld1q_f32(rows.as_ptr().add((row + m) * stride + 4 * n)) };
            }
            for (lanes, column) in lanes.iter_mut().zip(transpose(square)) {
                // SAFETY: four of sixteen elements.
                unsafe { vst1q_f32(lanes.0[row..][..4].as_mut_ptr(), column) };
            }
        }
    }
}

#[target_feature(enable = "neon")]
pub(super) fn lanes_to_rows(lanes: &[Lanes; LANES], rows: &mut [f32], stride: usize) {
    assert!(rows.len() >= (LANES - 1) * stride + LANES);
    for row in (0..LANES).step_by(4) {
        for (n, lanes) in lanes.as_chunks::<4>().0.iter().enumerate() {
            let mut square = [vdupq_n_f32(0.0); 4];
            for (register, lanes) in square.iter_mut().zip(lanes) {
                // SAFETY: four of sixteen elements.
                *register = unsafe { vld1q_f32(lanes.0[row..][..4].as_ptr()) };
            }
            for (m, column) in transpose(square).into_iter().enumerate() {
                // SAFETY: four elements inside `rows`, by the assertion above.
                unsafe { vst1q_f32(rows.as_mut_ptr().add((row + m) * stride + 4 * n), column) };
            }
        }
    }
}

/// `out[b][a] = in[a][b]`.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn transpose([a, b, c, d]: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // Columns 0 and 2, then 1 and 3, of two rows side by side.
    let (even_ab, odd_ab) = (vtrn1q_f32(a, b), vtrn2q_f32(a, b));
    let (even_cd, odd_cd) = (vtrn1q_f32(c, d), vtrn2q_f32(c, d));
    let low =
        |ab, cd| vreinterpretq_f32_f64(vtrn1q_f64(vreinterpretq_f64_f32(ab), vreinterpretq_f64_f32(cd)));
    let high =
        |ab, cd| vreinterpretq_f32_f64(vtrn2q_f64(vreinterpretq_f64_f32(ab), vreinterpretq_f64_f32(cd)));
    [low(even_ab, even_cd), low(odd_ab, odd_cd), high(even_ab, even_cd), high(odd_ab, odd_cd)]
}
