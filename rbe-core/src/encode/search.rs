//! Which transform signs, block edge, basis and term suit a matrix: found by trying, not by guessing.

use super::coded_planes::CodedPlanesQuantizer;
use super::config::EncoderConfig;
use super::feedback::Feedback;
use super::matrix_ref::MatrixRef;
use super::planes::PlanesQuantizer;
use super::quantizer::{Estimate, Quantized, Quantizer, Task, Trial};
use super::rate::{Budget, Target, TermChoice};
use super::sparse::SparseQuantizer;
use super::spectrum::{Spectrum, energy};
use super::trellis::TrellisQuantizer;
use crate::codec::term::Term;
use crate::codec::term::planes::ScaleGroup;
use crate::codec::term::sparse::FORMATS;
use crate::codec::{BLOCK_EDGES, Layout, Matrix};
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::sync::Arc;

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
/// So many bits a weight are two trellises for half of the scale groups and more: their products take twice as long, as does the search, where
/// planes take hardly longer with another bit (docs/speed.md, "Above five bits").
const MOSTLY_TWO: f64 = 4.5;
/// How much more squared error planes may have than two trellises in a file of the same size and still be taken, which is from about 5.6 bits on;
/// models' divergence is the same then but for chance (docs/quality.md, "Planes where two trellises would be"). In memory they take a sixth more.
const FASTER_MARGIN: f64 = 1.05;
/// The same margin in bytes: 5 % of the squared error is 0.035 bits of about six.
const FASTER_MARGIN_IN_BYTES: f64 = 1.006;
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

/// One way to encode a matrix.
pub(super) type Candidate = (Preparation, Arc<dyn Quantizer>);

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
fn candidates(config: &EncoderConfig, weights: MatrixRef) -> Vec<(Preparation, Vec<Arc<dyn Quantizer>>)> {
    let longest = weights.rows().max(weights.cols());
    // Of the edges that hold the whole matrix in one block, the smallest says it all.
    let enough = BLOCK_EDGES.into_iter().find(|edge| *edge >= longest).unwrap_or(TILE);
    let blocks: Vec<usize> = match config.block {
        Some(block) => vec![block],
        None => BLOCK_EDGES.into_iter().rev().filter(|edge| *edge <= enough).collect(),
    };
    let mut candidates = Vec::new();
    for block in blocks {
        for signs in
            [true, false].into_iter().filter(|signs| config.signs.is_none_or(|asked| asked == *signs))
        {
            for basis in
                [false, true].into_iter().filter(|basis| config.basis.is_none_or(|asked| asked == *basis))
            {
                let asked = |setting: Option<bool>| setting.is_some();
                let mut quantizers = Vec::new();
                if (signs || asked(config.signs)) && (!basis || asked(config.basis)) {
                    quantizers.extend(of_all_coefficients(config));
                }
                if !signs || asked(config.signs) {
                    quantizers.extend(of_few_coefficients(config, block));
                }
                if !quantizers.is_empty() {
                    let seed = signs.then_some(config.seed);
                    candidates.push((Preparation { block, seed, basis }, quantizers));
                }
            }
        }
    }
    candidates
}

/// Whether the configuration leaves this term to the encoder.
fn is_allowed(config: &EncoderConfig, term: TermChoice) -> bool {
    [term, TermChoice::Auto].contains(&config.term)
}

/// The quantizers that take every coefficient, the simplest form first.
fn of_all_coefficients(config: &EncoderConfig) -> Vec<Arc<dyn Quantizer>> {
    let mut quantizers: Vec<Arc<dyn Quantizer>> = Vec::new();
    if is_allowed(config, TermChoice::Trellis) {
        quantizers.push(Arc::new(TrellisQuantizer { state_bits: config.trellis_state_bits }));
    }
    if is_allowed(config, TermChoice::Planes) {
        for group in [ScaleGroup::Block, ScaleGroup::Row] {
            quantizers.push(Arc::new(PlanesQuantizer { group }));
        }
        if config.budget == Budget::File {
            quantizers.push(Arc::new(CodedPlanesQuantizer));
        }
    }
    quantizers
}

