//! Trellis-coded coefficients: how many bits each strip gets, its scale, and the search for its bits.
//!
//! Beyond the four bits that a code has, a second term codes what the first leaves: two searches among 2^L sequences in place
//! of one among a finer alphabet, which states of L bits are too few for. What is left is close to Gaussian again, so that
//! errors multiply (a relative error of 0.0049 at 8 bits, where the best uniform quantiser has 0.0094).
//!
//! Calibration takes columns one at a time, in its own order and with targets of its own making: that is
//! [`Quantizer::column`]. [`encode`] is a loop over it.
//!
//! The scale of a strip is the least-squares one where an error is asked for. It shrinks: the decoded coefficients
//! are the originals times `1 - D` (`D` being the relative squared error) plus noise. Noise is spread over all
//! directions, but the shrinking hits the output where it is largest, so where bits are asked for the scale is the
//! [`Unbiased`](Fit::Unbiased) one, `1 / (1 - D)` times as large, although it adds `D^2` to the squared error. On
//! llama-books and gpt2-books, over six and three seeds of the signs, the KL divergence at 2 bits falls from 0.063 and
//! 0.096 to 0.055 and 0.074 nats, at 3 bits from 0.0132 and 0.0202 to 0.0127 and 0.0182, at 4 bits by 2 and 6 %; half
//! of the correction gives most, half more gives nothing.

use super::allocate::allocate;
use super::feedback::{self, Feedback, sweep, weighed_energy};
use super::rate::Target;
use super::spectrum::Spectrum;
use crate::codec::Block;
use crate::codec::term::Trellis;
use crate::codec::term::trellis::{Code, MAX_BITS, QuantizedStrip, STATE_BITS, strip_bytes, strips};
use crate::cpu::{Codebook, Search};
use half::f16;
use rayon::prelude::*;

/// The most bits of a strip, in both terms together.
const MOST_BITS: u8 = 2 * MAX_BITS;
/// Mean squared errors of a strip with 0 to [`MOST_BITS`] bits.
type Curve = [f64; MOST_BITS as usize + 1];

/// Those of a unit Gaussian in columns of 256 rows, for the fewest and the most bits of a state (measured by the test
/// below); in between they are nearly linear in the state's bits.
const GAUSSIAN: [Curve; 2] = [
    [1.0, 0.2720, 0.0706, 0.01834, 0.00471, 0.001290, 0.0003421, 0.0000908, 0.0000242],
    [1.0, 0.2657, 0.0685, 0.01757, 0.00454, 0.001225, 0.0003226, 0.0000851, 0.0000228],
];
/// Scales of the first of two terms as multiples of those that suit it alone: a code's values end at three deviations, and what lies
/// beyond is more than the second term reaches. By the bits of both, from 5 on (the best of a grid on a Gaussian; without, the
/// error at 8 bits is half as large again).
const WIDER: [f32; 4] = [1.06, 1.1, 1.14, 1.18];

/// What the squared error must fall to for a second term to be begun: by a twelfth of a bit. What is left of a budget beyond four
/// whole bits, a second term would spend for less.
const WORTH_A_TERM: f64 = 0.9;

/// The bits of a strip in the first term and in the second. The code of four bits reaches farthest, and has the first.
fn halves(bits: u8) -> [u8; 2] {
    [bits.min(MAX_BITS), bits.saturating_sub(MAX_BITS)]
}

/// The deviations of Gaussian coefficients that the codes' integers suit best, by their bits: a search with larger or smaller ones
/// leaves more.
const VALUE_DEVIATIONS: [f64; 4] = [20.0, 19.3, 19.3, 18.4];
/// Bits of a strip beside its columns: their number and a scale.
const STRIP_BITS: usize = 8 + 16;
/// Bits of the term beside its strips: kind, state bits, unit.
const TERM_BITS: usize = 8 * 6;

