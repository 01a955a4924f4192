//! Bit-planes from coefficients: how many planes each block gets, and the step of its quantiser, where every plane takes
//! its place (`coded_planes` is for files that are entropy coded).

use super::allocate::allocate;
use super::feedback::{Feedback, sweep, weighed_energy};
use super::quantizer::{Estimate, Quantized, Quantizer, Task, Trial};
use super::rate::Target;
use super::spectrum::{Spectrum, energy};
use crate::codec::term::planes::{MAX_PLANES, QuantizedBlock, ScaleGroup};
use crate::codec::term::{Planes, Term};
use crate::codec::units;
use crate::codec::{Block, Layout};
use crate::error::Result;
use half::f16;
use rayon::prelude::*;
use std::f32::consts::FRAC_1_SQRT_2;
use std::iter;

/// Step of the best uniform quantiser of a unit Gaussian with n bits, and its mean squared error
/// (Max 1960, table II, continued numerically to 8 bits). Index 0 is no bits at all.
const GAUSSIAN: [(f64, f64); MAX_PLANES as usize + 1] = [
    (0.0, 1.0),
    (1.5958, 0.36338),
    (0.99569, 0.118846),
    (0.586019, 0.0374397),
    (0.335201, 0.0115427),
    (0.188139, 0.00349521),
    (0.104063, 0.00104005),
    (0.0568678, 0.000304330),
    (0.0307622, 0.0000876784),
];

/// How much of a squared error that is allowed is to be used.
const USED: f64 = 0.95;

/// A planes term and its squared error in the coefficient domain.
pub(super) struct Encoded {
    pub term: Planes,
    pub squared_error: f64,
}

impl From<Encoded> for Quantized {
    fn from(Encoded { term, squared_error }: Encoded) -> Self {
        Self { terms: vec![Term::Planes(term)], squared_error }
    }
}

/// Planes that take their place each, with a scale for each of these groups.
#[derive(Debug)]
pub(super) struct PlanesQuantizer {
    pub group: ScaleGroup,
}

impl Quantizer for PlanesQuantizer {
    fn trial(&self) -> Trial {
        Trial::WhereModelsFail
    }

    fn encode(&self, task: &Task) -> Result<Option<Quantized>> {
        Ok(encode(task, self.group).map(Quantized::from))
    }

    fn model(&self, task: &Task) -> Option<Estimate> {
        let Task { spectrum, feedback, target: Target::Bits(budget), other_bits } = *task else {
            return None;
        };
        let layout = spectrum.layout;
        let energies: Vec<f64> =
            layout.iter().map(|block| weighed_energy(spectrum, feedback, block)).collect();
        let side_bits = other_bits + side_bits(layout, self.group);
        let (rest, mut spent) = (budget.checked_sub(side_bits)?, 0);
        let planes = planes_of(layout, &energies, |bits, _| {
            if bits <= rest {
                spent = bits;
            }
            bits <= rest
        });
        let error = |(planes, energy): (&u8, &f64)| energy * GAUSSIAN[usize::from(*planes)].1;
        let squared_error = planes.iter().zip(&energies).map(error).sum();
        Some(Estimate { squared_error, gaussian: squared_error, bits: side_bits + spent })
    }
}

/// Quantises a spectrum.
///
/// Returns `None` when the target cannot be reached.
fn encode(task: &Task, group: ScaleGroup) -> Option<Encoded> {
    let Task { spectrum, feedback, target, other_bits } = *task;
    let layout = spectrum.layout;
    let energies: Vec<f64> = layout.iter().map(|block| weighed_energy(spectrum, feedback, block)).collect();
    match target {
        Target::PerBlock(_) => None,
        Target::Bits(bits) => {
            let budget = bits.checked_sub(other_bits + side_bits(layout, group))?;
            let planes = planes_of(layout, &energies, |spent, _| spent <= budget);
            Some(quantize(spectrum, feedback, group, &planes, &best_steps(spectrum, group, &planes)))
        }
        Target::SquaredError(bound) => {
            // The model's error is a Gaussian's; correct it by what quantising really gives.
            let (mut asked, mut last, mut best): (f64, _, Option<Encoded>) = (bound, vec![], None);
            for _ in 0..8 {
                let total: f64 = energies.iter().sum();
                let mut reached = total <= asked;
                let planes = planes_of(layout, &energies, |_, error| {
                    let go_on = !reached;
                    reached |= error <= asked;
                    go_on
                });
                if planes == last {
                    break;
                }
                let steps = best_steps(spectrum, group, &planes);
                let encoded = quantize(spectrum, feedback, group, &planes, &steps);
                let error = encoded.squared_error;
                if error <= bound {
                    best = Some(encoded);
                }
                let is_used = (USED * bound..=bound).contains(&error);
                let is_past = error > bound && best.is_some();
                if is_used || is_past || planes.iter().all(|planes| *planes == MAX_PLANES) {
                    break;
                }
                asked *= 0.998 * bound / error;
                last = planes;
            }
            best
        }
    }
}

