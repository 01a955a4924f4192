//! Products of [panels](super::panels) of integers.

use super::attention::Floats;
use super::panels::{CHUNK, IntegerStrip, IntegerVectors};
use crate::cpu::layout::{LANES, RowSums};
use std::ops::Range;

/// Integers in as many registers as floats.
pub(in crate::cpu::kernels) trait Integers<const N: usize>: Floats<N> {
    /// A register of pairs of 16 bits, or of sums of 32.
    type Pairs: Copy;

    /// No sums.
    fn no_sums(self) -> Self::Pairs;
    /// The pairs that the bits of these are.
    fn load_pairs(self, from: &[f32; N]) -> Self::Pairs;
    /// Adds to each lane the products of its pair with `x`, a pair.
    fn add_pairs(self, sums: Self::Pairs, weights: Self::Pairs, x: i32) -> Self::Pairs;
    /// Adds sums to floats.
    fn add_sums(self, floats: Self::Register, sums: Self::Pairs) -> Self::Register;
}

impl<'a> IntegerVectors<'a> {
    /// Some of them, whose inputs are those of a strip.
    #[inline(always)]
    pub(in crate::cpu) fn part(self, range: Range<usize>, strip: IntegerStrip) -> Self {
        let inputs = 2 * strip.weights.len();
        Self { values: &self.values[range.start * inputs..range.end * inputs], steps: &self.steps[range] }
    }
}

/// Adds the products of a strip of integers with `VECTORS` vectors of its inputs.
#[inline(always)]
pub(in crate::cpu::kernels) fn add_integers<
    I: Integers<N>,
    const N: usize,
    const PARTS: usize,
    const VECTORS: usize,
>(
    isa: I,
    strip: IntegerStrip,
    x: IntegerVectors,
    sums: &mut [RowSums],
) {
    const { assert!(N * PARTS == LANES) };
    let pairs = strip.weights.len();
    assert!(x.values.len() == VECTORS * 2 * pairs && x.steps.len() == VECTORS && sums.len() == VECTORS);
    let mut totals = [[isa.splat(0.0); PARTS]; VECTORS];
    for (chunk, lanes) in strip.weights.chunks(CHUNK / 2).enumerate() {
        let mut dots = [[isa.no_sums(); PARTS]; VECTORS];
        for (pair, lanes) in (chunk * CHUNK / 2..).zip(lanes) {
            let mut weights = [isa.no_sums(); PARTS];
            for (weights, part) in weights.iter_mut().zip(lanes.0.as_chunks().0) {
                *weights = isa.load_pairs(part);
            }
            for (vector, dots) in dots.iter_mut().enumerate() {
                let at = 2 * (vector * pairs + pair);
                // SAFETY: two numbers below the length that was asserted.
                let x = unsafe { x.values.as_ptr().add(at).cast::<i32>().read_unaligned() };
                for (dots, weights) in dots.iter_mut().zip(weights) {
                    *dots = isa.add_pairs(*dots, weights, x);
                }
            }
        }
        for (totals, dots) in totals.iter_mut().zip(dots) {
            for (total, dots) in totals.iter_mut().zip(dots) {
                *total = isa.add_sums(*total, dots);
            }
        }
    }
    let steps = strip.steps.0.as_chunks().0;
    for ((sums, totals), step) in sums.iter_mut().zip(totals).zip(x.steps) {
        for ((part, total), steps) in sums.0.as_chunks_mut().0.iter_mut().zip(totals).zip(steps) {
            let step = isa.add_product(isa.load(steps), isa.splat(*step), isa.splat(0.0));
            isa.store(isa.add_product(total, step, isa.load(part)), part);
        }
    }
}
