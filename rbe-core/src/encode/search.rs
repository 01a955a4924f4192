//! Which transform signs, block edge, basis and term suit a matrix: found by trying, not by guessing.

use super::feedback::Feedback;
use super::rate::{Budget, Target, TermChoice};
use super::spectrum::{Spectrum, energy};
use super::{EncoderConfig, planes, sparse, step, trellis};
use crate::codec::term::Term;
use crate::codec::term::planes::ScaleGroup;
use crate::codec::term::sparse::{FORMATS, Format};
use crate::codec::{BLOCK_EDGES, Layout, Matrix};
use crate::error::{Error, Result};
use rayon::prelude::*;

/// Matrices up to this size are tried whole, larger ones on tiles cut out of them.
const SAMPLE_ELEMENTS: usize = 4 * TILE * TILE;
/// How much more squared error than the best a candidate with larger blocks may have and still be taken: large
/// blocks spread a weight's error over more inputs, which the weight's error does not show but the output's does.
/// (On llama-books at 4 bits blocks of 256 have 7 % less KL than blocks of 32 at the same weight error: the
/// `quality` example with [`EncoderConfig::block`] set.)
const LARGE_BLOCK_MARGIN: f64 = 1.02;
/// The same margin in bytes: 2 % of the squared error is 0.014 bits of about four.
const LARGE_BLOCK_MARGIN_IN_BYTES: f64 = 1.0035;
/// How many times the file's bits a matrix may take in memory, where the encoder chooses the term: products read those.
/// (At 8 bits of a file all coefficients of a matrix fit into a coded sparse term, which takes 24 in memory.)
const MOST_IN_MEMORY: f64 = 1.75;
/// What a part of the coefficients saves of the squared error with another bit, as a multiple of what it keeps.
const SAVED_BY_A_BIT: f64 = 3.0;
/// The largest part of a sample that has one number of bits: one of its four largest blocks.
const LAST_BIT: f64 = 0.25;
/// Edge of those tiles: the largest block.
const TILE: usize = 256;

/// How the spectrum is made; shared by all terms that are tried on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Preparation {
    block: usize,
    seed: Option<u64>,
    pub(super) basis: bool,
}

/// The term that carries the spectrum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Carrier {
    /// Each plane of a block taking its place.
    Planes(ScaleGroup),
    /// With the step that suits a file which is entropy coded.
    CodedPlanes,
    /// With its bits counted as the budget says.
    Sparse(Format, Budget),
    /// With states of so many bits.
    Trellis(u8),
}

/// One way to encode a matrix.
pub(super) type Candidate = (Preparation, Carrier);

/// A matrix with terms and their squared error in the coefficient domain, which is that of the weights.
pub(super) struct Encoded {
    pub matrix: Matrix,
    pub squared_error: f64,
}

/// Every way the configuration allows, for a matrix of this size.
///
/// Left to itself, the encoder takes signs with planes and trellis, where they make the output's error smaller at the same
/// weight error (the weights' outliers are spread over a block), and none with the sparse term, whose few large
/// coefficients they would spread likewise. The basis term goes with the sparse one: both are for smooth data.
fn candidates(config: &EncoderConfig, rows: usize, cols: usize) -> Vec<(Preparation, Vec<Carrier>)> {
    let longest = rows.max(cols);
    // Of the edges that hold the whole matrix in one block, the smallest says it all.
    let enough = BLOCK_EDGES.into_iter().find(|edge| *edge >= longest).unwrap_or(TILE);
    let blocks: Vec<usize> = match config.block {
        Some(block) => vec![block],
        None => BLOCK_EDGES.into_iter().rev().filter(|edge| *edge <= enough).collect(),
    };
    let mut planes = vec![Carrier::Planes(ScaleGroup::Block), Carrier::Planes(ScaleGroup::Row)];
    if config.budget == Budget::File {
        planes.push(Carrier::CodedPlanes);
    }
    let mut candidates = Vec::new();
    for block in blocks {
        for signs in
            [true, false].into_iter().filter(|signs| config.signs.is_none_or(|asked| asked == *signs))
        {
            for basis in
                [false, true].into_iter().filter(|basis| config.basis.is_none_or(|asked| asked == *basis))
            {
                let mut carriers = Vec::new();
                let asked = |setting: Option<bool>| setting.is_some();
                let allowed = |term: TermChoice| config.term == term || config.term == TermChoice::Auto;
                if (signs || asked(config.signs)) && (!basis || asked(config.basis)) {
                    if allowed(TermChoice::Trellis) {
                        carriers.push(Carrier::Trellis(config.trellis_state_bits));
                    }
                    if allowed(TermChoice::Planes) {
                        carriers.extend_from_slice(&planes);
                    }
                }
                if allowed(TermChoice::Sparse) && (!signs || asked(config.signs)) {
                    let formats = FORMATS.into_iter().filter(|format| format.allows(block));
                    carriers.extend(formats.map(|format| Carrier::Sparse(format, config.budget)));
                }
                if !carriers.is_empty() {
                    let seed = signs.then_some(config.seed);
                    candidates.push((Preparation { block, seed, basis }, carriers));
                }
            }
        }
    }
    candidates
}