/// Those that keep a few of a block of this edge.
fn of_few_coefficients(config: &EncoderConfig, block: usize) -> Vec<Arc<dyn Quantizer>> {
    let formats =
        FORMATS.into_iter().filter(|format| is_allowed(config, TermChoice::Sparse) && format.allows(block));
    formats.map(|format| Arc::new(SparseQuantizer { format, budget: config.budget }) as _).collect()
}

/// The quantizers by whose models matrices share bits: one of each form that takes every coefficient.
pub(super) fn shared_models(config: &EncoderConfig) -> Vec<Arc<dyn Quantizer>> {
    let mut quantizers: Vec<Arc<dyn Quantizer>> = Vec::new();
    if is_allowed(config, TermChoice::Trellis) {
        quantizers.push(Arc::new(TrellisQuantizer { state_bits: config.trellis_state_bits }));
    }
    if is_allowed(config, TermChoice::Planes) {
        quantizers.push(match (config.budget, config.term) {
            (Budget::File, TermChoice::Planes) => Arc::new(CodedPlanesQuantizer),
            _ => Arc::new(PlanesQuantizer { group: ScaleGroup::Block }),
        });
    }
    quantizers
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
pub(super) fn choose(config: &EncoderConfig, weights: MatrixRef, trials: Trials) -> Result<Candidate> {
    let mut candidates = candidates(config, weights);
    if !trials.sparse {
        candidates
            .iter_mut()
            .for_each(|(_, quantizers)| quantizers.retain(|q| q.trial() != Trial::OfFewCoefficients));
    }
    candidates.retain(|(_, quantizers)| !quantizers.is_empty());
    if let [(preparation, quantizers)] = &candidates[..]
        && let [quantizer] = &quantizers[..]
    {
        return Ok((*preparation, quantizer.clone()));
    }
    let sample;
    let tried = match weights.elements() > SAMPLE_ELEMENTS {
        true => {
            let (values, rows, cols) = tiles(weights);
            sample = values;
            MatrixRef::new(&sample, rows, cols)
        }
        false => weights,
    };
    let energy = energy(tried.values());
    let mut contest = Contest {
        config,
        tried,
        untried: 1.0 - tried.elements() as f64 / weights.elements() as f64,
        target: config.rate.target(tried.elements(), energy),
        costs: vec![Vec::new(); candidates.len()],
        candidates,
    };
    contest.try_all(Trial::ByModel)?;
    if !contest.has_costs() || (trials.dense && contest.models_fail()?) {
        contest.try_all(Trial::WhereModelsFail)?;
    }
    contest.try_all(Trial::OfFewCoefficients)?;
    let (cost, best) = contest.best().ok_or_else(|| unreachable_rate(config, tried.elements(), energy))?;
    let faster = if trials.dense { contest.faster(cost, &best)? } else { None };
    Ok(faster.unwrap_or(best))
}

/// Candidates for some weights, and what those cost that were tried.
struct Contest<'a> {
    config: &'a EncoderConfig,
    /// The weights, or a sample of them.
    tried: MatrixRef<'a>,
    /// The part of the weights that is not in the sample.
    untried: f64,
    target: Target,
    candidates: Vec<(Preparation, Vec<Arc<dyn Quantizer>>)>,
    /// For each preparation.
    costs: Vec<Vec<(f64, Candidate)>>,
}

