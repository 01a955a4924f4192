//! The encoder of one matrix: checks, brings the weights to an ordinary size, chooses, quantises, measures by decoding.

use super::calibrate::LayerStatistics;
use super::config::EncoderConfig;
use super::drift::take_back;
use super::feedback::Feedback;
use super::importance::Importance;
use super::matrix_ref::MatrixRef;
use super::quantizer::Trial;
use super::rate::{Holds, Rate, Target, TermChoice};
use super::scales::Scales;
use super::search::{self, Trials};
use super::spectrum::{self, Spectrum};
use crate::codec::axis::Axes;
use crate::codec::errors::{BlockRowErrors, Comparison, row_errors};
use crate::codec::matrix::Orientation;
use crate::codec::term::trellis::STATE_BITS;
use crate::codec::{BLOCK_EDGES, Matrix};
use crate::cpu::requested_level;
use crate::error::{Error, Result};
use rayon::prelude::*;

/// Weights up to this size have coefficients and sums well within F32.
const LARGEST_WEIGHT: f32 = 1.1e30;
/// A matrix whose largest weight is smaller than this has scales, and products with small inputs, below what F32 holds
/// in full precision.
const SMALLEST_WEIGHT: f32 = 1e-30;
/// A matrix whose largest weight is `2^e` with an `e` up to this, of either sign, is encoded as it is. Farther away squares
/// leave F32, so another is encoded as a multiple by a power of two and brought back to its size after that.
const ORDINARY_EXPONENT: i32 = 16;

/// Refuses a matrix whose largest magnitude, of its finite weights, is out of range.
///
/// # Errors
/// When products with it would overflow, or lose what there is.
pub fn check_largest(largest: f64) -> Result<()> {
    // With as many digits as tell the value in F32, where that has it.
    let shown = match largest as f32 {
        near if near.is_normal() => format!("{near:e}"),
        _ => format!("{largest:e}"),
    };
    if largest > f64::from(LARGEST_WEIGHT) {
        return Err(Error::config(format!(
            "a weight of {shown}; beyond {LARGEST_WEIGHT:e} coefficients overflow: leave the tensor dense"
        )));
    }
    if largest > 0.0 && largest < f64::from(SMALLEST_WEIGHT) {
        return Err(Error::config(format!(
            "the largest weight is {shown}; below {SMALLEST_WEIGHT:e} products fall out of F32: leave the tensor dense"
        )));
    }
    Ok(())
}

/// How often a matrix is encoded again at most for the sake of rows that came out bad: with smaller scales, or nearer to their weights.
const MENDED: usize = 2;

/// The block edge of a large matrix of which next to nothing is stored: with 256 readers would refuse it.
const SPARE_EDGE: usize = 128;

/// Turns matrices into compressed tensors.
///
/// ```
/// use rbe_core::encode::{EncoderConfig, MatrixEncoder, MatrixRef, Rate};
///
/// # fn main() -> rbe_core::Result<()> {
/// let weights: Vec<f32> = (0..256 * 512).map(|n| (n as f32 * 12.9898).sin()).collect();
/// let encoder = MatrixEncoder::new(EncoderConfig::from(Rate::RelativeError(0.1)))?;
/// let compressed = encoder.encode_matrix(MatrixRef::new(&weights, 256, 512))?;
/// assert!(compressed.relative_error() <= 0.1);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct MatrixEncoder {
    config: EncoderConfig,
}

impl MatrixEncoder {
    /// An encoder with these settings.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] when the settings contradict themselves or are out of range, and as
    /// [`requested_level`].
    pub fn new(config: EncoderConfig) -> Result<Self> {
        requested_level()?;
        config.rate.check()?;
        if let Some(block) = config.block.filter(|block| !BLOCK_EDGES.contains(block)) {
            return Err(Error::config(format!("block edge {block}; allowed are 32, 64, 128 and 256")));
        }
        if !STATE_BITS.contains(&config.trellis_state_bits) {
            let bits = config.trellis_state_bits;
            return Err(Error::config(format!("trellis states of {bits} bits; allowed are 12 to 16")));
        }
        let mut config = config;
        if let Rate::Coefficients(k) = config.rate {
            if config.term.holds() == Some(Holds::All) {
                return Err(Error::config(format!(
                    "the term {} holds every coefficient; ask for bits or an error",
                    config.term.name()
                )));
            }
            let block = *config.block.get_or_insert(64);
            if k > block * block {
                return Err(Error::config(format!("{k} coefficients of a block that has {}", block * block)));
            }
        }
        Ok(Self { config })
    }

