//! How the matrices of a model share a budget of bits.

use super::calibrate::LayerStatistics;
use super::encoder::MatrixEncoder;
use super::feedback::Feedback;
use super::matrix_ref::MatrixRef;
use super::quantizer::{Estimate, Task};
use super::rate::Target;
use super::search::shared_models;
use super::spectrum::Spectrum;
use crate::codec::axis::Axes;
use crate::codec::{BLOCK_EDGES, Layout, Matrix};
use crate::error::Result;

/// A size that a matrix can have and the divergence, in nats per token, that it is expected to cost there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Offer {
    /// Payload bits per weight.
    pub bits_per_weight: f64,
    /// Expected divergence.
    pub divergence: f64,
}

/// The fewest bits per weight that are offered: below, what a layer loses is more than its second order.
const FEWEST_BITS: f64 = 1.0;
/// The most, beyond eight planes and their scales.
const MOST_BITS: f64 = 8.25;
/// From offer to offer.
const STEP: f64 = 0.125;

impl MatrixEncoder {
    /// What sizes a calibrated matrix can have and what each is expected to cost, by the Gaussian's curve: from small to
    /// large, each step saving less per bit than the one before.
    ///
    /// # Errors
    /// When the matrix cannot be cut into blocks.
    ///
    /// # Panics
    /// When the statistics are those of a matrix of another shape.
    pub fn offers_of_matrix(&self, weights: MatrixRef, statistics: &LayerStatistics) -> Result<Vec<Offer>> {
        let (rows, cols) = weights.shape();
        let longest = rows.max(cols);
        let enough = BLOCK_EDGES.into_iter().find(|edge| *edge >= longest);
        let edge = self.config().block.or(enough).unwrap_or(BLOCK_EDGES[BLOCK_EDGES.len() - 1]);
        let layout = Layout::new(rows, cols, edge)?;
        let seed = self.config().signs.unwrap_or(true).then_some(self.config().seed);
        let spectrum = Spectrum::new(weights.values().to_vec(), layout, self.config().transform, seed, false);
        let axes = Axes::new(layout, self.config().transform, seed);
        let feedback = Feedback::new(statistics, layout, &axes.cols);
        let other_bits = 8 * Matrix::new(layout, self.config().transform, seed, vec![], 0.0).size_in_bytes();
        let quantizers = shared_models(self.config());
        let mut offers = Vec::new();
        for n in 0..=((MOST_BITS - FEWEST_BITS) / STEP) as usize {
            let bits = ((FEWEST_BITS + STEP * n as f64) * weights.elements() as f64) as usize;
            let task = Task {
                spectrum: &spectrum,
                feedback: Some(&feedback),
                target: Target::Bits(bits),
                other_bits,
            };
            let models = quantizers.iter().filter_map(|quantizer| quantizer.model(&task));
            offers.extend(models.map(|Estimate { squared_error, bits, .. }| Offer {
                bits_per_weight: bits as f64 / weights.elements() as f64,
                divergence: squared_error,
            }));
        }
        Ok(hull(offers))
    }
}

/// The offers that no mixture of others betters: bits rise, divergences fall by less and less per bit.
fn hull(mut offers: Vec<Offer>) -> Vec<Offer> {
    offers.sort_by(|a, b| {
        a.bits_per_weight.total_cmp(&b.bits_per_weight).then(a.divergence.total_cmp(&b.divergence))
    });
    let slope =
        |a: &Offer, b: &Offer| (a.divergence - b.divergence) / (b.bits_per_weight - a.bits_per_weight);
    let mut hull: Vec<Offer> = Vec::new();
    for offer in offers {
        if hull.last().is_some_and(|last| offer.divergence >= last.divergence) {
            continue;
        }
        while let [.., a, b] = &hull[..]
            && slope(a, b) <= slope(b, &offer)
        {
            hull.pop();
        }
        hull.push(offer);
    }
    hull
}

/// Shares bits out between matrices, each with its number of weights and its [`offers`](MatrixEncoder::offers_of_matrix): one offer
/// for each (its index), bought one after another by what they save per bit, as long as `fits(bits, divergence)` allows the sums so
/// far.
pub fn share(matrices: &[(u64, &[Offer])], mut fits: impl FnMut(f64, f64) -> bool) -> Vec<usize> {
    let bits = |matrix: usize, offer: usize| {
        let (weights, offers) = matrices[matrix];
        offers[offer].bits_per_weight * weights as f64
    };
    let mut upgrades = Vec::new();
    for (matrix, (_, offers)) in matrices.iter().enumerate() {
        for n in 1..offers.len() {
            let saved = offers[n - 1].divergence - offers[n].divergence;
            upgrades.push((saved / (bits(matrix, n) - bits(matrix, n - 1)), matrix, n));
        }
    }
    upgrades.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut taken = vec![0; matrices.len()];
    let first = |(matrix, (_, offers)): (usize, &(u64, &[Offer]))| match offers.first() {
        Some(offer) => (bits(matrix, 0), offer.divergence),
        None => (0.0, 0.0),
    };
    let (mut spent, mut divergence) = (0.0, 0.0);
    for (bits, more) in matrices.iter().enumerate().map(first) {
        spent += bits;
        divergence += more;
    }
    for (_, matrix, n) in upgrades {
        let more = bits(matrix, n) - bits(matrix, n - 1);
        let offers = matrices[matrix].1;
        let less = offers[n - 1].divergence - offers[n].divergence;
        // What does not fit is passed over, and with it all that builds on it: smaller matrices use up the rest.
        if taken[matrix] == n - 1 && fits(spent + more, divergence - less) {
            taken[matrix] = n;
            spent += more;
            divergence -= less;
        }
    }
    taken
}