impl Contest<'_> {
    /// What is to be as little as possible; `None` where it takes too much memory.
    fn cost(&self, outcome: Outcome) -> Option<f64> {
        let memory = match self.config.term {
            TermChoice::Auto => outcome.memory_bits as f64 / MOST_IN_MEMORY,
            _ => 0.0,
        };
        match self.target {
            Target::Bits(bits) if memory > bits as f64 => None,
            Target::Bits(bits) => {
                // What a sample's few blocks or scale groups leave of the last bit, those of the whole can spend but for as much.
                let unspent = (bits as f64 - outcome.memory_bits as f64) / self.tried.elements() as f64;
                let spendable = unspent.clamp(0.0, LAST_BIT) * self.untried;
                Some(outcome.squared_error / (1.0 + SAVED_BY_A_BIT * spendable))
            }
            Target::PerBlock(_) => Some(outcome.squared_error),
            Target::SquaredError(_) => Some(memory.max(outcome.bits as f64)),
        }
    }

    fn has_costs(&self) -> bool {
        self.costs.iter().any(|costs| !costs.is_empty())
    }

    /// The least cost until now.
    fn least(&self) -> f64 {
        self.costs.iter().flatten().fold(f64::INFINITY, |least, (cost, _)| least.min(*cost))
    }

    /// Whether models said so much too little that other terms may be better. Costs are then put right.
    ///
    /// # Errors
    /// As [`excess`].
    fn models_fail(&mut self) -> Result<bool> {
        let waits = |quantizer: &Arc<dyn Quantizer>| quantizer.trial() == Trial::WhereModelsFail;
        if !self.candidates.iter().any(|(_, quantizers)| quantizers.iter().any(waits)) {
            return Ok(false);
        }
        let (config, tried) = (self.config, self.tried);
        let excess = |candidate: &Candidate| excess(config, candidate, tried);
        let best = self.costs.iter().flatten().min_by(|a, b| a.0.total_cmp(&b.0));
        let Some((least, best)) = best.map(|(cost, best)| (*cost, best.clone())) else { return Ok(true) };
        let its = excess(&best)?;
        if its * self.beyond_gaussian(&best)? <= TRUSTED {
            return Ok(false);
        }
        // It is not the same for every block edge, so those are measured too that the best may turn out to be.
        for (cost, candidate) in self.costs.iter_mut().flatten() {
            *cost *= if *cost < least * its { excess(candidate)? } else { its };
        }
        Ok(true)
    }

    /// How many times the squared error of Gaussian coefficients a candidate's model expects.
    ///
    /// # Errors
    /// As [`prepare`].
    fn beyond_gaussian(&self, (preparation, quantizer): &Candidate) -> Result<f64> {
        let spectrum = prepare(self.config, preparation, self.tried)?;
        let estimate = quantizer.model(&task(&spectrum, None, self.target));
        Ok(match estimate {
            Some(Estimate { squared_error, gaussian, .. }) if gaussian > 0.0 => squared_error / gaussian,
            _ => 1.0,
        })
    }

    /// Tries all of a kind that may still be the best.
    ///
    /// # Errors
    /// As [`prepare`] and [`try_out`].
    fn try_all(&mut self, trial: Trial) -> Result<()> {
        let (config, least) = (self.config, self.least());
        let worth = |spectrum: &Spectrum, quantizer: &dyn Quantizer| match self.target {
            Target::Bits(bits) => {
                let most_in_memory =
                    (config.term == TermChoice::Auto).then_some((bits as f64 * MOST_IN_MEMORY) as usize);
                quantizer.least_error(spectrum, bits, most_in_memory) <= least
            }
            _ => true,
        };
        let try_out_all = |(preparation, quantizers): &(Preparation, Vec<Arc<dyn Quantizer>>)| {
            let mut costs = Vec::new();
            let mut quantizers = quantizers.iter().filter(|quantizer| quantizer.trial() == trial).peekable();
            if quantizers.peek().is_none() {
                return Ok(costs);
            }
            let spectrum = prepare(config, preparation, self.tried)?;
            for quantizer in quantizers.filter(|quantizer| worth(&spectrum, &***quantizer)) {
                let outcome = try_out(&spectrum, &**quantizer, self.target, config.budget)?;
                let cost = outcome.and_then(|outcome| self.cost(outcome));
                costs.extend(cost.map(|cost| (cost, (*preparation, quantizer.clone()))));
            }
            Ok::<_, Error>(costs)
        };
        let found: Vec<_> = self.candidates.par_iter().map(try_out_all).collect::<Result<_>>()?;
        self.costs.iter_mut().zip(found).for_each(|(costs, found)| costs.extend(found));
        Ok(())
    }

    /// The first of those that cost nearly the least: the largest blocks and the simplest form come first.
    fn best(&self) -> Option<(f64, Candidate)> {
        let margin = match self.target {
            Target::SquaredError(_) => LARGE_BLOCK_MARGIN_IN_BYTES,
            Target::Bits(_) | Target::PerBlock(_) => LARGE_BLOCK_MARGIN,
        };
        let good = self.least() * margin;
        self.costs.iter().flatten().find(|(cost, _)| *cost <= good).cloned()
    }

    /// Planes in the place of two trellises where a file of this size is hardly worse with them.
    ///
    /// # Errors
    /// As [`prepare`] and [`try_out`].
    fn faster(&self, cost: f64, (preparation, best): &Candidate) -> Result<Option<Candidate>> {
        let Contest { config, tried, target, .. } = *self;
        let (bits, margin) = match target {
            Target::Bits(bits) => (bits as f64, FASTER_MARGIN),
            Target::SquaredError(_) => (cost, FASTER_MARGIN_IN_BYTES),
            Target::PerBlock(_) => return Ok(None),
        };
        let is_two = best.trial() == Trial::ByModel && bits >= MOSTLY_TWO * tried.elements() as f64;
        if !is_two || config.term != TermChoice::Auto || config.budget != Budget::File {
            return Ok(None);
        }
        let spectrum = prepare(config, preparation, tried)?;
        let outcome = try_out(&spectrum, &CodedPlanesQuantizer, target, config.budget)?;
        let planes = outcome.and_then(|outcome| self.cost(outcome));
        let is_near = planes.is_some_and(|planes| planes <= margin * cost);
        Ok(is_near.then(|| (*preparation, Arc::new(PlanesFirst { otherwise: best.clone() }) as _)))
    }
}