/// What a strip's scale is fitted to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fit {
    /// The least squared error.
    LeastSquares,
    /// `<w, w^> = <w, w>`: what is decoded is the original plus noise, not less than the original.
    Unbiased,
}

impl Fit {
    /// Relative squared error from that of the least-squares scale. What is more noise than signal stays shrunk.
    fn error(self, least: f64) -> f64 {
        match self {
            Fit::Unbiased if least < 0.5 => least / (1.0 - least),
            _ => least,
        }
    }
}

/// The mean squared errors of a unit Gaussian in columns of `rows`, at least-squares scales.
///
/// A short cycle has few sequences to choose from. The factor is fitted to columns of 8 to 64 rows and states of 12
/// and 14 bits, and within a fifth of the excess measured there; a second term has about twice as much.
fn gaussian(state_bits: u8, rows: usize) -> Curve {
    let share = f64::from(state_bits - STATE_BITS.start()) / f64::from(STATE_BITS.end() - STATE_BITS.start());
    let shortness = 2.5 * (f64::from(state_bits) / rows as f64).powf(2.5);
    std::array::from_fn(|bits| {
        let long = GAUSSIAN[0][bits] * (1.0 - share) + GAUSSIAN[1][bits] * share;
        let [first, second] = halves(bits as u8).map(f64::from);
        let short = |bits: f64, shortness: f64| if bits > 0.0 { 1.0 + shortness / bits } else { 1.0 };
        (long * short(first, shortness) * short(second, 2.0 * shortness)).min(1.0)
    })
}

/// The codes of all numbers of bits with states of one size; shared by all threads.
pub(super) struct Quantizer {
    books: [Codebook; MAX_BITS as usize],
}

impl Quantizer {
    pub(super) fn new(state_bits: u8) -> Self {
        let book = |bits: usize| Codebook::new(Code::new(bits as u8 + 1, state_bits));
        Self { books: std::array::from_fn(book) }
    }

    /// The best scale for Gaussian coefficients with this sum of squares.
    pub(super) fn scale(bits: u8, energy: f64, count: usize) -> f32 {
        let kept = 1.0 - GAUSSIAN[0][usize::from(bits)];
        let deviation = VALUE_DEVIATIONS[usize::from(bits) - 1];
        ((energy / count as f64 * kept).sqrt() / deviation) as f32
    }

    /// Quantises one column: `codes` gets what [`Trellis::pack`] takes, `values` what `scale` multiplies.
    pub(super) fn column(
        &self,
        search: &mut Search,
        bits: u8,
        target: &[f32],
        scale: f32,
        codes: &mut [u8],
        values: &mut [i8],
    ) {
        search.column(&self.books[usize::from(bits) - 1], target, scale, codes, values);
    }
}

/// A strip as one of the terms has it, with its scale in full precision.
#[derive(Clone)]
struct Half {
    bits: u8,
    scale: f32,
    codes: Vec<u8>,
}

/// A strip with all its bits.
#[derive(Clone)]
struct Strip {
    bits: u8,
    halves: [Half; 2],
    squared_error: f64,
}

impl Strip {
    /// Zeros.
    fn zero(bits: u8, place: Block, energy: f64) -> Self {
        let half = |bits| Half { bits, scale: 0.0, codes: vec![0; if bits > 0 { place.len() } else { 0 }] };
        Self { bits, halves: halves(bits).map(half), squared_error: energy }
    }
}

/// One term or two, and the squared error in the coefficient domain.
pub(super) struct Encoded {
    pub terms: Vec<Trellis>,
    pub squared_error: f64,
}

/// What [`encode`] would reach on Gaussian coefficients, without searching.
pub(super) struct Estimate {
    pub squared_error: f64,
    pub bits: usize,
}

/// The strips of a spectrum and what they cost.
struct Plan<'a> {
    spectrum: &'a Spectrum,
    state_bits: u8,
    fit: Fit,
    feedback: Option<&'a Feedback>,
    strips: Vec<Block>,
    /// Of each strip the sum of squares, each column's times what its error weighs.
    energies: Vec<f64>,
    /// Payload bits outside of the terms.
    other_bits: usize,
}

