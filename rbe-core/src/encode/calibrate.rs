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
use std::sync::Arc;

/// What is added to the diagonal of `H`, as a part of itself and of its mean: inputs that the calibration text lacks still come.
const DAMPING: f64 = 0.01;
const LEAST: f64 = 1e-3;

/// What calibration gathers of a layer `y = W x`: second moments of its inputs and of the gradient at its outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerStatistics {
    inputs: usize,
    moments: Moments,
    /// `sum w`.
    weight: f64,
    /// `sum g^2` of each output.
    gradients: Vec<f64>,
    count: u64,
    /// What inputs lost to the layers in front; shared as products are.
    pub(super) drift: Option<Arc<Drift>>,
}

/// What inputs `x` lost that were `x + d`: sums over tokens, and those over a part of them that is held out to judge the rest by.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Drift {
    /// `sum d x'`.
    pub sums: Vec<f32>,
    /// The same, of every second addition.
    pub held_out: Vec<f32>,
    /// `sum x x'` of those.
    pub held_out_products: Vec<f32>,
    additions: usize,
}

impl Drift {
    fn new(inputs: usize) -> Self {
        let zeros = || vec![0.0; inputs * inputs];
        Self { sums: zeros(), held_out: zeros(), held_out_products: zeros(), additions: 0 }
    }

    fn add(&mut self, products: &[f32], drift: &[f32]) -> Result<()> {
        add_finite(&mut self.sums, drift)?;
        if !self.additions.is_multiple_of(2) {
            add_finite(&mut self.held_out, drift)?;
            add_finite(&mut self.held_out_products, products)?;
        }
        self.additions += 1;
        Ok(())
    }
}

/// Sums over tokens of what inputs are.
#[derive(Clone, Debug, PartialEq)]
enum Moments {
    /// `sum w x x'`, `inputs x inputs`, symmetric; one for all layers of an input where all tokens weigh the same.
    Products(Arc<Vec<f32>>),
    /// `sum w x^2`, its diagonal alone.
    Squares(Vec<f64>),
}

impl LayerStatistics {
    /// Of a layer with a weight of shape `(outputs, inputs)`, before anything is seen.
    pub fn new(outputs: usize, inputs: usize) -> Self {
        let moments = Moments::Products(Arc::new(vec![0.0; inputs * inputs]));
        Self { inputs, moments, weight: 0.0, gradients: vec![0.0; outputs], count: 0, drift: None }
    }

    /// The same of the squares of inputs alone, in `8 (inputs + outputs)` bytes: what a forward shows. Every token weighs the
    /// same, and so does every output.
    pub fn of_squares(outputs: usize, inputs: usize) -> Self {
        let moments = Moments::Squares(vec![0.0; inputs]);
        Self { inputs, moments, weight: 0.0, gradients: vec![0.0; outputs], count: 0, drift: None }
    }

    /// Adds `count` tokens to those of [`of_squares`](Self::of_squares): `squares` `sum x^2` of each input.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when a number is not finite.
    ///
    /// # Panics
    /// When the statistics are of products, or the slice has another length.
    pub fn add_squares(&mut self, squares: &[f32], count: u64) -> Result<()> {
        let Moments::Squares(sums) = &mut self.moments else { panic!("squares for products") };
        assert_eq!(sums.len(), squares.len());
        if !squares.iter().all(|square| square.is_finite()) {
            return Err(not_finite());
        }
        sums.iter_mut().zip(squares).for_each(|(sum, square)| *sum += f64::from(*square));
        self.gradients.iter_mut().for_each(|sum| *sum += count as f64);
        self.weight += count as f64;
        self.count += count;
        Ok(())
    }

    /// Adds `count` tokens that all weigh the same, as every output does: `products` `sum x x'` (`inputs x inputs`, row-major).
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when a number is not finite.
    ///
    /// # Panics
    /// When the statistics are of squares, or the slice has another length.
    pub fn add_products(&mut self, products: &[f32], count: u64) -> Result<()> {
        let Moments::Products(sums) = &mut self.moments else { panic!("products for squares") };
        add_finite(Arc::make_mut(sums).as_mut_slice(), products)?;
        self.gradients.iter_mut().for_each(|sum| *sum += count as f64);
        self.weight += count as f64;
        self.count += count;
        Ok(())
    }

    /// [`add_products`](Self::add_products), with how far these inputs are from what they would be in the model that is compressed:
    /// `drift` `sum d x'` (`inputs x inputs`, row-major), whose inputs `x` were `x + d` there. The encoder then makes up for it, as far
    /// as what some of these additions show holds for the others: there are two at least, each of another part of the text.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when a number is not finite.
    ///
    /// # Panics
    /// When the statistics are of squares, or a slice has another length.
    pub fn add_drifted(&mut self, products: &[f32], drift: &[f32], count: u64) -> Result<()> {
        self.add_products(products, count)?;
        let known = self.drift.get_or_insert_with(|| Arc::new(Drift::new(self.inputs)));
        Arc::make_mut(known).add(products, drift)
    }

    /// The same inputs of a layer with so many outputs, of which all weigh the same; products are shared.
    pub fn of_outputs(&self, outputs: usize) -> Self {
        Self { gradients: vec![self.count as f64; outputs], ..self.clone() }
    }

    /// Whether products of inputs are known, or squares alone.
    pub fn has_products(&self) -> bool {
        matches!(self.moments, Moments::Products(_))
    }

