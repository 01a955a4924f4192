//! What an instruction set is to the generic kernels: a token that proves its instructions, and the words they are written in.
//!
//! A token is made in one place, a function that the compiler lets nobody call without the instructions, so what takes a token is
//! safe to call. Generic kernels are inlined into a level's `#[target_feature]` functions, and only there become its
//! instructions: each of them, and each word of the vocabulary, is `#[inline(always)]`.
//!
//! The words that several kernels share are here, those of one beside it.

use crate::cpu::layout::planes::Line;

/// A token of an instruction set.
pub(super) trait Isa: Copy {
    /// Whether a fused multiply-add is one instruction (else it is a call).
    const FMA: bool;

    /// `a b + c`, rounded once where that is one instruction.
    #[inline(always)]
    fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
        if Self::FMA { a.mul_add(b, c) } else { a * b + c }
    }
}

/// Bytes in registers, each of which holds a part of a [`Line`].
pub(super) trait Bytes: Isa {
    /// Registers that a line fills.
    const PARTS: usize;
    /// A register.
    type Register: Copy;

    /// A byte everywhere.
    fn splat(self, byte: u8) -> Self::Register;
    /// A part of a line.
    fn load(self, line: &Line, part: usize) -> Self::Register;
    /// The bits of both.
    fn and(self, a: Self::Register, b: Self::Register) -> Self::Register;
    /// Each byte shifted to the right. Its upper bits may be its neighbour's.
    fn shift_right(self, bytes: Self::Register, shift: usize) -> Self::Register;
    /// `above << BITS | field`, of which the lowest bits count; `above << BITS` fits its byte.
    fn insert_below<const BITS: i32>(self, above: Self::Register, field: Self::Register) -> Self::Register;
}