impl<'a> Plan<'a> {
    fn new(
        spectrum: &'a Spectrum,
        feedback: Option<&'a Feedback>,
        state_bits: u8,
        target: Target,
        other_bits: usize,
    ) -> Self {
        let fit = if matches!(target, Target::Bits(_)) { Fit::Unbiased } else { Fit::LeastSquares };
        let strips: Vec<_> = strips(spectrum.layout).collect();
        let energies = strips.par_iter().map(|strip| weighed_energy(spectrum, feedback, *strip)).collect();
        Self { spectrum, feedback, state_bits, fit, strips, energies, other_bits }
    }

    /// Payload bits beside the columns' when no strip has more than `most` bits.
    fn side_bits(&self, most: u8) -> usize {
        let terms = if most > MAX_BITS { 2 } else { 1 };
        self.other_bits + terms * (TERM_BITS + STRIP_BITS * self.strips.len())
    }

    /// Bits per strip, `least` to `most`, as many as `fits(bits, error)` allows of what strips cost.
    fn allocate(&self, least: u8, most: u8, fits: impl FnMut(usize, f64) -> bool) -> Vec<u8> {
        let curve = |index| {
            let errors = self.errors(index);
            std::array::from_fn(|bits| errors[bits.min(usize::from(most))])
        };
        let curves: Vec<Curve> = (0..self.strips.len()).map(curve).collect();
        let cost = |index, bits: usize| self.bits(index, bits as u8 + 1) - self.bits(index, bits as u8);
        allocate(&curves, least, cost, fits)
    }

    /// Squared errors of a strip by its bits.
    fn errors(&self, index: usize) -> Curve {
        let errors = gaussian(self.state_bits, self.strips[index].height);
        errors.map(|error| self.fit.error(error) * self.energies[index])
    }

    /// Payload bits of a strip's columns.
    fn bits(&self, index: usize, bits: u8) -> usize {
        let strip = self.strips[index];
        halves(bits).map(|bits| 8 * strip_bytes(strip, bits)).iter().sum()
    }

    /// Payload bits of all columns with so many bits each.
    fn whole(&self, bits: u8) -> usize {
        (0..self.strips.len()).map(|index| self.bits(index, bits)).sum()
    }

    fn allocate_budget(&self, bits: usize) -> Option<Vec<u8>> {
        let one = self.allocate_up_to(MAX_BITS, bits);
        // A second term is begun when the first is full, and where it is worth the time that it takes in every product.
        if self.side_bits(MOST_BITS) + self.whole(MAX_BITS) >= bits {
            return one;
        }
        let (one, two) = (one?, self.allocate_up_to(MOST_BITS, bits)?);
        let error = |bits: &[u8]| self.estimate(bits).squared_error;
        Some(if error(&two) < WORTH_A_TERM * error(&one) { two } else { one })
    }

    /// Bits per strip within a budget, of at most `most` each.
    fn allocate_up_to(&self, most: u8, bits: usize) -> Option<Vec<u8>> {
        let budget = bits.checked_sub(self.side_bits(most))?;
        // What an error costs is known to second order only: where calibration would take more than one bit away from a
        // strip, it does not hold (gpt2-books' queries and keys without bits cost twenty times what was expected).
        let whole = (0..=most).rev().find(|whole| self.whole(*whole) <= budget)?;
        let least = if self.feedback.is_some() { whole.saturating_sub(1) } else { 0 };
        Some(self.allocate(least, most, |spent, _| spent <= budget))
    }