    /// The settings.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Compresses a matrix.
    ///
    /// # Errors
    /// When it has no elements, a weight is not finite, the largest is beyond 1.1e30 or, not being zero, below 1e-30, or the
    /// rate cannot be reached.
    pub fn encode_matrix(&self, weights: MatrixRef) -> Result<Matrix> {
        self.encode_matrix_for(weights, &Importance::default())
    }

    /// Compresses a matrix `(outputs, inputs)` so that the model's predictions, not the weights, change the
    /// least. Where the statistics hold products of inputs, every rounding error is handed on to the columns that can still
    /// make up for it; where they hold squares alone, columns are scaled by them.
    ///
    /// # Errors
    /// As [`encode_matrix`](Self::encode_matrix); when the statistics are those of a matrix of another shape or of no
    /// token; when the rate is no number of bits, or the term sparse.
    pub fn encode_matrix_calibrated(
        &self,
        weights: MatrixRef,
        statistics: &LayerStatistics,
    ) -> Result<Matrix> {
        self.encode_matrix_for(weights, &Importance::of(statistics))
    }

    /// # Errors
    /// When statistics and settings do not go with each other or with the matrix.
    fn check_calibration(&self, (rows, cols): (usize, usize), statistics: &LayerStatistics) -> Result<()> {
        if statistics.shape() != (rows, cols) {
            let (outputs, inputs) = statistics.shape();
            let reason = format!("statistics of a weight ({outputs}, {inputs}) for one of ({rows}, {cols})");
            return Err(Error::shape(reason));
        }
        if statistics.count() == 0 {
            return Err(Error::config("statistics of no token"));
        }
        if !matches!(self.config.rate, Rate::BitsPerWeight(_)) {
            let rate = self.config.rate;
            return Err(Error::config(format!("calibration towards {rate}; it takes bits per weight only")));
        }
        if self.config.term.holds() == Some(Holds::Few) {
            return Err(Error::config(format!(
                "calibration of the term {}, which holds few coefficients; those that hold all can be calibrated",
                self.config.term.name()
            )));
        }
        Ok(())
    }

    /// Compresses a matrix `(outputs, inputs)` of which this is known beside its weights.
    ///
    /// # Errors
    /// As [`encode_matrix_calibrated`](Self::encode_matrix_calibrated); when the scales are those of another number of columns.
    pub fn encode_matrix_for(&self, weights: MatrixRef, importance: &Importance<'_>) -> Result<Matrix> {
        importance.check(weights.cols())?;
        if let Some(statistics) = importance.statistics {
            self.check_calibration(weights.shape(), statistics)?;
            if let Some(aim) = statistics.aim(weights.values()) {
                let statistics = statistics.without_drift();
                let importance = Importance { statistics: Some(&statistics), ..importance.clone() };
                return self.encode_aim(aim, weights, &importance);
            }
        }
        let values = weights.values();
        if let Some(index) = values.par_iter().position_first(|value| !value.is_finite()) {
            return Err(Error::NonFinite { index, value: values[index] });
        }
        let largest = values.par_iter().map(|value| value.abs()).reduce(|| 0.0, f32::max);
        check_largest(largest.into())?;
        let exponent = if largest > 0.0 { largest.log2().floor() as i32 } else { 0 };
        if exponent.abs() <= ORDINARY_EXPONENT {
            return self.encode_ordinary(weights, importance);
        }
        let factor = 2f32.powi(-exponent);
        let scaled: Vec<f32> = values.iter().map(|value| value * factor).collect();
        let rate = self.config.rate.for_weights_times(factor.into());
        let encoder = Self { config: EncoderConfig { rate, ..self.config.clone() } };
        match encoder.encode_ordinary(MatrixRef::new(&scaled, weights.rows(), weights.cols()), importance) {
            Ok(matrix) => matrix.times_power_of_two(exponent),
            Err(Error::UnreachableRate { best, .. }) => {
                Err(Error::UnreachableRate { asked: self.config.rate.to_string(), best })
            }
            Err(error) => Err(error),
        }
    }

