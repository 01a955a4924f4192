//! Many vectors times weights that were decoded before: as floats, or as integers of 16 bits.
//!
//! The weights of a block lie in strips, sixteen outputs side by side: for each input a register of floats, or for each pair of inputs one of
//! integers, the pair's in each lane's 32 bits. A few vectors' sums of a strip stay in registers, each of whose products takes one input of
//! one vector to all lanes.
//!
//! ```text
//!     x = s_x n_x,  w = s_w n_w,    n in -32767..=32767    ->    x w = s_x s_w sum n_x n_w
//! ```
//!
//! A vector's block has one step `s_x`, an output's weights in a block one `s_w`, so that the norm of any [`CHUNK`] of its numbers is at most
//! [`NORM`], the root of 2^31: then the sum of a chunk's products fits in 32 bits (Cauchy and Schwarz), and so does every part of it. Chunks
//! add up as floats. Each rounding loses `1 / sqrt 12` of a step, and numbers have a root mean square of about `NORM / sqrt(CHUNK)`
//! steps: 5e-5 of them, both together 7e-5 of the product. At most, with one chunk that has all of a block of 256 and roundings all alike, it
//! is `sqrt 256 / (2 NORM)`, 1.7e-4 of either.

use super::activations::largest;
use super::attention::Floats;
use super::dense::halves;
use crate::cpu::layout::{LANES, Lanes, RowSums};

/// Inputs whose products are added up as integers.
pub(in crate::cpu) const CHUNK: usize = 64;
/// What a chunk's norm may be before it is rounded, by which it grows by at most 4.
const NORM: f32 = 46_336.0;
/// The largest integer.
const TOP: f32 = 32_767.0;

/// The weights of sixteen outputs for the inputs of a block, as integers.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "read at levels that have such products"))]
pub(in crate::cpu) struct IntegerStrip<'a> {
    /// For each pair of inputs the bits of sixteen pairs of integers.
    pub weights: &'a [Lanes],
    /// Of each output.
    pub steps: &'a Lanes,
}

/// As many vectors' inputs of a block as there are scales, one after another.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct IntegerVectors<'a> {
    pub values: &'a [i16],
    pub steps: &'a [f32],
}

/// Calls `$call::<$isa, N, PARTS, VECTORS>` for at most `$at_once` of all vectors at a time: `$range` are theirs, `$own` their sums.
macro_rules! few_at_once {
    ($at_once:literal, $sums:expr, |$range:ident, $own:ident| $call:ident::<$isa:ty, $n:literal, $parts:literal> $args:tt, [$($vectors:literal)*]) => {
        let mut first = 0;
        for $own in $sums.chunks_mut($at_once) {
            let $range = first..first + $own.len();
            first = $range.end;
            match $own.len() {
                $($vectors => $call::<$isa, $n, $parts, $vectors> $args,)*
                other => unreachable!("{other} vectors at once"),
            }
        }
    };
}
pub(in crate::cpu::kernels) use few_at_once;

/// Adds the products of a strip of floats with `VECTORS` vectors of its inputs; sixteen floats are in `PARTS` registers.
#[inline(always)]
pub(in crate::cpu::kernels) fn add_floats<
    I: Floats<N>,
    const N: usize,
    const PARTS: usize,
    const VECTORS: usize,
>(
    isa: I,
    weights: &[Lanes],
    x: &[f32],
    sums: &mut [RowSums],
) {
    const { assert!(N * PARTS == LANES) };
    let inputs = weights.len();
    assert!(x.len() == VECTORS * inputs && sums.len() == VECTORS);
    let mut held = [[isa.splat(0.0); PARTS]; VECTORS];
    for (held, sums) in held.iter_mut().zip(&*sums) {
        for (held, part) in held.iter_mut().zip(sums.0.as_chunks().0) {
            *held = isa.load(part);
        }
    }
    for (input, lanes) in weights.iter().enumerate() {
        let mut weights = [isa.splat(0.0); PARTS];
        for (weights, part) in weights.iter_mut().zip(lanes.0.as_chunks().0) {
            *weights = isa.load(part);
        }
        for (vector, held) in held.iter_mut().enumerate() {
            // SAFETY: below the length that was asserted.
            let x = isa.splat(unsafe { *x.get_unchecked(vector * inputs + input) });
            for (held, weights) in held.iter_mut().zip(weights) {
                *held = isa.add_product(weights, x, *held);
            }
        }
    }
    for (sums, held) in sums.iter_mut().zip(held) {
        for (part, held) in sums.0.as_chunks_mut().0.iter_mut().zip(held) {
            isa.store(held, part);
        }
    }
}

