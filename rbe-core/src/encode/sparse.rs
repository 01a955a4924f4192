//! The largest coefficients: how many, which, and in which bit fields.

use super::quantizer::{Quantized, Quantizer, Task, Trial};
use super::rate::{Budget, Target};
use super::spectrum::{Spectrum, energy};
use crate::codec::Block;
use crate::codec::term::sparse::{Entry, Format};
use crate::codec::term::{Sparse, Term};
use crate::error::Result;
use rayon::prelude::*;

/// The most entries a block's count can say.
const MAX_ENTRIES: usize = u16::MAX as usize;
/// Searches for the number of coefficients that fill a file end after so many.
const MOST_TRIALS: usize = 8;

/// A sparse term and its squared error in the coefficient domain.
struct Encoded {
    term: Sparse,
    squared_error: f64,
}

/// The largest coefficients in bit fields of one format, whose own bits are counted as the budget says.
#[derive(Debug)]
pub(super) struct SparseQuantizer {
    pub format: Format,
    pub budget: Budget,
}

impl SparseQuantizer {
    /// The most entries in so many bits. In memory an entry takes 16 or more (an F16 value in a row whose mask is counted
    /// elsewhere); coded, 6 or more (a sign and a few bits of an eight-bit value, next to the last).
    fn most_entries(&self, bits: usize, most_in_memory: Option<usize>) -> usize {
        match (self.budget, most_in_memory) {
            (Budget::File, Some(memory)) => memory / 16,
            (Budget::File, None) => bits / 6,
            (Budget::Memory, _) => bits / 16,
        }
    }
}

impl Quantizer for SparseQuantizer {
    fn trial(&self) -> Trial {
        Trial::OfFewCoefficients
    }

    fn least_error(&self, spectrum: &Spectrum, bits: usize, most_in_memory: Option<usize>) -> f64 {
        error_of_keeping(spectrum, self.most_entries(bits, most_in_memory))
    }

    fn encode(&self, task: &Task) -> Result<Option<Quantized>> {
        let (format, spectrum) = (self.format, task.spectrum);
        let encoded = match task.target {
            Target::PerBlock(k) => Some(keep_per_block(spectrum, format, k)?),
            Target::Bits(bits) => {
                // Kind, format, unit; a count, a scale or masks per block.
                let side: usize = spectrum.layout.iter().map(|block| format.block_bits(block)).sum();
                let Some(room) = bits.checked_sub(task.other_bits + 8 * 6 + side) else { return Ok(None) };
                let count = room / format.entry_bits();
                Some(match self.budget {
                    Budget::Memory => {
                        keep_above(spectrum, format, threshold(spectrum.coefficients(), count))?
                    }
                    Budget::File => keep_most(spectrum, format, count, bits - task.other_bits)?,
                })
            }
            Target::SquaredError(bound) => keep_within(spectrum, format, bound)?,
        };
        Ok(encoded.map(|Encoded { term, squared_error }| Quantized {
            terms: vec![Term::Sparse(term)],
            squared_error,
        }))
    }
}

/// The squared error of keeping `count` coefficients exactly: no format does better.
fn error_of_keeping(spectrum: &Spectrum, count: usize) -> f64 {
    let threshold = threshold(spectrum.coefficients(), count);
    spectrum
        .coefficients()
        .iter()
        .filter(|value| value.abs() <= threshold)
        .map(|value| f64::from(*value) * f64::from(*value))
        .sum()
}

/// The magnitude above which at most `count` values lie.
fn threshold(values: &[f32], count: usize) -> f32 {
    if count >= values.len() {
        return 0.0;
    }
    let mut magnitudes: Vec<f32> = values.iter().map(|value| value.abs()).collect();
    *magnitudes.select_nth_unstable_by(count, |a, b| b.total_cmp(a)).1
}

