//! What a layer is to be once its inputs are no longer those that it was made for.
//!
//! Where the layers in front of it are compressed, a layer sees `x` in place of `x + d`. Among all weights the one that makes of
//! those inputs the most nearly what the original `W` makes of the others, and stays near `W` where the inputs say little,
//!
//! ```text
//!     E |W (x + d) - W* x|^2 + tr((W* - W) L (W* - W)')  least:     W* = W + W E[d x'] (H + L)^-1     H = E[x x']
//! ```
//!
//! is what is then quantised, `L` being the damping of `H` (Qronos, arXiv 2505.11695; GPTAQ, arXiv 2504.02692).
//!
//! Most of `d` is noise that no `x` tells, of which a text of few tokens shows some all the same: `W* - W` fits it, and errs by it on
//! other texts (SmolLM2 on 8 thousand tokens lost a fifth more with all of `W* - W` than with none). So it is found from one part of
//! the text first, and goes as far as it should for the other,
//!
//! ```text
//!     W + a (W* - W)        a = 2 C / (C + Q)        C = tr(V E[d x'] W')        Q = tr(V H V')
//! ```
//!
//! within 0 and 1, `V` being `W* - W` of the one part and `E[d x']` and `H` of the other. `C / Q` would suit `V`, whose `Q` is `C` and
//! noise; from both parts together there is half as much of it.
//!
//! A small row in the direction of a large drift would be changed by more than itself, on the word of that text alone: no row goes
//! farther for its size than [`WORST_ROW`] times what the matrix goes for its own. Where quantising comes on top and takes a row beyond what is said
//! of a row's error all the same, it is [taken back](take_back) as far as that asks.

use super::calibrate::{Drift, LayerStatistics, damped};
use super::feedback::factorize;
use super::matrix_ref::MatrixRef;
use rayon::prelude::*;

/// Rows that are solved for together, while a row of the factor is at hand.
const TOGETHER: usize = 16;
/// How many times the relative change of the matrix that of a row is at most: what is said of a row's error begins at three times
/// ([`Errors::warning`](crate::codec::errors::Errors::warning)), and quantising has its part in that.
const WORST_ROW: f64 = 2.0;
/// How many times the error of the matrix that of a row is to be that came out worse than is said nothing of.
const GOOD_ROW: f64 = 2.0;
/// What is taken from rows lessens the bound, and that more rows: how often it is looked at again.
const BOUNDS: usize = 16;
/// Of what holds for so little of another part of the text, nothing is done.
const WORTH: f64 = 0.05;

impl LayerStatistics {
    /// `W*` of the weights (row-major); `None` where inputs did not drift, nothing is known of it, or nothing of it holds.
    pub(super) fn aim(&self, values: &[f32]) -> Option<Vec<f32>> {
        let drift = self.drift.as_ref().filter(|drift| drift.held_out.iter().any(|value| *value != 0.0))?;
        let share = self.share(drift, values);
        if share < WORTH {
            return None;
        }
        let mut aim = solved(values, &drift.sums, self.products())?;
        bound_rows(&mut aim, values, self.shape().1);
        aim.iter_mut().zip(values).for_each(|(sought, value)| *sought = value + share as f32 * *sought);
        Some(aim)
    }

