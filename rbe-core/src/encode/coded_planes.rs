//! Bit-planes for files that are entropy coded: one step for the whole matrix, as fine as the file has room for.
//!
//! Coded, a code costs what it is likely to be, not the number of its planes. Then the uniform quantiser without an end is the
//! best of single coefficients, a quarter of a bit (1.53 dB) from what no code can pass, and all coefficients have the same
//! error: blocks of smaller coefficients have the same step and fewer planes (Gish and Pierce 1968). Memory pays: a
//! block has as many planes as its largest codes need, about one more than the file has bits.

use super::feedback::{Feedback, weighed_energy};
use super::planes::{self, Encoded, best_step};
use super::quantizer::{Estimate, Quantized, Quantizer, Task, Trial};
use super::rate::Target;
use super::spectrum::{Spectrum, energy};
use crate::codec::term::planes::coded::Tables;
use crate::codec::term::planes::{MAX_PLANES, ScaleGroup};
use crate::codec::{Block, Layout};
use crate::error::Result;
use rayon::prelude::*;

/// Differential entropy of a unit Gaussian in bits, `log2(2 pi e) / 2`: codes have this less the step's logarithm.
const GAUSSIAN_ENTROPY: f64 = 2.047_095_585_180_641;
/// Beyond this part of the deviation, a step only makes one plane worse: the best of one plane (Max 1960).
const COARSEST: f64 = 1.5958;
/// Beyond this one, a plane takes more bits for what it saves than other blocks do: its savings are 0.637 of the variance
/// a bit, theirs `2 ln 2` of the step's square over 12.
const NOTHING: f64 = 2.35;
/// How much squared error, as a part of what the step alone makes, may come from the largest coefficients for lack of a
/// plane that would double the block's codes.
const CLIPPED: f64 = 0.01;
/// Searches for a step end after so many.
const TRIALS: usize = 24;
/// Bytes of tables, where they are not known.
const TABLES_GUESS: usize = 128;
/// The most bytes by which a chunk's lanes are longer than their symbols are worth: four counts, four rounded words.
const LANES_END: usize = 28;
/// How near, in octaves, a step is to the best: bits per coefficient.
const SLACK: f64 = 0.002;

/// Planes with the step that suits a file which is entropy coded.
#[derive(Debug)]
pub(super) struct CodedPlanesQuantizer;

impl Quantizer for CodedPlanesQuantizer {
    fn trial(&self) -> Trial {
        Trial::WhereModelsFail
    }

    fn encode(&self, task: &Task) -> Result<Option<Quantized>> {
        Ok(encode(task).map(Quantized::from))
    }

    fn model(&self, task: &Task) -> Option<Estimate> {
        let Task { spectrum, feedback, target: Target::Bits(budget), other_bits } = *task else {
            return None;
        };
        let plan = Plan::new(spectrum, feedback, |_, deviation| FINEST * deviation);
        let curve = |step: f64| {
            let block = |block: &PlannedBlock| {
                let ratio = step * block.factor / block.deviation;
                if block.deviation == 0.0 || ratio > NOTHING {
                    return (0.0, block.weighed_energy);
                }
                let ratio = ratio.clamp(FINEST, COARSEST);
                let bits = (GAUSSIAN_ENTROPY - ratio.log2()) * block.place.len() as f64;
                (bits, block.weighed_energy * ratio * ratio / 12.0)
            };
            let sum = |a: (f64, f64), b: (f64, f64)| (a.0 + b.0, a.1 + b.1);
            plan.blocks.iter().map(block).fold((0.0, 0.0), sum)
        };
        let side_bits = (other_bits + plan.side_bits()) as f64;
        let weights = spectrum.layout.elements() as f64;
        let step = plan.finest(|step| (curve(step).0 + side_bits - budget as f64) / weights)?;
        let (bits, error) = curve(step);
        Some(Estimate { squared_error: error, gaussian: error, bits: (side_bits + bits) as usize })
    }
}