/// As many coefficients as fit into so many bits of a file; `count` do in any case.
fn keep_most(spectrum: &Spectrum, format: Format, count: usize, bits: usize) -> Result<Encoded> {
    let all = spectrum.coefficients().len();
    let keep = |count: usize| -> Result<(Encoded, usize)> {
        let encoded = keep_above(spectrum, format, threshold(spectrum.coefficients(), count))?;
        let spent = 8 * (1 + encoded.term.coded_size_in_bytes());
        Ok((encoded, spent))
    };
    let (mut fits, mut fails, mut best) = (count.min(all), all + 1, keep(count.min(all))?);
    for _ in 0..MOST_TRIALS {
        // A coefficient more costs what one has cost so far, or less: they lie closer together.
        let share = bits as f64 / best.1 as f64;
        let more = ((fits as f64 * share) as usize).min(fits + (fails - fits) / 2 + 1).min(fails - 1);
        if more <= fits + fits / 500 {
            break;
        }
        let tried = keep(more)?;
        if tried.1 <= bits {
            (fits, best) = (more, tried);
        } else {
            fails = more;
        }
    }
    Ok(best.0)
}

/// The fewest coefficients whose squared error, quantised, is within the bound.
fn keep_within(spectrum: &Spectrum, format: Format, bound: f64) -> Result<Option<Encoded>> {
    let mut magnitudes: Vec<f32> = spectrum.coefficients().iter().map(|value| value.abs()).collect();
    magnitudes.par_sort_unstable_by(|a, b| b.total_cmp(a));
    // dropped[n] is the energy of all but the n largest, summed from the small end.
    let mut dropped = vec![0.0; magnitudes.len() + 1];
    for n in (0..magnitudes.len()).rev() {
        dropped[n] = dropped[n + 1] + f64::from(magnitudes[n]) * f64::from(magnitudes[n]);
    }
    let mut asked = bound;
    for _ in 0..8 {
        let count = dropped.partition_point(|dropped| *dropped > asked);
        let threshold = magnitudes.get(count).copied().unwrap_or(0.0);
        let encoded = keep_above(spectrum, format, threshold)?;
        if encoded.squared_error <= bound {
            return Ok(Some(encoded));
        }
        let quantization = encoded.squared_error - dropped[count];
        if quantization >= bound {
            return Ok(None);
        }
        asked = (bound - 1.02 * quantization).min(0.998 * asked).max(0.0);
    }
    Ok(None)
}

/// Every coefficient larger than `threshold`.
fn keep_above(spectrum: &Spectrum, format: Format, threshold: f32) -> Result<Encoded> {
    pack(spectrum, format, |_, values| {
        let kept = entries(values, |value| value.abs() > threshold);
        if kept.len() > MAX_ENTRIES { largest(values, MAX_ENTRIES) } else { kept }
    })
}

/// The `k` largest coefficients of full blocks, and as large a part of the smaller ones at the border.
fn keep_per_block(spectrum: &Spectrum, format: Format, k: usize) -> Result<Encoded> {
    let full = spectrum.layout.largest_block();
    pack(spectrum, format, |block, values| {
        largest(values, (k * block.len()).div_ceil(full).min(values.len()))
    })
}

/// Positions in row-major order.
type Kept = Vec<usize>;

fn entries(values: &[f32], keep: impl Fn(f32) -> bool) -> Kept {
    (0..values.len()).filter(|n| keep(values[*n])).collect()
}

fn largest(values: &[f32], count: usize) -> Kept {
    let mut order: Kept = (0..values.len()).collect();
    if count < order.len() {
        order.select_nth_unstable_by(count, |a, b| values[*b].abs().total_cmp(&values[*a].abs()));
        order.truncate(count);
    }
    order.sort_unstable();
    order
}

fn pack(
    spectrum: &Spectrum,
    format: Format,
    choose: impl Fn(Block, &[f32]) -> Kept + Sync,
) -> Result<Encoded> {
    let blocks: Vec<Block> = spectrum.layout.iter().collect();
    let entries: Vec<Vec<Entry>> = blocks
        .par_iter()
        .map(|&block| {
            let values = spectrum.block(block);
            let entry = |n: usize| Entry {
                row: (n / block.width) as u8,
                col: (n % block.width) as u8,
                value: values[n],
            };
            choose(block, values).into_iter().map(entry).collect()
        })
        .collect();
    let term = Sparse::pack(spectrum.layout, format, &entries)?;
    let squared_error = blocks
        .par_iter()
        .map(|&block| {
            let mut difference = spectrum.block(block).to_vec();
            term.for_each(block, 0..block.height, |row, col, value| {
                difference[row * block.width + col] -= value
            });
            energy(&difference)
        })
        .sum();
    Ok(Encoded { term, squared_error })
}