/// Planes, or where they do not reach what they did on a sample, what they took the place of.
#[derive(Debug)]
struct PlanesFirst {
    otherwise: Arc<dyn Quantizer>,
}

impl Quantizer for PlanesFirst {
    fn trial(&self) -> Trial {
        self.otherwise.trial()
    }

    fn encode(&self, task: &Task) -> Result<Option<Quantized>> {
        match CodedPlanesQuantizer.encode(task)? {
            Some(planes) => Ok(Some(planes)),
            None => self.otherwise.encode(task),
        }
    }
}

/// How many times the cost that is expected of Gaussian coefficients a trellis' real one may be for planes not to be tried: they cost
/// 1.12 times as much in a file and 1.4 times or more in memory.
const TRUSTED: f64 = 1.1;

/// A trellis is judged as if its coefficients were Gaussian but for some. Where they are not (a mean that all rows of a head share makes
/// a few of them huge), it may cost more: how many times as much, measured on the first rows.
///
/// # Errors
/// As [`prepare`].
fn excess(config: &EncoderConfig, (preparation, quantizer): &Candidate, weights: MatrixRef) -> Result<f64> {
    let weights = weights.first_rows(TILE);
    let spectrum = prepare(config, preparation, weights)?;
    let target = config.rate.target(weights.elements(), energy(weights.values()));
    let expected = try_out(&spectrum, &**quantizer, target, config.budget)?;
    let real = quantize(&spectrum, None, &**quantizer, target)?;
    let real = real.map(|encoded| Outcome::of(&encoded, config.budget));
    Ok(match (expected, real, target) {
        (Some(expected), Some(real), Target::Bits(_)) if expected.squared_error > 0.0 => {
            real.squared_error / expected.squared_error
        }
        (Some(expected), Some(real), _) => real.bits as f64 / expected.bits as f64,
        _ => f64::INFINITY,
    })
}

