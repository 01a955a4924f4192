//! Dense vectors: their dot product, and one by numbers.

use crate::cpu::layout::LANES;

/// Registers of sums, so that a sum does not wait for the one before.
const CHAINS: usize = 4;

/// The dot product of vectors of one length, in [`CHAINS`] times [`LANES`] sums: the same on every level.
#[inline(always)]
pub(in crate::cpu) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [[0f32; LANES]; CHAINS];
    let (a_chunks, b_chunks) = (a.as_chunks::<{ CHAINS * LANES }>(), b.as_chunks::<{ CHAINS * LANES }>());
    for (a, b) in a_chunks.0.iter().zip(b_chunks.0) {
        add(&mut sums, a, b);
    }
    let (a, b) = (a_chunks.1.as_chunks::<LANES>(), b_chunks.1.as_chunks::<LANES>());
    for ((a, b), sum) in a.0.iter().zip(b.0).zip(&mut sums) {
        add(std::slice::from_mut(sum), a, b);
    }
    let mut total = [0f32; LANES];
    for (sum, (a, b)) in total.iter_mut().zip(a.1.iter().zip(b.1)) {
        *sum = a * b;
    }
    for sums in &sums {
        total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
    }
    halves(total, |a, b| a + b)
}

/// `f` of the lanes of one half and the other, until one number is left: four steps after one another, not sixteen.
#[inline(always)]
pub(super) fn halves(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] = f(lanes[lane], lanes[lane + width]);
        }
    }
    lanes[0]
}

#[inline(always)]
fn add(sums: &mut [[f32; LANES]], a: &[f32], b: &[f32]) {
    for (sum, (a, b)) in sums.as_flattened_mut().iter_mut().zip(a.iter().zip(b)) {
        *sum += a * b;
    }
}

/// `x <- by x weights`, element by element.
#[inline(always)]
pub(in crate::cpu) fn weigh(x: &mut [f32], by: f32, weights: &[f32]) {
    for (x, weight) in x.iter_mut().zip(weights) {
        *x = *x * by * weight;
    }
}
