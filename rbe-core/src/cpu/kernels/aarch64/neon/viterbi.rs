//! Eight states in seven instructions: shuffle their costs, subtract, square, put right the one square that does not fit (two),
//! add, take the least. The portable search, as the compiler vectorises it, takes one or two more at 1, 2 and 4 bits, and five
//! times as many at 3.

use super::isa::Neon;
use crate::cpu::kernels::generic::viterbi::{self as generic, CostLanes};
use std::arch::aarch64::*;

#[target_feature(enable = "neon")]
pub(super) fn step<const W: usize>(costs: &[u16], values: &[i16], target: i16, next: &mut [u16]) -> u16 {
    generic::step::<_, W>(Neon::new(), costs, values, target, next)
}

impl CostLanes for Neon {
    const STATES: usize = 8;
    type Register = uint16x8_t;

    #[inline(always)]
    fn worst(self) -> uint16x8_t {
        // SAFETY: here and below, the token proves the instructions.
        unsafe { vdupq_n_u16(u16::MAX) }
    }

    #[inline(always)]
    fn splat(self, value: i16) -> uint16x8_t {
        // SAFETY: as above.
        unsafe { vreinterpretq_u16_s16(vdupq_n_s16(value)) }
    }

    #[inline(always)]
    fn repeat<const W: usize>(self) -> uint16x8_t {
        let index: [u8; 16] = std::array::from_fn(|byte| (byte / 2 / W * 2 + byte % 2) as u8);
        // SAFETY: an array of sixteen bytes.
        unsafe { vreinterpretq_u16_u8(vld1q_u8(index.as_ptr())) }
    }

    #[inline(always)]
    unsafe fn spread(self, costs: *const u16, repeat: uint16x8_t) -> uint16x8_t {
        // SAFETY: a register's costs, by the caller.
        unsafe {
            let costs = vreinterpretq_u8_u16(vld1q_u16(costs));
            vreinterpretq_u16_u8(vqtbl1q_u8(costs, vreinterpretq_u8_u16(repeat)))
        }
    }

    #[inline(always)]
    unsafe fn load(self, values: *const i16) -> uint16x8_t {
        // SAFETY: a register's values, by the caller.
        unsafe { vreinterpretq_u16_s16(vld1q_s16(values)) }
    }

    #[inline(always)]
    unsafe fn store(self, register: uint16x8_t, costs: *mut u16) {
        // SAFETY: a register's costs, by the caller.
        unsafe { vst1q_u16(costs, register) }
    }

    #[inline(always)]
    fn cost(self, target: uint16x8_t, values: uint16x8_t) -> uint16x8_t {
        // SAFETY: as above.
        unsafe {
            let difference = vqsubq_s16(vreinterpretq_s16_u16(target), vreinterpretq_s16_u16(values));
            let square = vreinterpretq_u16_s16(vqrdmulhq_s16(difference, difference));
            // The square of -2^15 saturates to one less than it is.
            vsubq_u16(square, vceqq_s16(difference, vdupq_n_s16(i16::MIN)))
        }
    }

    #[inline(always)]
    fn add(self, a: uint16x8_t, b: uint16x8_t) -> uint16x8_t {
        // SAFETY: as above.
        unsafe { vqaddq_u16(a, b) }
    }

    #[inline(always)]
    fn min(self, a: uint16x8_t, b: uint16x8_t) -> uint16x8_t {
        // SAFETY: as above.
        unsafe { vminq_u16(a, b) }
    }

    #[inline(always)]
    fn least(self, register: uint16x8_t) -> u16 {
        // SAFETY: as above.
        unsafe { vminvq_u16(register) }
    }
}