    /// The matrix of what a layer is to be in the place of its weights; of rows that come out too far from these, of what is nearer.
    fn encode_aim(
        &self,
        mut aim: Vec<f32>,
        weights: MatrixRef,
        importance: &Importance<'_>,
    ) -> Result<Matrix> {
        let (rows, cols) = weights.shape();
        let mut best = Best::default();
        for _ in 0..=MENDED {
            let matrix = self.encode_matrix_for(MatrixRef::new(&aim, rows, cols), importance)?;
            let block_rows = compare_block_rows(&matrix, weights);
            let comparison = Comparison::new(&block_rows);
            best.offer(matrix, &comparison);
            let bad = comparison.errors().has_a_bad_row();
            if !bad || !take_back(&mut aim, weights, &row_errors(&block_rows), comparison.relative_error()) {
                break;
            }
        }
        best.matrix().ok_or_else(|| search::unreachable_rate(&self.config, weights.elements(), 0.0))
    }

    /// Encodes finite weights of an ordinary size.
    fn encode_ordinary(&self, weights: MatrixRef, importance: &Importance<'_>) -> Result<Matrix> {
        // Errors are handed on by quantisers that take every coefficient.
        let statistics = importance.statistics.filter(|statistics| statistics.has_products());
        let even = self.may_be_even(weights, statistics.is_none())?;
        // Where nothing is known beside the weights, their error decides between scales and a sparse or smooth form.
        let compared =
            importance.is_unknown() && self.may_be_scaled() && self.config.term == TermChoice::Auto;
        let scales = match even || compared {
            true => Scales::new(&importance.scaling(&self.config, weights), weights),
            false => None,
        };
        let scaled = match scales {
            Some(scales) => self.encode_scaled(scales, weights, statistics)?,
            None => None,
        };
        match scaled {
            Some(scaled) if even => Ok(scaled),
            Some(scaled) => {
                let unscaled = self.encode_unscaled(weights, importance)?;
                let better = scaled.relative_error() < unscaled.relative_error();
                Ok(if better { scaled } else { unscaled })
            }
            None => self.encode_unscaled(weights, importance),
        }
    }

    /// Encodes finite weights of an ordinary size without scales in front.
    fn encode_unscaled(&self, weights: MatrixRef, importance: &Importance<'_>) -> Result<Matrix> {
        let statistics = importance.statistics.filter(|statistics| statistics.has_products());
        let trials = Trials { sparse: statistics.is_none(), dense: true };
        let (preparation, quantizer) = search::choose(&self.config, weights, trials)?;
        let spectrum = search::prepare(&self.config, &preparation, weights)?;
        let feedback = feedback(&spectrum, statistics);
        let energy = spectrum::energy(weights.values());
        let unreachable = || search::unreachable_rate(&self.config, weights.elements(), energy);
        let target = self.config.rate.target(weights.elements(), energy);
        // The coefficient domain's error is the weights' up to rounding: keep a bound by decoding.
        let mut asked = target;
        for _ in 0..4 {
            let encoded = search::quantize(&spectrum, feedback.as_ref(), &*quantizer, asked)?
                .ok_or_else(unreachable)?;
            let measured = compare(&encoded.matrix, weights);
            match (target, &mut asked) {
                (Target::SquaredError(bound), Target::SquaredError(asked))
                    if measured.squared_error > bound =>
                {
                    *asked *= 0.999 * bound / measured.squared_error;
                }
                _ => {
                    let matrix = encoded.matrix.with_errors(measured.errors());
                    return match matrix.expect_payload(Orientation::Matrix) {
                        Ok(()) => Ok(matrix),
                        // Of so little, smaller blocks count enough bytes.
                        Err(_) if self.config.block.is_none() => {
                            let config = EncoderConfig { block: Some(SPARE_EDGE), ..self.config.clone() };
                            Self { config }.encode_matrix_for(weights, importance)
                        }
                        Err(error) => Err(error),
                    };
                }
            }
        }
        Err(unreachable())
    }

    /// Whether the settings allow scales.
    fn may_be_scaled(&self) -> bool {
        self.config.scales
            && matches!(self.config.rate, Rate::BitsPerWeight(_))
            && self.config.basis != Some(true)
    }