/// Which terms are tried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trials {
    /// Sparse ones.
    pub sparse: bool,
    /// Planes beside a trellis. Without, it stands for all that hold every coefficient, judged as if those were Gaussian.
    pub dense: bool,
}

/// The best candidate for a matrix of this shape, tried on the whole or on a sample of it.
///
/// # Errors
/// When no candidate reaches the rate.
pub(super) fn choose(
    config: &EncoderConfig,
    values: &[f32],
    (rows, cols): (usize, usize),
    trials: Trials,
) -> Result<Candidate> {
    let mut candidates = candidates(config, rows, cols);
    if !trials.sparse {
        candidates.iter_mut().for_each(|(_, carriers)| carriers.retain(|carrier| !Kind::Sparse.has(carrier)));
    }
    candidates.retain(|(_, carriers)| !carriers.is_empty());
    if let [(preparation, carriers)] = &candidates[..]
        && let [carrier] = carriers[..]
    {
        return Ok((*preparation, carrier));
    }
    let elements = values.len();
    let sample;
    let (values, rows, cols) = if elements > SAMPLE_ELEMENTS {
        sample = tiles(values, rows, cols);
        (&sample.0[..], sample.1, sample.2)
    } else {
        (values, rows, cols)
    };
    let energy = energy(values);
    let target = config.rate.target(values.len(), energy);
    let cost = |trial: Trial| {
        let memory = match config.term {
            TermChoice::Auto => trial.memory_bits as f64 / MOST_IN_MEMORY,
            _ => 0.0,
        };
        match target {
            Target::Bits(bits) if memory > bits as f64 => None,
            Target::Bits(bits) => {
                // What a sample's few blocks or scale groups leave of the last bit, those of the whole can spend but for as much.
                let unspent = (bits as f64 - trial.memory_bits as f64) / values.len() as f64;
                let spendable = unspent.clamp(0.0, LAST_BIT) * (1.0 - values.len() as f64 / elements as f64);
                Some(trial.squared_error / (1.0 + SAVED_BY_A_BIT * spendable))
            }
            Target::PerBlock(_) => Some(trial.squared_error),
            Target::SquaredError(_) => Some(memory.max(trial.bits as f64)),
        }
    };
    let mut costs: Vec<Vec<(f64, Candidate)>> = vec![Vec::new(); candidates.len()];
    // Sparse terms last: most need not be tried then.
    for kind in [Kind::Trellis, Kind::Planes, Kind::Sparse] {
        if kind == Kind::Planes && costs.iter().any(|costs| !costs.is_empty()) {
            if !trials.dense || !candidates.iter().any(|(_, carriers)| carriers.iter().any(|c| kind.has(c))) {
                continue;
            }
            let excess = |candidate: Candidate| excess(config, candidate, values, (rows, cols));
            let best = costs.iter().flatten().min_by(|a, b| a.0.total_cmp(&b.0)).copied();
            let (least, its) =
                best.map_or(Ok((0.0, 1.0)), |(cost, best)| excess(best).map(|its| (cost, its)))?;
            if its <= TRUSTED {
                continue;
            }
            // It is not the same for every block edge, so those are measured too that the best may turn out to be.
            for (cost, candidate) in costs.iter_mut().flatten() {
                *cost *= if *cost < least * its { excess(*candidate)? } else { its };
            }
        }
        let least = costs.iter().flatten().fold(f64::INFINITY, |least, (cost, _)| least.min(*cost));
        let worth = |spectrum: &Spectrum, carrier: &Carrier| match (*carrier, target) {
            (Carrier::Sparse(_, budget), Target::Bits(bits)) => {
                sparse::error_of_keeping(spectrum, most_entries(bits, budget, config.term)) <= least
            }
            _ => true,
        };
        let try_all = |((preparation, carriers), costs): (&(Preparation, Vec<Carrier>), &mut Vec<_>)| {
            let mut carriers = carriers.iter().filter(|carrier| kind.has(carrier)).peekable();
            if carriers.peek().is_none() {
                return Ok(());
            }
            let spectrum = prepare(config, preparation, values, (rows, cols))?;
            for carrier in carriers.filter(|carrier| worth(&spectrum, carrier)) {
                let trial = try_out(&spectrum, *carrier, target, config.budget)?;
                costs.extend(trial.and_then(cost).map(|cost| (cost, (*preparation, *carrier))));
            }
            Ok::<_, Error>(())
        };
        candidates.par_iter().zip(&mut costs).try_for_each(try_all)?;
    }
    let costs = costs.concat();
    let margin = match target {
        Target::SquaredError(_) => LARGE_BLOCK_MARGIN_IN_BYTES,
        Target::Bits(_) | Target::PerBlock(_) => LARGE_BLOCK_MARGIN,
    };
    // Candidates come with the largest blocks and the simplest form first.
    let best_of = |costs: &[(f64, Candidate)]| {
        let least = costs.iter().fold(f64::INFINITY, |least, (cost, _)| least.min(*cost));
        costs.iter().find(|(cost, _)| *cost <= least * margin).copied()
    };
    let chosen = best_of(&costs).ok_or_else(|| unreachable_rate(config, values.len(), energy))?;
    Ok(chosen.1)
}