/// Bits of the term beside its masks: kind, group, unit; a count per block; scales.
fn side_bits(layout: Layout, group: ScaleGroup) -> usize {
    let scales: usize = layout.iter().map(|block| group.scales_in(block)).sum();
    8 * 6 + 8 * layout.blocks() + 16 * scales
}

/// Planes per block, as many as `fits(bits, error)` allows.
fn planes_of(layout: Layout, energies: &[f64], fits: impl FnMut(usize, f64) -> bool) -> Vec<u8> {
    let curves: Vec<_> = energies.iter().map(|energy| GAUSSIAN.map(|(_, error)| energy * error)).collect();
    let bits: Vec<_> = layout.iter().map(|block| 8 * block.height * block.mask_bytes()).collect();
    allocate(&curves, 0, |index, _| bits[index], fits)
}

/// For each block the best step of each group for its planes.
fn best_steps(spectrum: &Spectrum, group: ScaleGroup, planes: &[u8]) -> Vec<Vec<f32>> {
    let steps = |block: Block| {
        let coefficients = spectrum.block(block);
        let group_len = coefficients.len() / group.scales_in(block);
        coefficients.chunks_exact(group_len).map(|group| best_step(group, planes[block.index])).collect()
    };
    spectrum.layout.iter().collect::<Vec<_>>().into_par_iter().map(steps).collect()
}

/// The unit of these steps' scales.
pub(super) fn unit(steps: &[Vec<f32>]) -> f32 {
    units::unit_for(steps.iter().flatten().copied(), 7)
}

pub(super) fn quantize(
    spectrum: &Spectrum,
    feedback: Option<&Feedback>,
    group: ScaleGroup,
    planes: &[u8],
    steps: &[Vec<f32>],
) -> Encoded {
    let unit = unit(steps);
    if let Some(feedback) = feedback {
        return quantize_with_feedback(spectrum, feedback, group, planes, steps, unit);
    }
    let quantized = round_blocks(spectrum, group, planes, steps, unit);
    let squared_error = quantized.iter().map(|(_, error)| error).sum();
    let blocks: Vec<_> = quantized.into_iter().map(|(block, _)| block).collect();
    Encoded { term: Planes::pack(spectrum.layout, group, unit, &blocks), squared_error }
}

/// Every block with its squared error.
pub(super) fn round_blocks(
    spectrum: &Spectrum,
    group: ScaleGroup,
    planes: &[u8],
    steps: &[Vec<f32>],
    unit: f32,
) -> Vec<(QuantizedBlock, f64)> {
    let quantize = |block: Block| {
        let planes = planes[block.index];
        let coefficients = spectrum.block(block);
        let scales: Vec<f16> = steps[block.index].iter().map(|step| f16::from_f32(step / unit)).collect();
        let mut codes = vec![0; coefficients.len()];
        let group_len = coefficients.len() / group.scales_in(block);
        let mut error = 0.0;
        for ((values, codes), scale) in
            coefficients.chunks_exact(group_len).zip(codes.chunks_exact_mut(group_len)).zip(&scales)
        {
            error += round(values, scale.to_f32() * unit, planes, codes);
        }
        (QuantizedBlock { planes, scales, codes }, error)
    };
    spectrum.layout.iter().collect::<Vec<_>>().into_par_iter().map(quantize).collect()
}