/// Quantises a spectrum.
///
/// Returns `None` when the target cannot be reached.
fn encode(task: &Task) -> Option<Encoded> {
    let Task { spectrum, feedback, target, other_bits } = *task;
    let plan = Plan::new(spectrum, feedback, |values, _| best_step(values, MAX_PLANES).into());
    match target {
        Target::PerBlock(_) => None,
        Target::Bits(bits) => {
            let bits = bits.checked_sub(other_bits)?;
            let weights = spectrum.layout.elements() as f64;
            let mut step = plan.finest(|step| (plan.estimate(step).bits as f64 - bits as f64) / weights)?;
            // The estimate comes true but for rounding; with errors handed on, codes spread more.
            for _ in 0..TRIALS {
                let encoded = plan.quantize(step, feedback);
                let spent = 8 * (1 + encoded.term.coded_size_in_bytes());
                if spent <= bits {
                    return Some(encoded);
                }
                step *= ((spent - bits) as f64 / weights + SLACK).exp2();
            }
            None
        }
        Target::SquaredError(bound) => {
            let step = plan.coarsest(|step| 0.5 * (bound / plan.estimate(step).squared_error).log2())?;
            let encoded = plan.quantize(step, feedback);
            (encoded.squared_error <= bound).then_some(encoded)
        }
    }
}

/// The best step of [`MAX_PLANES`] planes, as a part of the deviation: there are no finer codes.
const FINEST: f64 = 0.030_762_2;

/// What is known of a block before its step is.
struct PlannedBlock {
    place: Block,
    deviation: f64,
    weighed_energy: f64,
    /// Of the matrix' step: the smaller, the more the block's errors weigh.
    factor: f64,
    /// The best step of [`MAX_PLANES`] planes.
    finest: f64,
}

struct Plan<'a> {
    spectrum: &'a Spectrum,
    layout: Layout,
    blocks: Vec<PlannedBlock>,
}

impl<'a> Plan<'a> {
    /// `finest` is from a block's coefficients and their deviation.
    fn new(
        spectrum: &'a Spectrum,
        feedback: Option<&Feedback>,
        finest: impl Fn(&[f32], f64) -> f64 + Sync,
    ) -> Self {
        let layout = spectrum.layout;
        let places: Vec<Block> = layout.iter().collect();
        let block = |place: &Block| {
            let coefficients = spectrum.block(*place);
            let own = energy(coefficients);
            let weighed_energy = weighed_energy(spectrum, feedback, *place);
            let factor = if own > 0.0 && weighed_energy > 0.0 { (own / weighed_energy).sqrt() } else { 1.0 };
            let deviation = (own / place.len() as f64).sqrt();
            let finest = finest(coefficients, deviation);
            PlannedBlock { place: *place, deviation, weighed_energy, factor, finest }
        };
        Self { spectrum, layout, blocks: places.par_iter().map(block).collect() }
    }

    /// Bits beside the codes: kind, group, unit; planes, table and scale of a block; tables; ends of lanes.
    fn side_bits(&self) -> usize {
        let chunks = self.layout.elements() / (1 << 16) + 1;
        8 * 6 + (8 + 8 + 16) * self.layout.blocks() + 8 * (TABLES_GUESS + LANES_END * chunks)
    }

    /// The step and the planes of a block where the matrix has this step.
    fn choose(&self, block: &PlannedBlock, step: f64) -> (f32, u8) {
        let (asked, deviation) = (step * block.factor, block.deviation);
        if block.finest == 0.0 || asked > NOTHING * deviation {
            return (0.0, 0);
        }
        let step = asked.min(COARSEST * deviation).max(block.finest);
        let coefficients = self.spectrum.block(block.place);
        let allowed = CLIPPED * coefficients.len() as f64 * step * step / 12.0;
        let step = step as f32;
        // Half the range of the first number of planes that is not out of the question.
        let needed = (1.5 * deviation / f64::from(step)).log2().ceil().clamp(0.0, 7.0);
        let clipped = |planes: u8| {
            let largest = f32::from(1u16 << (planes - 1)) * step;
            // Outside the last cell the error grows from half a step on.
            let beyond =
                |value: &f32| f64::from((value.abs() - largest).max(0.0) * (value.abs() - largest + step));
            coefficients.iter().map(beyond).sum::<f64>()
        };
        let enough = |planes: &u8| *planes == MAX_PLANES || clipped(*planes) <= allowed;
        let planes = (1 + needed as u8..=MAX_PLANES).find(enough).unwrap_or(MAX_PLANES);
        (step, planes)
    }

