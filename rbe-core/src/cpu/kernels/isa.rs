//! What an instruction set is to the generic kernels: a token that proves its instructions, and the words they are written in.
//!
//! A token is made in one place, a function that the compiler lets nobody call without the instructions, so what takes a token is
//! safe to call. Generic kernels are inlined into a level's `#[target_feature]` functions, and only there become its
//! instructions: each of them, and each word of the vocabulary, is `#[inline(always)]`.
//!
//! Each generic kernel asks for the words it needs in a trait beside it; this is what all need.

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
