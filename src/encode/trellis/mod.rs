//! Trellis-coded coefficients: how many bits each strip gets, its scale, and the search for its bits.
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
use crate::codec::term::trellis::{Code, MAX_BITS, QuantizedStrip, STATE_BITS, column_bytes, strips};
use crate::cpu::{Codebook, Search};
use half::f16;
use rayon::prelude::*;

/// Mean squared error of a unit Gaussian with 0 to 4 bits in columns of 256 rows, for the fewest and the most bits
/// of a state (measured by the test below); in between it is nearly linear in the state's bits.
const GAUSSIAN: [[f64; MAX_BITS as usize + 1]; 2] =
    [[1.0, 0.2805, 0.0714, 0.01825, 0.00492], [1.0, 0.2781, 0.0691, 0.01745, 0.00464]];
/// Root mean square of the code's integers.
const VALUE_DEVIATION: f64 = 41.68;
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

/// The mean squared errors of a unit Gaussian with 0 to 4 bits, in columns of `rows`, at least-squares scales.
///
/// A short cycle has few sequences to choose from. The factor is fitted to columns of 8 to 64 rows and states of 12
/// and 14 bits, and within a fifth of the excess measured there.
fn gaussian(state_bits: u8, rows: usize) -> [f64; MAX_BITS as usize + 1] {
    let share = f64::from(state_bits - STATE_BITS.start()) / f64::from(STATE_BITS.end() - STATE_BITS.start());
    let shortness = 2.5 * (f64::from(state_bits) / rows as f64).powf(2.5);
    std::array::from_fn(|bits| {
        let long = GAUSSIAN[0][bits] * (1.0 - share) + GAUSSIAN[1][bits] * share;
        (long * (1.0 + shortness / bits.max(1) as f64)).min(1.0)
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
        ((energy / count as f64 * kept).sqrt() / VALUE_DEVIATION) as f32
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

/// A strip with its scale in full precision.
#[derive(Clone)]
struct Strip {
    bits: u8,
    scale: f32,
    codes: Vec<u8>,
    squared_error: f64,
}

/// A trellis term and its squared error in the coefficient domain.
pub(super) struct Encoded {
    pub term: Trellis,
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
    side_bits: usize,
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
        let side_bits = other_bits + TERM_BITS + STRIP_BITS * strips.len();
        Self { spectrum, feedback, state_bits, fit, strips, energies, side_bits }
    }

    /// Bits per strip, as many as `fits(bits, error)` allows of what strips cost.
    fn allocate(&self, least: u8, fits: impl FnMut(usize, f64) -> bool) -> Vec<u8> {
        let curves: Vec<_> = (0..self.strips.len()).map(|index| self.errors(index)).collect();
        allocate(&curves, least, |index, bits| self.bits(index, bits + 1) - self.bits(index, bits), fits)
    }

    /// Squared errors of a strip with 0 to 4 bits.
    fn errors(&self, index: usize) -> [f64; MAX_BITS as usize + 1] {
        let errors = gaussian(self.state_bits, self.strips[index].height);
        errors.map(|error| self.fit.error(error) * self.energies[index])
    }

    /// Payload bits of a strip's columns.
    fn bits(&self, index: usize, bits: usize) -> usize {
        let strip = self.strips[index];
        8 * strip.width * column_bytes(strip.height, bits as u8)
    }

    /// Payload bits of all columns with so many bits each.
    fn whole(&self, bits: u8) -> usize {
        (0..self.strips.len()).map(|index| self.bits(index, usize::from(bits))).sum()
    }

    fn allocate_budget(&self, bits: usize) -> Option<Vec<u8>> {
        let budget = bits.checked_sub(self.side_bits)?;
        // What an error costs is known to second order only: where calibration would take more than one bit away from a
        // strip, it does not hold (gpt2-books' queries and keys without bits cost twenty times what was expected).
        let whole = (0..=MAX_BITS).rev().find(|whole| self.whole(*whole) <= budget)?;
        let least = if self.feedback.is_some() { whole.saturating_sub(1) } else { 0 };
        Some(self.allocate(least, |spent, _| spent <= budget))
    }

    /// Fewest bits for a squared error by the Gaussian's curve.
    fn allocate_error(&self, bound: f64) -> Vec<u8> {
        let mut reached = self.energies.iter().sum::<f64>() <= bound;
        self.allocate(0, |_, error| {
            let go_on = !reached;
            reached |= error <= bound;
            go_on
        })
    }

    fn estimate(&self, bits: &[u8]) -> Estimate {
        let strips = || bits.iter().enumerate().map(|(index, bits)| (index, usize::from(*bits)));
        Estimate {
            squared_error: strips().map(|(index, bits)| self.errors(index)[bits]).sum(),
            bits: self.side_bits + strips().map(|(index, bits)| self.bits(index, bits)).sum::<usize>(),
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
                if bits.iter().all(|bits| *bits == MAX_BITS) {
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
            _ => Some(quantize_strip(quantizer, search, bits[index], plan.fit, strip)),
        }
    });
    strips.iter().flatten().map(|strip| strip.squared_error).sum()
}

/// A strip, with the Gaussian's scale for the search and then one that fits what was found.
fn quantize_strip(
    quantizer: &Quantizer,
    search: &mut Search,
    bits: u8,
    fit: Fit,
    strip: &mut feedback::Strip,
) -> Strip {
    let height = strip.place.height;
    let energy: f64 = strip.targets().iter().map(|value| f64::from(*value).powi(2)).sum();
    let nothing = Strip { bits, scale: 0.0, codes: Vec::new(), squared_error: energy };
    if bits == 0 {
        return nothing;
    }
    let mut codes = vec![0; strip.place.len()];
    let scale = Quantizer::scale(bits, energy, codes.len());
    // Below this the coefficients are F32's rounding of zero.
    if !scale.is_normal() {
        return Strip { codes, ..nothing };
    }
    let (mut target, mut values) = (vec![0.0; height], vec![0; codes.len()]);
    for (n, (codes, values)) in
        codes.chunks_exact_mut(height).zip(values.chunks_exact_mut(height)).enumerate()
    {
        strip.target(n, &mut target);
        quantizer.column(search, bits, &target, scale, codes, values);
        let decoded = strip.decoded[n * height..].iter_mut();
        decoded.zip(values).for_each(|(decoded, value)| *decoded = scale * f32::from(*value));
    }
    let [dot, norm, energy] = strip.products(&values);
    if dot <= 0.0 {
        strip.decoded.fill(0.0);
        return Strip { codes, ..nothing };
    }
    let least = 1.0 - dot * dot / (norm * energy);
    let squared_error = energy * fit.error(least);
    let scale = (if fit.error(least) > least { energy / dot } else { dot / norm }) as f32;
    strip.decoded.iter_mut().zip(&values).for_each(|(decoded, value)| *decoded = scale * f32::from(*value));
    Strip { bits, scale, codes, squared_error }
}

fn pack(plan: &Plan, strips: &[Option<Strip>]) -> Encoded {
    let unit = crate::codec::term::unit_for(strips.iter().flatten().map(|strip| strip.scale), 7);
    let quantized: Vec<_> = strips
        .iter()
        .flatten()
        .map(|strip| QuantizedStrip {
            bits: strip.bits,
            scale: f16::from_f32(strip.scale / unit),
            codes: strip.codes.clone(),
        })
        .collect();
    let squared_error = strips.iter().flatten().map(|strip| strip.squared_error).sum();
    let term = Trellis::pack(plan.spectrum.layout, plan.state_bits, unit, &quantized);
    Encoded { term, squared_error }
}

#[cfg(test)]
mod tests;