/// Transforms a matrix as a preparation says.
///
/// # Errors
/// When the matrix cannot be cut into blocks.
pub(super) fn prepare(
    config: &EncoderConfig,
    preparation: &Preparation,
    weights: MatrixRef,
) -> Result<Spectrum> {
    prepare_owned(config, preparation, weights.values().to_vec(), weights.shape())
}

/// The same of values that are not needed any more.
///
/// # Errors
/// As [`prepare`].
pub(super) fn prepare_owned(
    config: &EncoderConfig,
    preparation: &Preparation,
    values: Vec<f32>,
    (rows, cols): (usize, usize),
) -> Result<Spectrum> {
    let layout = Layout::new(rows, cols, preparation.block)?;
    Ok(Spectrum::new(values, layout, config.transform, preparation.seed, preparation.basis))
}

/// What a quantizer comes to.
struct Outcome {
    squared_error: f64,
    /// Of the payload, as the budget counts them.
    bits: usize,
    memory_bits: usize,
}

impl Outcome {
    fn of(encoded: &Encoded, budget: Budget) -> Self {
        let memory_bits = 8 * encoded.matrix.plain_size_in_bytes();
        let bits = match budget {
            Budget::File => 8 * encoded.matrix.size_in_bytes(),
            Budget::Memory => memory_bits,
        };
        Self { squared_error: encoded.squared_error, bits, memory_bits }
    }
}

/// Tries a quantizer: by its model where that stands for it, else by encoding. `None` when it cannot reach the target.
///
/// # Errors
/// As [`quantize`].
fn try_out(
    spectrum: &Spectrum,
    quantizer: &dyn Quantizer,
    target: Target,
    budget: Budget,
) -> Result<Option<Outcome>> {
    if quantizer.trial() == Trial::ByModel {
        let estimate = quantizer.model(&task(spectrum, None, target));
        return Ok(estimate.map(|Estimate { squared_error, bits, .. }| Outcome {
            squared_error,
            bits,
            memory_bits: bits,
        }));
    }
    Ok(quantize(spectrum, None, quantizer, target)?.map(|encoded| Outcome::of(&encoded, budget)))
}

/// The task that a spectrum is.
fn task<'a>(spectrum: &'a Spectrum, feedback: Option<&'a Feedback>, target: Target) -> Task<'a> {
    Task { spectrum, feedback, target, other_bits: 8 * assemble(spectrum, vec![]).size_in_bytes() }
}

/// The matrix of a spectrum's basis term and the terms that carry the rest.
fn assemble(spectrum: &Spectrum, rest: Vec<Term>) -> Matrix {
    let terms = spectrum.basis.clone().map(Term::Basis).into_iter().chain(rest).collect();
    Matrix::new(spectrum.layout, spectrum.transform, spectrum.seed, terms, 0.0)
}

/// Encodes a spectrum; `None` when this quantizer cannot reach the target.
///
/// # Errors
/// When its terms cannot hold blocks of this size.
pub(super) fn quantize(
    spectrum: &Spectrum,
    feedback: Option<&Feedback>,
    quantizer: &dyn Quantizer,
    target: Target,
) -> Result<Option<Encoded>> {
    let quantized = quantizer.encode(&task(spectrum, feedback, target))?;
    Ok(quantized.map(|Quantized { terms, squared_error }| Encoded {
        matrix: assemble(spectrum, terms),
        squared_error,
    }))
}

/// Four tiles spread over the matrix, stacked so that no block crosses from one to the next.
fn tiles(weights: MatrixRef) -> (Vec<f32>, usize, usize) {
    let (rows, cols) = weights.shape();
    let (tile_rows, tile_cols) = (rows.min(TILE), cols.min(TILE));
    let origin = |tile: usize| (tile * (rows - tile_rows) / 3, tile * (cols - tile_cols) / 3);
    let mut sample = Vec::with_capacity(4 * tile_rows * tile_cols);
    let mut push = |tile: usize, row: usize| {
        let (top, left) = origin(tile);
        sample.extend_from_slice(&weights.row(top + row)[left..left + tile_cols]);
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