    /// Fewest bits for a squared error by the Gaussian's curve.
    fn allocate_error(&self, bound: f64) -> Vec<u8> {
        let full: f64 = (0..self.strips.len()).map(|index| self.errors(index)[usize::from(MAX_BITS)]).sum();
        let most = if full > bound { MOST_BITS } else { MAX_BITS };
        let mut reached = self.energies.iter().sum::<f64>() <= bound;
        self.allocate(0, most, |_, error| {
            let go_on = !reached;
            reached |= error <= bound;
            go_on
        })
    }

    fn estimate(&self, bits: &[u8]) -> Estimate {
        let strips = || bits.iter().enumerate();
        let most = bits.iter().max().copied().unwrap_or(0);
        Estimate {
            squared_error: strips().map(|(index, bits)| self.errors(index)[usize::from(*bits)]).sum(),
            bits: self.side_bits(most) + strips().map(|(index, bits)| self.bits(index, *bits)).sum::<usize>(),
        }
    }
}

/// What a target costs, by the Gaussian's curve: coefficients after random signs are close to one.
///
/// Returns `None` when the target cannot be reached.
pub(super) fn estimate(
    spectrum: &Spectrum,
    feedback: Option<&Feedback>,
    state_bits: u8,
    target: Target,
    other_bits: usize,
) -> Option<Estimate> {
    let plan = Plan::new(spectrum, feedback, state_bits, target, other_bits);
    match target {
        Target::PerBlock(_) => None,
        Target::Bits(bits) => plan.allocate_budget(bits).map(|bits| plan.estimate(&bits)),
        Target::SquaredError(bound) => {
            Some(plan.estimate(&plan.allocate_error(bound))).filter(|e| e.squared_error <= bound)
        }
    }
}

/// Quantises a spectrum; `other_bits` are the payload's bits outside of this term.
///
/// Returns `None` when the target cannot be reached.
pub(super) fn encode(
    spectrum: &Spectrum,
    feedback: Option<&Feedback>,
    state_bits: u8,
    target: Target,
    other_bits: usize,
) -> Option<Encoded> {
    let plan = Plan::new(spectrum, feedback, state_bits, target, other_bits);
    let quantizer = Quantizer::new(state_bits);
    let mut strips = vec![None; plan.strips.len()];
    match target {
        Target::PerBlock(_) => None,
        Target::Bits(bits) => {
            quantize(&plan, &quantizer, &plan.allocate_budget(bits)?, &mut strips);
            Some(pack(&plan, &strips))
        }
        Target::SquaredError(bound) => {
            // Coefficients are not quite a Gaussian's: correct the model by what quantising really gives. Strips
            // whose bits stay are not searched again.
            let mut asked = bound;
            for _ in 0..8 {
                let bits = plan.allocate_error(asked);
                let error = quantize(&plan, &quantizer, &bits, &mut strips);
                if error <= bound {
                    return Some(pack(&plan, &strips));
                }
                if bits.iter().all(|bits| *bits == MOST_BITS) {
                    return None;
                }
                asked *= 0.998 * bound / error;
            }
            None
        }
    }
}

/// Searches for every strip that does not yet have these bits, and returns the squared error of all.
fn quantize(plan: &Plan, quantizer: &Quantizer, bits: &[u8], strips: &mut Vec<Option<Strip>>) -> f64 {
    let done = std::mem::take(strips);
    *strips = sweep(plan.spectrum, plan.feedback, |search: &mut Search, strip| {
        let index = strip.place.index;
        match &done[index] {
            // Without feedback a strip does not depend on others.
            Some(done) if done.bits == bits[index] && plan.feedback.is_none() => Some(done.clone()),
            _ => Some(quantize_strip(plan, quantizer, search, bits[index], strip)),
        }
    });
    strips.iter().flatten().map(|strip| strip.squared_error).sum()
}

