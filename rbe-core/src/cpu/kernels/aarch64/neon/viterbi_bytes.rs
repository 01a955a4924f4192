//! Sixteen states in two instructions: add what each adds from the table, take the least.

use super::isa::Neon;
use crate::cpu::kernels::generic::viterbi_bytes::{self as generic, ByteLanes, ByteRow, DEAD};
use crate::cpu::layout::planes::Line;
use std::arch::aarch64::*;

#[target_feature(enable = "neon")]
pub(super) fn step<const W: usize>(row: ByteRow, table: &mut [Line], next: &mut [u8]) -> u8 {
    generic::step::<_, W>(Neon::new(), row, table, next)
}

impl ByteLanes for Neon {
    const LANES: usize = 16;
    type Register = uint8x16_t;

    #[inline(always)]
    fn splat(self, byte: u8) -> uint8x16_t {
        // SAFETY: here and below, the token proves the instructions.
        unsafe { vdupq_n_u8(byte) }
    }

    #[inline(always)]
    unsafe fn load(self, bytes: *const u8) -> uint8x16_t {
        // SAFETY: a register's bytes, by the caller.
        unsafe { vld1q_u8(bytes) }
    }

    #[inline(always)]
    unsafe fn store(self, register: uint8x16_t, bytes: *mut u8) {
        // SAFETY: a register's bytes, by the caller.
        unsafe { vst1q_u8(bytes, register) }
    }

    #[inline(always)]
    fn swap_parts(self, register: uint8x16_t, _: usize) -> uint8x16_t {
        register
    }

    #[inline(always)]
    fn pick(self, register: uint8x16_t, places: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { vqtbl1q_u8(register, places) }
    }

    #[inline(always)]
    fn add(self, a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { vqaddq_u8(a, b) }
    }

    #[inline(always)]
    fn min(self, a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { vminq_u8(a, b) }
    }

    #[inline(always)]
    fn take_off(self, costs: uint8x16_t, excess: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { vorrq_u8(vceqq_u8(costs, self.splat(DEAD)), vsubq_u8(costs, excess)) }
    }

    #[inline(always)]
    fn zip(self, a: uint8x16_t, b: uint8x16_t) -> [uint8x16_t; 2] {
        // SAFETY: as above.
        unsafe { [vzip1q_u8(a, b), vzip2q_u8(a, b)] }
    }

    #[inline(always)]
    fn by_parts<const W: usize>(self, registers: [uint8x16_t; W]) -> [uint8x16_t; W] {
        registers
    }

    #[inline(always)]
    fn least(self, register: uint8x16_t) -> u8 {
        // SAFETY: as above.
        unsafe { vminvq_u8(register) }
    }
}