    /// Adds `count` tokens: `moments` `sum w x x'` (`inputs x inputs`, row-major), `weight` `sum w`, and `gradients`
    /// `sum g^2` of each output. Sums over a few hundred tokens are precise enough in F32.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when a number is not finite.
    ///
    /// # Panics
    /// When the statistics are of squares, or a slice has another length.
    pub fn add(&mut self, moments: &[f32], weight: f64, gradients: &[f32], count: u64) -> Result<()> {
        let Moments::Products(sums) = &mut self.moments else { panic!("products for squares") };
        assert_eq!(gradients.len(), self.gradients.len());
        if !(gradients.iter().all(|value| value.is_finite()) && weight.is_finite()) {
            return Err(not_finite());
        }
        add_finite(Arc::make_mut(sums).as_mut_slice(), moments)?;
        self.gradients.iter_mut().zip(gradients).for_each(|(sum, more)| *sum += f64::from(*more));
        self.weight += weight;
        self.count += count;
        Ok(())
    }

    /// The layer's outputs and inputs: the shape of its weight.
    pub fn shape(&self) -> (usize, usize) {
        (self.gradients.len(), self.inputs)
    }

    /// `E[w x^2] / E[w]` of each input.
    pub fn input_moments(&self) -> Vec<f64> {
        let weight = self.weight.max(f64::MIN_POSITIVE);
        let sums: Vec<f64> = match &self.moments {
            Moments::Products(sums) => {
                (0..self.inputs).map(|i| f64::from(sums[i * (self.inputs + 1)])).collect()
            }
            Moments::Squares(sums) => sums.clone(),
        };
        sums.into_iter().map(|sum| sum / weight).collect()
    }

    /// Those of the layer `D_r^-1 W D_c^-1` with scales of rows and columns: its inputs are `D_c` times as large, its gradients `D_r`
    /// times.
    pub(super) fn scaled(&self, rows: Option<&[f32]>, cols: Option<&[f32]>) -> Self {
        let mut scaled = Self { drift: None, ..self.clone() };
        let scale = |scales: Option<&[f32]>, n: usize| scales.map_or(1.0, |scales| f64::from(scales[n]));
        scaled.gradients.iter_mut().enumerate().for_each(|(row, sum)| *sum *= scale(rows, row).powi(2));
        match &mut scaled.moments {
            Moments::Squares(sums) => {
                sums.iter_mut().enumerate().for_each(|(col, sum)| *sum *= scale(cols, col).powi(2));
            }
            Moments::Products(sums) => {
                Arc::make_mut(sums).par_chunks_exact_mut(self.inputs).enumerate().for_each(|(i, sums)| {
                    let own = scale(cols, i);
                    sums.iter_mut().enumerate().for_each(|(j, sum)| *sum *= (own * scale(cols, j)) as f32);
                });
            }
        }
        scaled
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
            let product = |(h, e): (&[f32], &f32)| {
                f64::from(*e) * h.iter().zip(row).map(|(h, e)| f64::from(*h) * f64::from(*e)).sum::<f64>()
            };
            gradient
                * match &self.moments {
                    Moments::Products(sums) => {
                        sums.chunks_exact(self.inputs).zip(row).map(product).sum::<f64>()
                    }
                    Moments::Squares(sums) => {
                        sums.iter().zip(row).map(|(sum, e)| sum * f64::from(*e).powi(2)).sum::<f64>()
                    }
                }
        };
        let sum: f64 = error.par_chunks_exact(self.inputs).zip(&self.gradients).map(row).sum();
        0.5 * sum / (self.weight.max(f64::MIN_POSITIVE) * self.count.max(1) as f64)
    }

    /// `H`, with what is added to its diagonal, divided by the mean of the diagonal before, and that mean of the sums; zeros where all
    /// inputs are.
    ///
    /// # Panics
    /// When products are not known.
    pub(super) fn damped(&self) -> (Vec<f64>, f64) {
        damped(self.products(), self.inputs)
    }

    /// `sum w x x'`.
    ///
    /// # Panics
    /// When products are not known.
    pub(super) fn products(&self) -> &[f32] {
        let Moments::Products(moments) = &self.moments else { panic!("products of squares") };
        moments
    }

    /// `A H A'` of an input axis, with what is added to the diagonal of `H` before, divided by the mean of that diagonal, and that mean.
    ///
    /// # Panics
    /// When products are not known.
    pub(super) fn rotate(&self, axis: &Axis) -> (Vec<f64>, f64) {
        let len = self.inputs;
        let (mut turned, mean) = self.damped();
        if mean <= 0.0 {
            return (turned, 0.0);
        }
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

/// Products of inputs with what is added to their diagonal, divided by the mean of the diagonal before, and that mean; zeros where all
/// inputs are.
pub(super) fn damped(moments: &[f32], len: usize) -> (Vec<f64>, f64) {
    let mean = (0..len).map(|i| f64::from(moments[i * (len + 1)])).sum::<f64>() / len as f64;
    if mean <= 0.0 {
        return (vec![0.0; len * len], 0.0);
    }
    let mut damped: Vec<f64> = moments.par_iter().map(|value| f64::from(*value) / mean).collect();
    (0..len).for_each(|i| damped[i * (len + 1)] += DAMPING * damped[i * (len + 1)] + LEAST);
    (damped, mean)
}

/// # Errors
/// When a number is not finite.
///
/// # Panics
/// When the slices differ in length.
pub(super) fn add_finite(sums: &mut [f32], more: &[f32]) -> Result<()> {
    assert_eq!(sums.len(), more.len());
    if !more.iter().all(|value| value.is_finite()) {
        return Err(not_finite());
    }
    sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
    Ok(())
}

fn not_finite() -> Error {
    Error::config("an input or a gradient of the calibration is not finite")
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