/// [`quantize`] column by column, errors handed on.
fn quantize_with_feedback(
    spectrum: &Spectrum,
    feedback: &Feedback,
    group: ScaleGroup,
    planes: &[u8],
    steps: &[Vec<f32>],
    unit: f32,
) -> Encoded {
    let layout = spectrum.layout;
    let mut blocks: Vec<_> = layout
        .iter()
        .map(|block| QuantizedBlock {
            planes: planes[block.index],
            scales: steps[block.index].iter().map(|step| f16::from_f32(step / unit)).collect(),
            codes: vec![0; block.len()],
        })
        .collect();
    let block_of = |scale_group: Block| layout.block_with(scale_group.row, scale_group.col);
    let scale_groups = sweep(spectrum, Some(feedback), |target: &mut Vec<f32>, scale_group| {
        let (height, block) = (scale_group.place.height, &blocks[block_of(scale_group.place).index]);
        let mut codes = vec![0; scale_group.place.len()];
        target.resize(height, 0.0);
        if block.planes > 0 {
            let half = f32::from(1u16 << (block.planes - 1));
            for (n, codes) in codes.chunks_exact_mut(height).enumerate() {
                scale_group.target(n, target);
                for (row, ((target, code), decoded)) in
                    target.iter().zip(codes).zip(&mut scale_group.decoded[n * height..]).enumerate()
                {
                    let step = block.scales[row % block.scales.len()].to_f32() * unit;
                    if step > 0.0 {
                        let level = code_of(*target, step.recip(), half);
                        *decoded = (level - half + 0.5) * step;
                        *code = level as u8;
                    }
                }
            }
        }
        let errors = scale_group.errors();
        (scale_group.place, codes, energy(&errors))
    });
    let mut squared_error = 0.0;
    for (scale_group, codes, error) in scale_groups {
        let block = block_of(scale_group);
        let first = scale_group.col - block.col;
        for (n, codes) in codes.chunks_exact(scale_group.height).enumerate() {
            let column = blocks[block.index].codes.iter_mut().skip(first + n).step_by(block.width);
            column.zip(codes).for_each(|(to, code)| *to = *code);
        }
        squared_error += error;
    }
    Encoded { term: Planes::pack(layout, group, unit, &blocks), squared_error }
}

/// `u = floor(c / step) + 2^(n - 1)`, clamped to `0..2^n`, as a float.
///
/// Adding and taking away 2^23 rounds to the nearest integer in two instructions of any processor; at a cell's
/// edge, where that may differ from `floor`, both neighbours are equally far.
#[inline(always)]
fn code_of(value: f32, inverse_step: f32, half: f32) -> f32 {
    const TO_INTEGER: f32 = (1 << 23) as f32;
    (value * inverse_step + (half - 0.5)).clamp(0.0, 2.0 * half - 1.0) + TO_INTEGER - TO_INTEGER
}

/// The step with the least squared error, near a local minimum: Lloyd's alternation from the Gaussian's best step. One
/// coefficient may hold more than all others together, and from there it is never reached: where most of the error is of what
/// is clipped, wider steps are tried, up to the one that clips nothing.
pub(super) fn best_step(values: &[f32], planes: u8) -> f32 {
    let energy: f32 = values.iter().map(|value| value * value).sum();
    let deviation = (f64::from(energy) / values.len() as f64).sqrt();
    let step = (deviation * GAUSSIAN[usize::from(planes)].0) as f32;
    // Below this the values are F32's rounding of zero.
    if planes == 0 || !step.is_normal() {
        return 0.0;
    }
    let half = f32::from(1u16 << (planes - 1));
    let step = lloyd(values, step, half);
    let (error, clipped) = errors(values, step, half);
    if clipped <= 0.5 * error {
        return step;
    }
    let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let steps = iter::successors(Some(largest / (half - 0.5)), |wider| Some(wider * FRAC_1_SQRT_2));
    let Some(wider) = best_of(values, half, steps.take_while(|wider| *wider > step)) else { return step };
    let near = (-3..=3).map(|eighths| wider * (eighths as f32 / 8.0).exp2());
    let Some(wider) = best_of(values, half, near) else { return step };
    best_of(values, half, [step, wider, lloyd(values, wider, half)].into_iter()).unwrap_or(step)
}

/// The one of these steps that has the least squared error.
fn best_of(values: &[f32], half: f32, steps: impl Iterator<Item = f32>) -> Option<f32> {
    let tried = steps.map(|step| (errors(values, step, half).0, step));
    tried.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, step)| step)
}

/// Lloyd's alternation: codes for the step, then the least-squares step for the codes.
fn lloyd(values: &[f32], mut step: f32, half: f32) -> f32 {
    for _ in 0..6 {
        let inverse = step.recip();
        let (mut dot, mut norm) = ([0f32; 16], [0f32; 16]);
        for chunk in values.chunks(16) {
            for (lane, value) in chunk.iter().enumerate() {
                let level = code_of(*value, inverse, half) - half + 0.5;
                dot[lane] += value * level;
                norm[lane] += level * level;
            }
        }
        step = dot.iter().sum::<f32>() / norm.iter().sum::<f32>();
    }
    step
}