    fn choose_all(&self, step: f64) -> (Vec<u8>, Vec<Vec<f32>>) {
        let chosen: Vec<_> = self.blocks.par_iter().map(|block| self.choose(block, step)).collect();
        chosen.into_iter().map(|(step, planes)| (planes, vec![step])).unzip()
    }

    fn quantize(&self, step: f64, feedback: Option<&Feedback>) -> Encoded {
        let (planes, steps) = self.choose_all(step);
        planes::quantize(self.spectrum, feedback, ScaleGroup::Block, &planes, &steps)
    }

    /// What a step comes to when no errors are handed on, in a term of its own.
    fn estimate(&self, step: f64) -> Estimate {
        let (planes, steps) = self.choose_all(step);
        let unit = planes::unit(&steps);
        let blocks = planes::round_blocks(self.spectrum, ScaleGroup::Block, &planes, &steps, unit);
        let codes = blocks.par_iter().map(|(block, _)| (block.planes, &block.codes[..]));
        let tables = Tables::new(self.layout, codes);
        let squared_error = blocks.iter().map(|(_, error)| error).sum();
        Estimate {
            squared_error,
            gaussian: squared_error,
            bits: tables.bits() + self.side_bits() - 8 * (TABLES_GUESS + self.layout.blocks()),
        }
    }

    /// The finest step at which something fits, by how many octaves a step is too fine for it (too coarse, where negative).
    fn finest(&self, too_fine: impl Fn(f64) -> f64) -> Option<f64> {
        self.search(|step| too_fine(step) + 0.5 * SLACK).coarser
    }

    /// The coarsest likewise.
    fn coarsest(&self, too_fine: impl Fn(f64) -> f64) -> Option<f64> {
        self.search(|step| too_fine(step) - 0.5 * SLACK).finer
    }

    /// Newton's method, kept between what was found too fine and too coarse: an octave is a bit of every coefficient.
    fn search(&self, too_fine: impl Fn(f64) -> f64) -> Bracket {
        let all = |what: fn(&PlannedBlock) -> f64| self.blocks.iter().map(what);
        let finest = all(|block| block.finest / block.factor).fold(f64::INFINITY, f64::min);
        let coarsest = all(|block| NOTHING * block.deviation / block.factor).fold(0.0, f64::max);
        let mut bracket = Bracket { finer: None, coarser: None };
        let mut step = coarsest / 16.0;
        for _ in 0..TRIALS {
            let excess = too_fine(step);
            // No step makes a difference to zeros.
            if step == 0.0 || excess.abs() <= 0.5 * SLACK {
                return Bracket { finer: Some(step), coarser: Some(step) };
            }
            // Nor does more of it where all blocks are as fine, or as coarse, as they can be.
            let end = if excess > 0.0 { step > coarsest } else { step <= finest };
            *(if excess > 0.0 { &mut bracket.finer } else { &mut bracket.coarser }) = Some(step);
            if end {
                break;
            }
            let newton = step * excess.clamp(-4.0, 4.0).exp2();
            step = match (bracket.finer, bracket.coarser) {
                (Some(finer), Some(coarser)) if newton <= finer || newton >= coarser => {
                    (finer * coarser).sqrt()
                }
                _ => newton,
            };
        }
        bracket
    }
}

/// Steps that were tried, the nearest on either side of what is looked for.
struct Bracket {
    finer: Option<f64>,
    coarser: Option<f64>,
}
