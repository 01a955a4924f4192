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

use super::calibrate::LayerStatistics;
use super::feedback::factorize;
use rayon::prelude::*;

/// Rows that are solved for together, while a row of the factor is at hand.
const TOGETHER: usize = 16;

impl LayerStatistics {
    /// `W*` of the weights (row-major); `None` where inputs did not drift, or nothing is known of it.
    pub(super) fn aim(&self, values: &[f32]) -> Option<Vec<f32>> {
        let drift = self.drift.as_ref().filter(|_| self.has_products())?;
        let len = self.shape().1;
        let (mut h, mean) = self.damped();
        if mean <= 0.0 || drift.iter().all(|value| *value == 0.0) {
            return None;
        }
        // `H + L = (I + U) D (I + U)'`, `U'` below the diagonal.
        let diagonal = factorize(&mut h, len);
        let factor: Vec<f32> = h.into_par_iter().map(|value| value as f32).collect();
        let unit = (1.0 / mean) as f32;
        let mut aim = values.to_vec();
        aim.par_chunks_mut(TOGETHER * len).for_each(|weights| {
            let mut sought = vec![0f32; weights.len()];
            // `W E[d x']`.
            for (i, drift) in drift.chunks_exact(len).enumerate() {
                for (row, sought) in weights.chunks_exact(len).zip(sought.chunks_exact_mut(len)) {
                    add(sought, row[i] * unit, drift);
                }
            }
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
            add(weights, 1.0, &sought);
        });
        Some(aim)
    }

    /// The same without what is known of drift.
    pub(super) fn without_drift(&self) -> Self {
        let mut own = self.clone();
        own.drift = None;
        own
    }
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

    #[test]
    fn a_layer_makes_up_for_what_its_inputs_lost() {
        // Inputs that lost a twentieth of themselves and a part of each other, of many tokens.
        let (inputs, outputs, tokens) = (48, 20, 4000);
        let random = |n: usize| ((n as f32 * 12.9898).sin() * 43758.547).fract();
        let true_inputs: Vec<f32> = (0..inputs * tokens).map(random).collect();
        let (mut products, mut drift) = (vec![0f32; inputs * inputs], vec![0f32; inputs * inputs]);
        let seen: Vec<Vec<f32>> = true_inputs
            .chunks_exact(inputs)
            .map(|x| (0..inputs).map(|i| 0.95 * x[i] + 0.1 * x[(i + 1) % inputs]).collect())
            .collect();
        for (x, full) in seen.iter().zip(true_inputs.chunks_exact(inputs)) {
            for i in 0..inputs {
                for j in 0..inputs {
                    products[i * inputs + j] += x[i] * x[j];
                    drift[i * inputs + j] += (full[i] - x[i]) * x[j];
                }
            }
        }
        let mut statistics = LayerStatistics::new(outputs, inputs);
        statistics.add_products(&products, tokens as u64).unwrap();
        assert_eq!(statistics.aim(&vec![1.0; outputs * inputs]), None);
        statistics.add_drift(&drift).unwrap();
        let weights: Vec<f32> = (0..outputs * inputs).map(|n| random(n + 77)).collect();
        let aim = statistics.aim(&weights).unwrap();
        let lost = |weights_then: &[f32]| -> f32 {
            let apply = |weights: &[f32], x: &[f32]| -> Vec<f32> {
                weights.chunks_exact(inputs).map(|row| dot(row, x)).collect()
            };
            let tokens = seen.iter().zip(true_inputs.chunks_exact(inputs));
            let error = tokens.map(|(x, full)| {
                let (is, should) = (apply(weights_then, x), apply(&weights, full));
                is.iter().zip(should).map(|(is, should)| (is - should).powi(2)).sum::<f32>()
            });
            error.sum()
        };
        // All of it could be made up for; damping leaves a little.
        let (before, after) = (lost(&weights), lost(&aim));
        assert!(after < 0.02 * before, "{after} of {before}");
    }
}