/// The squared error of a step, and what of it is of values beyond the last cell.
fn errors(values: &[f32], step: f32, half: f32) -> (f64, f64) {
    let inverse = step.recip();
    let (mut error, mut clipped) = (0.0, 0.0);
    for value in values {
        let difference = value - (code_of(*value, inverse, half) - half + 0.5) * step;
        let square = f64::from(difference) * f64::from(difference);
        error += square;
        clipped += if value.abs() > half * step { square } else { 0.0 };
    }
    (error, clipped)
}

/// Writes the codes for a given step and returns the squared error.
fn round(values: &[f32], step: f32, planes: u8, codes: &mut [u8]) -> f64 {
    if planes == 0 || step == 0.0 {
        return energy(values);
    }
    let half = f32::from(1u16 << (planes - 1));
    let inverse = step.recip();
    let mut error = 0.0;
    for (value, out) in values.iter().zip(codes) {
        let code = code_of(*value, inverse, half);
        let difference = f64::from(value - (code - half + 0.5) * step);
        error += difference * difference;
        *out = code as u8;
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Transform;
    use crate::codec::term::summand::Summand;

    /// A deterministic unit Gaussian: sums of twelve uniform numbers.
    fn gaussian(count: usize) -> Vec<f32> {
        let mut state = 1u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        (0..count).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
    }

    fn quantized(spectrum: &Spectrum, planes: u8) -> Encoded {
        let planes = vec![planes; spectrum.layout.blocks()];
        let steps = best_steps(spectrum, ScaleGroup::Block, &planes);
        quantize(spectrum, None, ScaleGroup::Block, &planes, &steps)
    }

    fn task(spectrum: &Spectrum, target: Target) -> Task<'_> {
        Task { spectrum, feedback: None, target, other_bits: 0 }
    }

    #[test]
    fn a_gaussian_costs_what_theory_says() {
        let values = gaussian(256 * 256);
        let layout = Layout::new(256, 256, 64).unwrap();
        let spectrum = Spectrum::new(values.clone(), layout, Transform::Dct, None, false);
        let total = energy(&values);
        for planes in 1..=MAX_PLANES {
            let encoded = quantized(&spectrum, planes);
            let theory = GAUSSIAN[usize::from(planes)].1;
            let ratio = encoded.squared_error / total / theory;
            assert!((0.9..1.04).contains(&ratio), "{planes} planes: {ratio} of the theory's error");
        }
    }

    #[test]
    fn the_step_is_the_best_however_large_one_value_is() {
        for (large, planes) in [(3.0, 4), (12.0, 6), (20.0, 8), (40.0, 8), (60.0, 3), (2000.0, 8)] {
            let mut values = gaussian(64 * 64);
            values[77] = large;
            let half = f32::from(1u16 << (planes - 1));
            let error = |step: f32| errors(&values, step, half).0;
            let steps = (0..400).map(|n| large / half * (0.02 * n as f32 - 7.0).exp2());
            let least = steps.map(error).fold(f64::INFINITY, f64::min);
            let ratio = error(best_step(&values, planes)) / least;
            assert!(ratio < 1.02, "{large}, {planes} planes: {ratio} times the least error");
        }
    }

    #[test]
    fn the_budget_is_kept_and_nearly_used() {
        let mut values = gaussian(200 * 300);
        values.iter_mut().take(40 * 300).for_each(|value| *value *= 10.0);
        let layout = Layout::new(200, 300, 32).unwrap();
        let spectrum = Spectrum::new(values.clone(), layout, Transform::Dct, Some(1), false);
        for bits in [60_000, 150_000, 333_333] {
            let encoded = encode(&task(&spectrum, Target::Bits(bits)), ScaleGroup::Block).unwrap();
            let spent = 8 * (encoded.term.size_in_bytes() + 1);
            assert!(spent <= bits && spent > bits - 2048, "{spent} of {bits}");
        }
        assert!(encode(&task(&spectrum, Target::Bits(1000)), ScaleGroup::Block).is_none());
    }

    #[test]
    fn an_error_bound_is_kept_without_waste() {
        let values = gaussian(256 * 256);
        let layout = Layout::new(256, 256, 32).unwrap();
        let spectrum = Spectrum::new(values.clone(), layout, Transform::Dct, Some(1), false);
        for relative in [0.5f64, 0.1, 0.03, 0.012] {
            let bound = relative * relative * energy(&values);
            let encoded = encode(&task(&spectrum, Target::SquaredError(bound)), ScaleGroup::Block).unwrap();
            assert!(encoded.squared_error <= bound && encoded.squared_error > 0.93 * bound, "{relative}");
        }
        assert!(encode(&task(&spectrum, Target::SquaredError(1e-9)), ScaleGroup::Block).is_none());
    }
}