    /// `a`, from what is not held out.
    fn share(&self, drift: &Drift, values: &[f32]) -> f64 {
        let len = self.shape().1;
        let rest = |all: &[f32], part: &[f32]| all.iter().zip(part).map(|(all, part)| all - part).collect();
        let products: Vec<f32> = rest(self.products(), &drift.held_out_products);
        let sums: Vec<f32> = rest(&drift.sums, &drift.held_out);
        let Some(found) = solved(values, &sums, &products) else { return 0.0 };
        drop((products, sums));
        let rows = values.par_chunks(TOGETHER * len).zip(found.par_chunks(TOGETHER * len));
        let told = |(weights, found): (&[f32], &[f32])| {
            let lost = product(weights, &drift.held_out, len);
            let made = product(found, &drift.held_out_products, len);
            (f64::from(dot(found, &lost)), f64::from(dot(found, &made)))
        };
        let (holds, all) = rows.map(told).reduce(|| (0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
        if holds > 0.0 { (2.0 * holds / (holds + all)).min(1.0) } else { 0.0 }
    }

    /// The same without what is known of drift.
    pub fn without_drift(&self) -> Self {
        let mut own = self.clone();
        own.drift = None;
        own
    }
}

/// Brings rows of an aim nearer to their weights that came out of quantising too far from these: with these relative errors, where that of
/// the whole is `whole`. Says whether there were any that could be.
pub(super) fn take_back(aim: &mut [f32], weights: MatrixRef, row_errors: &[Option<f64>], whole: f64) -> bool {
    let bound = (GOOD_ROW * whole).powi(2);
    let mut any = false;
    for (row, (aim, error)) in aim.chunks_exact_mut(weights.cols()).zip(row_errors).enumerate() {
        let (weights, error) = (weights.row(row), error.map_or(0.0, |error| error * error));
        let change =
            aim.iter().zip(weights).map(|(aim, weight)| f64::from(aim - weight).powi(2)).sum::<f64>();
        let change = change / weights.iter().map(|weight| f64::from(*weight).powi(2)).sum::<f64>();
        if error <= bound || change.is_nan() || change <= 0.0 {
            continue;
        }
        // What quantising did is independent of it.
        let left = ((bound - (error - change).max(0.0)).max(0.0) / change).sqrt().min(1.0) as f32;
        aim.iter_mut().zip(weights).for_each(|(aim, weight)| *aim = weight + left * (*aim - weight));
        any |= left < 1.0;
    }
    any
}

/// Shortens the rows of a change that are longer for their weights than the whole is, by more than [`WORST_ROW`].
fn bound_rows(change: &mut [f32], weights: &[f32], len: usize) {
    let energy = |row: &[f32]| row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
    let rows = change.chunks_exact(len).zip(weights.chunks_exact(len));
    let rows: Vec<_> = rows.map(|(change, weights)| (energy(change), energy(weights))).collect();
    let all: f64 = rows.iter().map(|(_, weights)| weights).sum();
    let most = |bound: f64, (change, weights): &(f64, f64)| change.min(bound * weights);
    let bound = (0..BOUNDS).fold(f64::INFINITY, |bound, _| {
        let whole: f64 =
            rows.iter().map(|row| if bound.is_finite() { most(bound, row) } else { row.0 }).sum();
        WORST_ROW.powi(2) * whole / all
    });
    for (row, known) in change.chunks_exact_mut(len).zip(&rows).filter(|(_, known)| known.0 > bound * known.1)
    {
        let factor = (bound * known.1 / known.0).sqrt() as f32;
        row.iter_mut().for_each(|value| *value *= factor);
    }
}

/// Rows of weights times a matrix with rows of `len`.
fn product(weights: &[f32], matrix: &[f32], len: usize) -> Vec<f32> {
    let mut product = vec![0f32; weights.len()];
    for (i, other) in matrix.chunks_exact(len).enumerate() {
        for (row, product) in weights.chunks_exact(len).zip(product.chunks_exact_mut(len)) {
            add(product, row[i], other);
        }
    }
    product
}

/// `W* - W` by these sums `drift` of `d x'` and `products` of `x x'`; `None` where all inputs are zeros.
fn solved(values: &[f32], drift: &[f32], products: &[f32]) -> Option<Vec<f32>> {
    let len = products.len().isqrt();
    let (mut h, mean) = damped(products, len);
    if mean <= 0.0 {
        return None;
    }
    // `H + L = (I + U) D (I + U)'`, `U'` below the diagonal.
    let diagonal = factorize(&mut h, len);
    let factor: Vec<f32> = h.into_par_iter().map(|value| value as f32).collect();
    let unit = (1.0 / mean) as f32;
    let solve = |weights: &[f32]| {
        let mut sought = product(weights, drift, len);
        sought.iter_mut().for_each(|value| *value *= unit);
        // `y (I + U) D (I + U)'` for `y`: from the right to the left, then back.
        for c in (0..len).rev() {
            for sought in sought.chunks_exact_mut(len) {
                let known = sought[c];
                add(&mut sought[..c], -known, &factor[c * len..][..c]);
            }
        }
        for c in 0..len {
            for sought in sought.chunks_exact_mut(len) {
                let known = dot(&sought[..c], &factor[c * len..][..c]);
                sought[c] = (f64::from(sought[c]) / diagonal[c]) as f32 - known;
            }
        }
        sought
    };
    Some(values.par_chunks(TOGETHER * len).flat_map_iter(solve).collect())
}

fn add(values: &mut [f32], factor: f32, others: &[f32]) {
    values.iter_mut().zip(others).for_each(|(value, other)| *value += factor * other);
}

/// In sixteen sums, which the compiler turns into vectors.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 16];
    let (a, b) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::{EncoderConfig, MatrixEncoder, Rate};

    const INPUTS: usize = 48;
    const OUTPUTS: usize = 20;

    /// Between -1 and 1.
    fn random(n: usize) -> f32 {
        let mut word = (n as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((word ^ (word >> 27)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Statistics of inputs that are `seen` in place of `full`, in `parts` of the text.
    fn drifted(full: &[Vec<f32>], seen: &[Vec<f32>], parts: usize) -> LayerStatistics {
        let mut statistics = LayerStatistics::new(OUTPUTS, INPUTS);
        let tokens = full.len() / parts;
        for (full, seen) in full.chunks(tokens).zip(seen.chunks(tokens)) {
            let (mut products, mut drift) = (vec![0f32; INPUTS * INPUTS], vec![0f32; INPUTS * INPUTS]);
            for (x, full) in seen.iter().zip(full) {
                for i in 0..INPUTS {
                    for j in 0..INPUTS {
                        products[i * INPUTS + j] += x[i] * x[j];
                        drift[i * INPUTS + j] += (full[i] - x[i]) * x[j];
                    }
                }
            }
            statistics.add_drifted(&products, &drift, tokens as u64).unwrap();
        }
        statistics
    }

    fn inputs(tokens: usize) -> Vec<Vec<f32>> {
        (0..tokens).map(|t| (0..INPUTS).map(|i| random(t * INPUTS + i)).collect()).collect()
    }

    /// How far outputs are from those of the full inputs.
    fn lost(weights: &[f32], aim: &[f32], full: &[Vec<f32>], seen: &[Vec<f32>]) -> f32 {
        let apply = |weights: &[f32], x: &[f32]| -> Vec<f32> {
            weights.chunks_exact(INPUTS).map(|row| dot(row, x)).collect()
        };
        let error = seen.iter().zip(full).map(|(x, full)| {
            let (is, should) = (apply(aim, x), apply(weights, full));
            is.iter().zip(should).map(|(is, should)| (is - should).powi(2)).sum::<f32>()
        });
        error.sum()
    }

    #[test]
    fn a_layer_makes_up_for_what_its_inputs_lost() {
        // Inputs that lost a twentieth of themselves and a part of each other, of many tokens.
        let full = inputs(4000);
        let lose = |x: &Vec<f32>| (0..INPUTS).map(|i| 0.95 * x[i] + 0.1 * x[(i + 1) % INPUTS]).collect();
        let seen: Vec<Vec<f32>> = full.iter().map(lose).collect();
        let weights: Vec<f32> = (0..OUTPUTS * INPUTS).map(|n| random(n + 77)).collect();
        let aim = drifted(&full, &seen, 4).aim(&weights).unwrap();
        let (before, after) = (lost(&weights, &weights, &full, &seen), lost(&weights, &aim, &full, &seen));
        // All of it could be made up for; damping leaves a little.
        assert!(after < 0.02 * before, "{after} of {before}");
        // From one part alone it is not known whether it holds; without drift there is nothing to make up for.
        assert_eq!(drifted(&full, &seen, 1).aim(&weights), None);
        assert_eq!(drifted(&full, &full, 4).aim(&weights), None);
    }

    #[test]
    fn no_row_is_changed_out_of_proportion() {
        // Input 0 lost four times input 1: rows that read little but that are to be four times as long.
        let full = inputs(4000);
        let lose = |x: &Vec<f32>| {
            let mut seen = x.clone();
            seen[0] -= 4.0 * x[1];
            seen
        };
        let seen: Vec<Vec<f32>> = full.iter().map(lose).collect();
        let mut weights: Vec<f32> = (0..OUTPUTS * INPUTS).map(|n| random(n + 77)).collect();
        for row in [3, 11] {
            weights[row * INPUTS..][..INPUTS].iter_mut().skip(1).for_each(|value| *value *= 0.01);
        }
        let statistics = drifted(&full, &seen, 4);
        let aim = statistics.aim(&weights).unwrap();
        let change: Vec<f32> = aim.iter().zip(&weights).map(|(aim, weight)| aim - weight).collect();
        let size = |values: &[f32]| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        let whole = size(&change) / size(&weights);
        let rows: Vec<f64> = (0..OUTPUTS)
            .map(|row| row * INPUTS..(row + 1) * INPUTS)
            .map(|row| size(&change[row.clone()]) / size(&weights[row]))
            .collect();
        let worst = rows.iter().copied().fold(0.0, f64::max);
        assert!(worst < 1.001 * WORST_ROW * whole && rows[3] > 1.99 * whole, "{rows:?} of {whole}");
        // The others still make up for all of theirs.
        let all = solved(&weights, &statistics.drift.as_ref().unwrap().sums, statistics.products()).unwrap();
        let (own, sought) = (&change[..INPUTS], &all[..INPUTS]);
        assert!(size(own) > 0.95 * size(sought), "{} of {}", size(own), size(sought));
    }

    /// A row that is to be longer has more of quantising's error beside the row that it was.
    #[test]
    fn a_row_that_comes_out_too_far_is_taken_back() {
        let full = inputs(4000);
        let lose = |x: &Vec<f32>| {
            let mut seen: Vec<f32> = x.iter().map(|x| 0.8 * x).collect();
            seen[0] -= 4.0 * x[1];
            seen
        };
        let seen: Vec<Vec<f32>> = full.iter().map(lose).collect();
        let mut weights: Vec<f32> = (0..OUTPUTS * INPUTS).map(|n| random(n + 77)).collect();
        for row in [3, 11] {
            weights[row * INPUTS..][..INPUTS].iter_mut().skip(1).for_each(|value| *value *= 0.18);
        }
        let statistics = drifted(&full, &seen, 4);
        let weights = MatrixRef::new(&weights, OUTPUTS, INPUTS);
        let encoder = MatrixEncoder::new(EncoderConfig::from(Rate::BitsPerWeight(3.0)));
        let matrix = encoder.unwrap().encode_matrix_calibrated(weights, &statistics).unwrap();
        let errors = matrix.errors();
        // Without that it is 5.1 times the whole matrix'.
        assert!(!errors.has_a_bad_row(), "{errors:?}");
    }

    #[test]
    fn what_few_tokens_show_by_chance_is_left() {
        // Inputs that lost a tenth of themselves and won noise, of four tokens for each of them.
        let both = inputs(8 * INPUTS);
        let noise = |t: usize, i: usize| 0.5 * random(t * INPUTS + i + 1_000_000);
        let lose = |(t, x): (usize, &Vec<f32>)| (0..INPUTS).map(|i| 0.9 * x[i] + noise(t, i)).collect();
        let seen: Vec<Vec<f32>> = both.iter().enumerate().map(lose).collect();
        let weights: Vec<f32> = (0..OUTPUTS * INPUTS).map(|n| random(n + 77)).collect();
        let (text, other) = (..4 * INPUTS, 4 * INPUTS..);
        let statistics = drifted(&both[text], &seen[text], 4);
        let drift = statistics.drift.as_ref().unwrap();
        let all: Vec<f32> = solved(&weights, &drift.sums, statistics.products()).unwrap();
        let all: Vec<f32> = all.iter().zip(&weights).map(|(sought, weight)| sought + weight).collect();
        let aim = statistics.aim(&weights).unwrap_or_else(|| weights.clone());
        let off = |aim: &[f32]| lost(&weights, aim, &both[other.clone()], &seen[other.clone()]);
        let (none, some, all) = (off(&weights), off(&aim), off(&all));
        // Less than none of it is lost, where all of it would be more.
        assert!(some < none && none < all, "{none} {some} {all}");
    }
}