/// What carries the coefficients.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Trellis,
    Planes,
    Sparse,
}

impl Kind {
    fn has(self, carrier: &Carrier) -> bool {
        self == match carrier {
            Carrier::Trellis(_) => Kind::Trellis,
            Carrier::Planes(_) | Carrier::CodedPlanes => Kind::Planes,
            Carrier::Sparse(..) => Kind::Sparse,
        }
    }
}

/// How many times a trellis' expected cost its real one may be for planes not to be tried: they cost 1.12 times as much in a file
/// and 1.4 times or more in memory.
const TRUSTED: f64 = 1.1;

/// A trellis is judged as if its coefficients were Gaussian. Where they are not (a mean that all rows of a head share makes a few
/// of them huge), it costs more: how many times as much, measured on the first rows.
///
/// # Errors
/// As [`prepare`].
fn excess(
    config: &EncoderConfig,
    (preparation, carrier): Candidate,
    values: &[f32],
    (rows, cols): (usize, usize),
) -> Result<f64> {
    let rows = rows.min(TILE);
    let values = &values[..rows * cols];
    let spectrum = prepare(config, &preparation, values, (rows, cols))?;
    let target = config.rate.target(values.len(), energy(values));
    let expected = try_out(&spectrum, carrier, target, config.budget)?;
    let real = carry(&spectrum, None, carrier, target)?.map(|encoded| Trial::of(&encoded, config.budget));
    Ok(match (expected, real, target) {
        (Some(expected), Some(real), Target::Bits(_)) if expected.squared_error > 0.0 => {
            real.squared_error / expected.squared_error
        }
        (Some(expected), Some(real), _) => real.bits as f64 / expected.bits as f64,
        _ => f64::INFINITY,
    })
}

/// The most entries of a sparse term in so many bits. In memory an entry takes 16 or more (an F16 value in a row whose mask is
/// counted elsewhere); coded, 6 or more (a sign and a few bits of an eight-bit value, next to the last).
fn most_entries(bits: usize, budget: Budget, term: TermChoice) -> usize {
    match (budget, term) {
        (Budget::File, TermChoice::Auto) => (bits as f64 * MOST_IN_MEMORY) as usize / 16,
        (Budget::File, _) => bits / 6,
        (Budget::Memory, _) => bits / 16,
    }
}

/// Transforms a matrix as a preparation says.
///
/// # Errors
/// When the matrix cannot be cut into blocks.
pub(super) fn prepare(
    config: &EncoderConfig,
    preparation: &Preparation,
    values: &[f32],
    (rows, cols): (usize, usize),
) -> Result<Spectrum> {
    let layout = Layout::new(rows, cols, preparation.block)?;
    Ok(Spectrum::new(values, layout, config.transform, preparation.seed, preparation.basis))
}

/// What a carrier comes to.
struct Trial {
    squared_error: f64,
    /// Of the payload, as the budget counts them.
    bits: usize,
    memory_bits: usize,
}

impl Trial {
    fn of(encoded: &Encoded, budget: Budget) -> Self {
        let memory_bits = 8 * encoded.matrix.plain_size_in_bytes();
        let bits = match budget {
            Budget::File => 8 * encoded.matrix.size_in_bytes(),
            Budget::Memory => memory_bits,
        };
        Self { squared_error: encoded.squared_error, bits, memory_bits }
    }
}