/// What a number times which is its integer, for numbers of this magnitude and sum of squares at most in a chunk; the step is not a number
/// where the magnitude is none, and integers are zero where they would not say anything.
#[inline(always)]
fn step(largest: f32, squares: f32) -> (f32, f32) {
    // Of numbers that small or large no square is told; they have the resolution of the largest.
    let of_norm = if squares.is_normal() { squares.sqrt() / NORM } else { largest / TOP * CHUNK as f32 };
    let step = if of_norm > largest / TOP { of_norm } else { largest / TOP };
    let inverse = step.recip();
    if inverse.is_finite() { (step, inverse) } else { (largest, 0.0) }
}

/// Adding it rounds to the nearest, ties to even, and leaves the integer in the low bits.
const TO_INTEGER: f32 = (3 << 22) as f32;

/// Rounds a block of a vector to integers; returns their step, which is not a number where one of `x` is none. Integers beyond `x` become
/// zero.
#[inline(always)]
pub(in crate::cpu) fn round_vector(x: &[f32], integers: &mut [i16]) -> f32 {
    let (used, padding) = integers.split_at_mut(x.len());
    padding.fill(0);
    let squares = x.chunks(CHUNK).map(squares).fold(0.0, f32::max);
    let (step, inverse) = step(largest(x), squares);
    for (integer, x) in used.iter_mut().zip(x) {
        let shifted = x * inverse + TO_INTEGER;
        *integer = (shifted.to_bits().wrapping_sub(TO_INTEGER.to_bits()) as u16).cast_signed();
    }
    step
}

/// The sum of the squares of `x`.
#[inline(always)]
fn squares(x: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for chunk in whole {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x * x);
    }
    sums.iter_mut().zip(rest).for_each(|(sum, x)| *sum += x * x);
    halves(sums, |a, b| a + b)
}

/// Rounds a strip of floats, a register for each input, to one of integers, a register for each pair of inputs; returns their steps.
#[inline(always)]
pub(in crate::cpu) fn round_strip(floats: &[Lanes], integers: &mut [Lanes]) -> Lanes {
    assert_eq!(floats.len().div_ceil(2), integers.len());
    let (mut largest, mut most) = ([0f32; LANES], [0f32; LANES]);
    for chunk in floats.chunks(CHUNK) {
        let mut squares = [0f32; LANES];
        for lanes in chunk {
            for ((largest, squares), x) in largest.iter_mut().zip(&mut squares).zip(&lanes.0) {
                *largest = if x.abs() > *largest { x.abs() } else { *largest };
                *squares += x * x;
            }
        }
        for (most, squares) in most.iter_mut().zip(squares) {
            *most = if squares > *most { squares } else { *most };
        }
    }
    let (mut steps, mut inverses) = (Lanes::ZERO, [0f32; LANES]);
    for lane in 0..LANES {
        (steps.0[lane], inverses[lane]) = step(largest[lane], most[lane]);
    }
    let round =
        |x: f32, inverse: f32| (x * inverse + TO_INTEGER).to_bits().wrapping_sub(TO_INTEGER.to_bits());
    for (pair, integers) in floats.chunks(2).zip(integers) {
        let (first, second) = (&pair[0], pair.get(1).unwrap_or(&Lanes::ZERO));
        for (lane, both) in integers.0.iter_mut().enumerate() {
            let low = round(first.0[lane], inverses[lane]) & 0xffff;
            *both = f32::from_bits(low | round(second.0[lane], inverses[lane]) << 16);
        }
    }
    steps
}
