//! What the search asks of every way to code coefficients, whichever term it makes.

use super::feedback::Feedback;
use super::rate::Target;
use super::spectrum::Spectrum;
use crate::codec::term::Term;
use crate::error::Result;

/// What is to be quantised.
#[derive(Clone, Copy)]
pub(super) struct Task<'a> {
    pub spectrum: &'a Spectrum,
    /// How errors are handed on, where inputs are known; what keeps a few coefficients does without.
    pub feedback: Option<&'a Feedback>,
    pub target: Target,
    /// Bits of the payload outside of the terms that carry the coefficients.
    pub other_bits: usize,
}

/// Terms that carry a spectrum.
pub(super) struct Quantized {
    pub terms: Vec<Term>,
    /// In the coefficient domain, which is that of the weights.
    pub squared_error: f64,
}

/// What a quantizer is expected to come to.
pub(super) struct Estimate {
    /// In the coefficient domain, times what errors weigh where that is known.
    pub squared_error: f64,
    /// What it would be of Gaussian coefficients with the same energy.
    pub gaussian: f64,
    /// Of the payload.
    pub bits: usize,
}

/// When a quantizer is tried, the cheapest trials first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trial {
    /// By [`model`](Quantizer::model): to encode takes long.
    ByModel,
    /// By encoding, where the models of others are not to be trusted.
    WhereModelsFail,
    /// By encoding, where [`least_error`](Quantizer::least_error) leaves hope: it keeps few coefficients, for smooth matrices.
    OfFewCoefficients,
}

/// A way to code the coefficients of a spectrum.
pub(super) trait Quantizer: std::fmt::Debug + Send + Sync {
    fn trial(&self) -> Trial;

    /// Terms that reach the target; `None` where this cannot.
    ///
    /// # Errors
    /// When the terms cannot hold blocks of this size.
    fn encode(&self, task: &Task) -> Result<Option<Quantized>>;

    /// What [`encode`](Self::encode) is expected to come to, coefficients being nearly Gaussian; `None` where it cannot reach the target, or no
    /// model says.
    fn model(&self, _task: &Task) -> Option<Estimate> {
        None
    }

    /// A squared error that it cannot go below in so many bits; `most_in_memory` is what memory may have, where that is bounded.
    fn least_error(&self, _spectrum: &Spectrum, _bits: usize, _most_in_memory: Option<usize>) -> f64 {
        0.0
    }
}