/// Tries a carrier: a trellis by its model, since a search for the bits takes long, all others by encoding. `None` when it
/// cannot reach the target.
///
/// # Errors
/// As [`carry`].
fn try_out(spectrum: &Spectrum, carrier: Carrier, target: Target, budget: Budget) -> Result<Option<Trial>> {
    if let Carrier::Trellis(state_bits) = carrier {
        let other_bits = 8 * assemble(spectrum, []).size_in_bytes();
        let estimate = trellis::estimate(spectrum, None, state_bits, target, other_bits);
        return Ok(estimate.map(|trellis::Estimate { squared_error, bits }| Trial {
            squared_error,
            bits,
            memory_bits: bits,
        }));
    }
    Ok(carry(spectrum, None, carrier, target)?.map(|encoded| Trial::of(&encoded, budget)))
}

/// The matrix of a spectrum's basis term and the terms that carry the rest.
fn assemble(spectrum: &Spectrum, carriers: impl IntoIterator<Item = Term>) -> Matrix {
    let terms = spectrum.basis.clone().map(Term::Basis).into_iter().chain(carriers).collect();
    Matrix::new(spectrum.layout, spectrum.transform, spectrum.seed, terms, 0.0)
}

/// Encodes a spectrum; `None` when this carrier cannot reach the target.
///
/// # Errors
/// When the carrier cannot hold blocks of this size.
pub(super) fn carry(
    spectrum: &Spectrum,
    feedback: Option<&Feedback>,
    carrier: Carrier,
    target: Target,
) -> Result<Option<Encoded>> {
    let other_bits = 8 * assemble(spectrum, []).size_in_bytes();
    Ok(match carrier {
        Carrier::Planes(group) => {
            planes::encode(spectrum, feedback, group, target, other_bits).map(|encoded| Encoded {
                matrix: assemble(spectrum, [Term::Planes(encoded.term)]),
                squared_error: encoded.squared_error,
            })
        }
        Carrier::CodedPlanes => step::encode(spectrum, feedback, target, other_bits).map(|encoded| Encoded {
            matrix: assemble(spectrum, [Term::Planes(encoded.term)]),
            squared_error: encoded.squared_error,
        }),
        Carrier::Sparse(format, budget) => {
            sparse::encode(spectrum, format, target, other_bits, budget)?.map(|encoded| Encoded {
                matrix: assemble(spectrum, [Term::Sparse(encoded.term)]),
                squared_error: encoded.squared_error,
            })
        }
        Carrier::Trellis(state_bits) => trellis::encode(spectrum, feedback, state_bits, target, other_bits)
            .map(|encoded| Encoded {
                matrix: assemble(spectrum, encoded.terms.into_iter().map(Term::Trellis)),
                squared_error: encoded.squared_error,
            }),
    })
}

/// Four tiles spread over the matrix, stacked so that no block crosses from one to the next.
fn tiles(values: &[f32], rows: usize, cols: usize) -> (Vec<f32>, usize, usize) {
    let (tile_rows, tile_cols) = (rows.min(TILE), cols.min(TILE));
    let origin = |tile: usize| (tile * (rows - tile_rows) / 3, tile * (cols - tile_cols) / 3);
    let mut sample = Vec::with_capacity(4 * tile_rows * tile_cols);
    let mut push = |tile: usize, row: usize| {
        let (top, left) = origin(tile);
        sample.extend_from_slice(&values[(top + row) * cols + left..][..tile_cols]);
    };
    if tile_rows == TILE {
        (0..4).for_each(|tile| (0..tile_rows).for_each(|row| push(tile, row)));
        (sample, 4 * tile_rows, tile_cols)
    } else {
        (0..tile_rows).for_each(|row| (0..4).for_each(|tile| push(tile, row)));
        (sample, tile_rows, 4 * tile_cols)
    }
}

pub(super) fn unreachable_rate(config: &EncoderConfig, elements: usize, energy: f64) -> Error {
    let best = match config.rate.target(elements, energy) {
        Target::Bits(_) => "headers and scales alone take more; ask for more bits or larger blocks",
        Target::SquaredError(_) => {
            "trellises of eight bits reach a relative error of about 0.005, planes 0.009, the sparse term 0.0004; ask for more"
        }
        Target::PerBlock(_) => {
            "a number of coefficients is the sparse term's; ask for bits or an error instead"
        }
    };
    Error::UnreachableRate { asked: config.rate.to_string(), best: best.to_owned() }
}
