//! A register of states takes seven instructions: shuffle its costs, subtract, square, put right the one square that does
//! not fit (two), add, take the least. The portable search, as the compiler vectorises it, takes one or two more at 1, 2
//! and 4 bits, and five times as many at 3.

use std::arch::aarch64::*;

/// States in a register.
const LANES: usize = 8;
/// Registers of next costs made at once.
const TILE: usize = 4;

#[target_feature(enable = "neon")]
pub(super) fn neon<const W: usize>(costs: &[u16], values: &[i16], target: i16, next: &mut [u16]) -> u16 {
    let classes = next.len();
    assert!(classes.is_multiple_of(TILE * LANES));
    assert!(values.len() == W * classes && costs.len() >= classes + LANES);
    let index: [u8; 2 * LANES] = std::array::from_fn(|byte| (byte / 2 / W * 2 + byte % 2) as u8);
    // SAFETY: an array of sixteen bytes.
    let index = unsafe { vld1q_u8(index.as_ptr()) };
    let target = vdupq_n_s16(target);
    let mut least_of_all = vdupq_n_u16(u16::MAX);
    for (n, next) in next.as_chunks_mut::<LANES>().0.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
        let mut best = [vdupq_n_u16(u16::MAX); TILE];
        for i in 0..W {
            for (m, best) in best.iter_mut().enumerate() {
                let state = i * classes + (n * TILE + m) * LANES;
                // SAFETY: `state + 8 <= W classes`, the length of `values`, and `state / W + 8` is at most the
                // length of `costs`: both by the assertions above.
                let (before, value) = unsafe {
                    (vld1q_u16(costs.as_ptr().add(state / W)), vld1q_s16(values.as_ptr().add(state)))
                };
                let before = vreinterpretq_u16_u8(vqtbl1q_u8(vreinterpretq_u8_u16(before), index));
                *best = vminq_u16(*best, vqaddq_u16(before, cost(target, value)));
            }
        }
        for (next, best) in next.iter_mut().zip(best) {
            // SAFETY: `next` is eight numbers.
            unsafe { vst1q_u16(next.as_mut_ptr(), best) };
            least_of_all = vminq_u16(least_of_all, best);
        }
    }
    vminvq_u16(least_of_all)
}

/// The costs of values, as [`cost`](super::cost) has them.
#[target_feature(enable = "neon")]
#[inline]
fn cost(target: int16x8_t, values: int16x8_t) -> uint16x8_t {
    let difference = vqsubq_s16(target, values);
    let square = vreinterpretq_u16_s16(vqrdmulhq_s16(difference, difference));
    // The square of -2^15 saturates to one less than it is.
    vsubq_u16(square, vceqq_s16(difference, vdupq_n_s16(i16::MIN)))
}
