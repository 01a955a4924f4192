//! The token, and bytes in registers: a quarter of a line, four rows.

use crate::cpu::kernels::isa::{Bytes, Isa};
use crate::cpu::layout::planes::Line;
use std::arch::aarch64::*;

/// NEON's registers, by a proof of its instructions, or of more: what multiplies them goes by that.
#[derive(Clone, Copy)]
pub(in crate::cpu::kernels::aarch64) struct Neon<P = Own>(P);

/// Proof of the level's instructions.
#[derive(Clone, Copy)]
pub(in crate::cpu::kernels::aarch64) struct Own(());

/// A proof of NEON's instructions.
pub(in crate::cpu::kernels::aarch64) trait Proof: Copy {}

impl Proof for Own {}

impl Neon {
    /// To be had only where the compiler knows the instructions.
    #[target_feature(enable = "neon")]
    #[inline]
    pub(super) fn new() -> Self {
        Self(Own(()))
    }
}

impl<P: Proof> Neon<P> {
    /// By a proof of more.
    #[inline(always)]
    pub(in crate::cpu::kernels::aarch64) fn of(proof: P) -> Self {
        Self(proof)
    }
}

impl<P: Proof> Isa for Neon<P> {
    const FMA: bool = true;
}

impl<P: Proof> Bytes for Neon<P> {
    const PARTS: usize = 4;
    type Register = uint8x16_t;

    #[inline(always)]
    fn splat(self, byte: u8) -> uint8x16_t {
        // SAFETY: here and below, the token proves the instructions.
        unsafe { vdupq_n_u8(byte) }
    }

    #[inline(always)]
    fn load(self, line: &Line, part: usize) -> uint8x16_t {
        // SAFETY: a quarter of a line is sixteen bytes.
        unsafe { vld1q_u8(line.0[16 * part..][..16].as_ptr()) }
    }

    #[inline(always)]
    fn and(self, a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { vandq_u8(a, b) }
    }

    /// The optimiser knows the shift.
    #[inline(always)]
    fn shift_right(self, bytes: uint8x16_t, shift: usize) -> uint8x16_t {
        // SAFETY: as above.
        unsafe {
            match shift {
                1 => vshrq_n_u8::<1>(bytes),
                2 => vshrq_n_u8::<2>(bytes),
                3 => vshrq_n_u8::<3>(bytes),
                4 => vshrq_n_u8::<4>(bytes),
                5 => vshrq_n_u8::<5>(bytes),
                6 => vshrq_n_u8::<6>(bytes),
                7 => vshrq_n_u8::<7>(bytes),
                _ => bytes,
            }
        }
    }

    /// Inserted above the field, they take the place of its neighbours.
    #[inline(always)]
    fn insert_below<const BITS: i32>(self, above: uint8x16_t, field: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { vsliq_n_u8::<BITS>(field, above) }
    }
}