/// A strip, with the Gaussian's scales for the search, and then with a last one that fits what was found.
fn quantize_strip(
    plan: &Plan,
    quantizer: &Quantizer,
    search: &mut Search,
    bits: u8,
    strip: &mut feedback::Strip,
) -> Strip {
    let (height, len) = (strip.place.height, strip.place.len());
    let energy: f64 = strip.targets().iter().map(|value| f64::from(*value).powi(2)).sum();
    let mut made = Strip::zero(bits, strip.place, energy);
    let Some(last) = made.halves.iter().rposition(|half| half.bits > 0) else { return made };
    let [first, second] = &mut made.halves;
    first.scale = Quantizer::scale(first.bits, energy, len);
    if last > 0 {
        let wide = first.scale * WIDER[usize::from(bits - MAX_BITS) - 1];
        let left = energy * gaussian(plan.state_bits, height)[usize::from(first.bits)];
        // As the payload holds it: the second term takes care of the rounding.
        first.scale = round_to_f16(wide);
        second.scale = Quantizer::scale(second.bits, left, len);
    }
    // Below this the coefficients are F32's rounding of zero.
    if !made.halves[last].scale.is_normal() {
        return Strip::zero(bits, strip.place, energy);
    }
    // What the halves before the last one decode to, and the last one's integers.
    let (mut before, mut values) = (vec![0.0; len], vec![0; len]);
    let mut target = vec![0.0; height];
    for n in 0..strip.place.width {
        let column = n * height..(n + 1) * height;
        strip.target(n, &mut target);
        for (index, half) in made.halves[..=last].iter_mut().enumerate() {
            let values = &mut values[column.clone()];
            let codes = &mut half.codes[column.clone()];
            quantizer.column(search, half.bits, &target, half.scale, codes, values);
            let decoded = &mut strip.decoded[column.clone()];
            for (((target, decoded), before), value) in
                target.iter_mut().zip(decoded).zip(&mut before[column.clone()]).zip(values)
            {
                let value = half.scale * f32::from(*value);
                *target -= value;
                *decoded += value;
                if index < last {
                    *before += value;
                }
            }
        }
    }
    let [dot, norm, energy] = strip.products(&before, &values);
    if dot <= 0.0 {
        strip.decoded.copy_from_slice(&before);
        made.halves[last].scale = 0.0;
        return Strip { squared_error: energy, ..made };
    }
    let fit = if last > 0 { Fit::LeastSquares } else { plan.fit };
    let least = 1.0 - dot * dot / (norm * energy);
    let scale = (if fit.error(least) > least { energy / dot } else { dot / norm }) as f32;
    for ((decoded, before), value) in strip.decoded.iter_mut().zip(&before).zip(&values) {
        *decoded = before + scale * f32::from(*value);
    }
    made.halves[last].scale = scale;
    Strip { squared_error: energy * fit.error(least), ..made }
}

/// Rounds to the eleven significant bits of an F16; the terms' unit, a power of two, sees to its range.
fn round_to_f16(value: f32) -> f32 {
    const DROPPED: u32 = f32::MANTISSA_DIGITS - f16::MANTISSA_DIGITS;
    f32::from_bits((value.to_bits() + (1 << (DROPPED - 1))) & !((1 << DROPPED) - 1))
}

fn pack(plan: &Plan, strips: &[Option<Strip>]) -> Encoded {
    let terms = if strips.iter().flatten().any(|strip| strip.bits > MAX_BITS) { 2 } else { 1 };
    let term = |n: usize| {
        let halves = || strips.iter().flatten().map(|strip| &strip.halves[n]);
        let unit = crate::codec::term::unit_for(halves().map(|half| half.scale), 7);
        let quantized: Vec<_> = halves()
            .map(|half| QuantizedStrip {
                bits: half.bits,
                scale: f16::from_f32(half.scale / unit),
                codes: half.codes.clone(),
            })
            .collect();
        Trellis::pack(plan.spectrum.layout, plan.state_bits, unit, &quantized)
    };
    let squared_error = strips.iter().flatten().map(|strip| strip.squared_error).sum();
    Encoded { terms: (0..terms).map(term).collect(), squared_error }
}

#[cfg(test)]
mod tests;