    /// Whether scales may stand in front. A sparse term and a basis are for smooth matrices, which scales of a few steps would
    /// not leave smooth.
    fn may_be_even(&self, weights: MatrixRef, sparse: bool) -> Result<bool> {
        let config = &self.config;
        if !self.may_be_scaled() {
            return Ok(false);
        }
        let sparse = sparse && config.term.holds() != Some(Holds::All);
        if !sparse {
            return Ok(true);
        }
        let (preparation, quantizer) = search::choose(config, weights, Trials { sparse, dense: false })?;
        Ok(quantizer.trial() != Trial::OfFewCoefficients && !preparation.basis)
    }

    /// The matrix with these scales in front, or with smaller ones for rows that come out bad; `None` where the budget does not hold
    /// them.
    fn encode_scaled(
        &self,
        scales: Scales,
        weights: MatrixRef,
        statistics: Option<&LayerStatistics>,
    ) -> Result<Option<Matrix>> {
        let mut best = Best::default();
        let mut scales = Some(scales);
        for _ in 0..=MENDED {
            let Some(own) = scales else { break };
            let Some(matrix) = self.encode_with(own.clone(), weights, statistics)? else { break };
            let block_rows = compare_block_rows(&matrix, weights);
            let comparison = Comparison::new(&block_rows);
            let (errors, whole) = (comparison.errors(), comparison.relative_error());
            scales = own.mended(&row_errors(&block_rows), whole).filter(|_| errors.has_a_bad_row());
            best.offer(matrix, &comparison);
        }
        Ok(best.matrix())
    }

    /// The matrix with these scales in front, its errors not yet measured; `None` where the budget does not hold them.
    fn encode_with(
        &self,
        scales: Scales,
        weights: MatrixRef,
        statistics: Option<&LayerStatistics>,
    ) -> Result<Option<Matrix>> {
        let Target::Bits(bits) = self.config.rate.target(weights.elements(), 0.0) else { return Ok(None) };
        let Some(bits) = bits.checked_sub(scales.bits()) else { return Ok(None) };
        let even = scales.even(weights);
        let trials = Trials { sparse: false, dense: true };
        let (rows, cols) = weights.shape();
        let chosen = search::choose(&self.config, MatrixRef::new(&even, rows, cols), trials)?;
        let (preparation, quantizer) = chosen;
        let spectrum = search::prepare_owned(&self.config, &preparation, even, (rows, cols))?;
        let statistics = statistics.map(|statistics| scales.scaled(statistics));
        let feedback = feedback(&spectrum, statistics.as_ref());
        let encoded = search::quantize(&spectrum, feedback.as_ref(), &*quantizer, Target::Bits(bits))?;
        Ok(encoded.map(|encoded| encoded.matrix.with_scales(scales.rows, scales.cols)))
    }
}

/// Of several tries at a matrix the one whose worst row is the least bad.
#[derive(Default)]
struct Best(Option<(f64, Matrix)>);

impl Best {
    fn offer(&mut self, matrix: Matrix, comparison: &Comparison) {
        let times = comparison.worst_row.map_or(0.0, |(_, error)| error / comparison.relative_error());
        if self.0.as_ref().is_none_or(|(least, _)| times < *least) {
            self.0 = Some((times, matrix.with_errors(comparison.errors())));
        }
    }

    fn matrix(self) -> Option<Matrix> {
        self.0.map(|(_, matrix)| matrix)
    }
}

/// How errors of this spectrum are handed on, where inputs have these statistics.
fn feedback(spectrum: &Spectrum, statistics: Option<&LayerStatistics>) -> Option<Feedback> {
    let axes = || Axes::new(spectrum.layout, spectrum.transform, spectrum.seed);
    statistics.map(|statistics| Feedback::new(statistics, spectrum.layout, &axes().cols))
}

/// A matrix against its original, by decoding block row after block row.
fn compare(matrix: &Matrix, weights: MatrixRef) -> Comparison {
    Comparison::new(&compare_block_rows(matrix, weights))
}

fn compare_block_rows(matrix: &Matrix, weights: MatrixRef) -> Vec<BlockRowErrors> {
    let layout = matrix.layout();
    let block_row = |i: usize| {
        let mut decoded = vec![0.0; layout.row_range(i).len() * layout.cols()];
        matrix.decode_block_row(i, &mut decoded);
        BlockRowErrors::new(layout, i, |row, col| weights.row(row)[col].into(), &decoded)
    };
    (0..layout.block_rows()).into_par_iter().map(block_row).collect()
}
