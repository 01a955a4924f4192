//! What calibration knows of a layer, and what follows from it for the quantiser.
//!
//! A layer `y = W x` whose weight is off by `E = W - W^` changes the model's predictions, to second order, by
//!
//! ```text
//!     KL  =  1/2 mean_t (g_t' E x_t)^2  ~  1/2 sum_r G_r (E H E')_rr     H = E[w x x'] / E[w],  G_r = E[g_r^2]
//! ```
//!
//! nats per token, where `g` is the gradient, with respect to `y`, of the log-likelihood of an outcome drawn from the
//! model's own prediction (the Fisher information), and tokens weigh `w = |g|^2` (GuidedQuant, arXiv 2505.07004). In
//! the coefficient domain `F = S - S^` takes the place of `E` and `A_in H A_in'` that of `H`; `A_out` spreads a
//! row's error over its block row, whose `G_r` are therefore averaged.

use crate::codec::axis::Axis;
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::ops::Range;

/// What calibration gathers of a layer `y = W x`: second moments of its inputs and of the gradient at its outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerStatistics {
    inputs: usize,
    /// `sum w x x'`, `inputs x inputs`, symmetric.
    moments: Vec<f64>,
    /// `sum w`.
    weight: f64,
    /// `sum g^2` of each output.
    gradients: Vec<f64>,
    count: u64,
}

impl LayerStatistics {
    /// Of a layer with a weight of shape `(outputs, inputs)`, before anything is seen.
    pub fn new(outputs: usize, inputs: usize) -> Self {
        Self {
            inputs,
            moments: vec![0.0; inputs * inputs],
            weight: 0.0,
            gradients: vec![0.0; outputs],
            count: 0,
        }
    }

    /// Adds `count` tokens: `moments` `sum w x x'` (`inputs x inputs`, row-major), `weight` `sum w`, and `gradients`
    /// `sum g^2` of each output. Sums over a few hundred tokens are precise enough in F32.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when a number is not finite.
    ///
    /// # Panics
    /// When a slice has another length.
    pub fn add(&mut self, moments: &[f32], weight: f64, gradients: &[f32], count: u64) -> Result<()> {
        assert!(moments.len() == self.moments.len() && gradients.len() == self.gradients.len());
        let finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
        if !(finite(moments) && finite(gradients) && weight.is_finite()) {
            return Err(Error::config("an input or a gradient of the calibration is not finite"));
        }
        let add = |sum: &mut [f64], more: &[f32]| {
            sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += f64::from(*more));
        };
        add(&mut self.moments, moments);
        add(&mut self.gradients, gradients);
        self.weight += weight;
        self.count += count;
        Ok(())
    }

    /// The layer's outputs and inputs: the shape of its weight.
    pub fn shape(&self) -> (usize, usize) {
        (self.gradients.len(), self.inputs)
    }

    /// Tokens seen.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The divergence, in nats per token, that an error `E` of the weight (row-major) leads to, to second order:
    /// `1/2 sum_r G_r (E H E')_rr`.
    ///
    /// # Panics
    /// When `error` has another shape.
    pub fn divergence(&self, error: &[f32]) -> f64 {
        assert_eq!(error.len(), self.inputs * self.gradients.len());
        let row = |(row, gradient): (&[f32], &f64)| -> f64 {
            let product = |(h, e): (&[f64], &f32)| {
                f64::from(*e) * h.iter().zip(row).map(|(h, e)| h * f64::from(*e)).sum::<f64>()
            };
            gradient * self.moments.chunks_exact(self.inputs).zip(row).map(product).sum::<f64>()
        };
        let sum: f64 = error.par_chunks_exact(self.inputs).zip(&self.gradients).map(row).sum();
        0.5 * sum / (self.weight.max(f64::MIN_POSITIVE) * self.count.max(1) as f64)
    }

    /// `A H A'` of an input axis, divided by the mean of its diagonal, and that mean.
    pub(super) fn rotate(&self, axis: &Axis) -> (Vec<f64>, f64) {
        let len = self.inputs;
        let mean = (0..len).map(|i| self.moments[i * (len + 1)]).sum::<f64>() / len as f64;
        if mean <= 0.0 {
            return (vec![0.0; len * len], 0.0);
        }
        let mut turned: Vec<f64> = self.moments.par_iter().map(|value| value / mean).collect();
        // For a symmetric matrix `A (A H)'` is `A H A'`, with rows taken each time.
        for _ in 0..2 {
            turned.par_chunks_exact_mut(len).for_each_init(
                || (vec![0f32; len], vec![0f32; axis.scratch_len()]),
                |(row, scratch), values| {
                    // F32 keeps 24 bits of the largest element of a row; the damping is far above the rest.
                    row.iter_mut().zip(&*values).for_each(|(row, value)| *row = *value as f32);
                    axis.forward(row, scratch);
                    values.iter_mut().zip(&*row).for_each(|(value, row)| *value = f64::from(*row));
                },
            );
            turned = transpose(&turned, len);
        }
        (turned, mean / self.weight)
    }
}

fn transpose(matrix: &[f64], len: usize) -> Vec<f64> {
    let mut transposed = vec![0.0; matrix.len()];
    transposed.par_chunks_exact_mut(len).enumerate().for_each(|(i, row)| {
        row.iter_mut().zip(matrix.chunks_exact(len)).for_each(|(value, other)| *value = other[i]);
    });
    transposed
}

impl LayerStatistics {
    /// Half the mean `G_r` over rows.
    pub(super) fn sensitivity(&self, rows: Range<usize>) -> f64 {
        let gradients = &self.gradients[rows];
        0.5 * gradients.iter().sum::<f64>() / (gradients.len() as f64 * self.count.max(1) as f64)
    }
}
