//! AArch64, on which every processor has NEON.
//!
//! Written by hand are the integer products, the decoding of a trellis and the way of rows into lanes. The transforms, the
//! sparse loops, the norms and the digits of activations are [`generic`](super::generic) ones, which the compiler
//! vectorises for the plain Rust level too: here they only have the fused multiply-add. A sparse product with one vector
//! goes from place to place, which no NEON instruction does. Attention of one position is generic too, in registers' words.
//!
//! Instructions of the inner loops for each coefficient, counted in the machine code; no processor has timed them:
//!
//! | | 1 digit | 3 digits | each of many |
//! |---|---|---|---|
//! | planes, 4 bits, with dot products | 0.15 | 0.28 | 0.085 |
//! | planes, 8 bits, with dot products | 0.17 | 0.30 | 0.087 |
//! | planes, 4 bits, without | 0.34 | 0.77 | 0.25 |
//! | planes, 8 bits, without | 0.41 | 0.95 | 0.32 |
//! | planes, plain Rust | 13 | 39 | 13 |
//!
//! | trellis, 4 bits, with dot products | 0.75 | | |
//!
//! With one digit or two a trellis is multiplied as it is decoded, 16 codes in ten instructions at four bits, a load and a dot product; for
//! more it is decoded once, through memory. Whole products are counted in the documents (`docs/speed.md`).
//!
//! Matrix products of bytes (`i8mm`) are not used: by count they would save a tenth of a trellis' instructions for many vectors, whose
//! activations would have to lie in pairs.

pub(super) mod neon;
pub(super) mod neon_dot;
