//! Which block edge suits a kind of matrix, by trying them on samples.

use super::Encoder;
use crate::clock::{self, Instant};
use crate::error::{Error, Result};
use rbe_core::codec::BLOCK_EDGES;
use rbe_core::cpu::{PackedMatrix, Precision, Rayon, Rows, matmul};
use rbe_core::encode::{EncoderConfig, MatrixRef};
use serde::Serialize;

/// Products that are timed, the best of which counts.
const PRODUCTS: usize = 9;

/// What a block edge is judged by; each weight is a share of the score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockSizeWeights {
    /// Of the bits per weight.
    pub memory: f64,
    /// Of the time of a product with one vector.
    pub speed: f64,
    /// Of the relative error.
    pub accuracy: f64,
}

impl Default for BlockSizeWeights {
    /// 0.3, 0.4 and 0.3.
    fn default() -> Self {
        Self { memory: 0.3, speed: 0.4, accuracy: 0.3 }
    }
}

/// How an edge did on all samples together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BlockSizeScore {
    /// The edge.
    pub block: usize,
    /// Payload bits per weight.
    pub bits_per_weight: f64,
    /// Nanoseconds of a product with one vector, per thousand weights; zero where there is no clock.
    pub product_ns_per_kiloweight: f64,
    /// `|W - W^| / |W|`.
    pub relative_error: f64,
    /// `sum of weight * best / own` over the three, so 1 for an edge that is best in all.
    pub score: f64,
}

impl Encoder {
    /// Encodes the samples, row-major matrices with their rows and columns, at every block edge, and returns how each did, the
    /// best first. Edges that cannot reach the rate are left out.
    ///
    /// With a rate in bits the memory hardly differs, with an error the error; a score compares what is left. Speed is
    /// measured, on this machine and as it is loaded now.
    ///
    /// # Errors
    /// When there are no samples, one cannot be encoded for another reason than its rate, no edge reaches the rate, or the
    /// weights are negative, not finite or all zero; when speed is to count and there is no clock, on
    /// `wasm32-unknown-unknown` without the feature `js`.
    pub fn optimize_block_size(
        &self,
        samples: &[(&[f32], usize, usize)],
        weights: BlockSizeWeights,
    ) -> Result<Vec<BlockSizeScore>> {
        let BlockSizeWeights { memory, speed, accuracy } = weights;
        let all = [memory, speed, accuracy];
        if all.iter().any(|weight| !(weight.is_finite() && *weight >= 0.0)) || all.iter().sum::<f64>() <= 0.0
        {
            return Err(Error::config(format!("weights {all:?}; they are at least 0 and not all 0")));
        }
        if speed > 0.0 && !clock::RUNS {
            let what =
                "a speed to choose by: this target has no clock without the feature `js`; weigh it by 0";
            return Err(Error::unsupported(what));
        }
        if samples.is_empty() {
            return Err(Error::config("no samples to choose a block size by"));
        }
        let mut scores = Vec::new();
        let mut unreachable = None;
        for block in BLOCK_EDGES {
            let encoder = Encoder::new(EncoderConfig { block: Some(block), ..self.config().clone() })?;
            match encoder.measure(block, samples) {
                Ok(score) => scores.push(score),
                Err(error @ Error::Codec(rbe_core::Error::UnreachableRate { .. })) => {
                    unreachable = Some(error)
                }
                Err(error) => return Err(error),
            }
        }
        let best = |value: fn(&BlockSizeScore) -> f64| {
            scores.iter().map(value).fold(f64::INFINITY, f64::min).max(f64::MIN_POSITIVE)
        };
        let (bits, time, error) = (
            best(|score| score.bits_per_weight),
            best(|score| score.product_ns_per_kiloweight),
            best(|score| score.relative_error),
        );
        for score in &mut scores {
            // Where the best is zero, only those that reach it get the share.
            let share = |best: f64, own: f64| best / own.max(f64::MIN_POSITIVE);
            score.score = (memory * share(bits, score.bits_per_weight)
                + speed * share(time, score.product_ns_per_kiloweight)
                + accuracy * share(error, score.relative_error))
                / (memory + speed + accuracy);
        }
        scores.sort_by(|a, b| b.score.total_cmp(&a.score));
        match unreachable.filter(|_| scores.is_empty()) {
            Some(error) => Err(error),
            None => Ok(scores),
        }
    }

    /// What this encoder makes of the samples; the score is left at 0.
    fn measure(&self, block: usize, samples: &[(&[f32], usize, usize)]) -> Result<BlockSizeScore> {
        let (mut bytes, mut elements, mut nanoseconds) = (0, 0, 0.0);
        let (mut squared_error, mut energy) = (0.0, 0.0);
        for &(values, rows, cols) in samples {
            let matrix = self.encode_matrix(MatrixRef::new(values, rows, cols))?;
            let norm = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
            bytes += matrix.plain_size_in_bytes();
            elements += values.len();
            energy += norm;
            squared_error += norm * f64::from(matrix.relative_error()).powi(2);
            let packed = PackedMatrix::new(&matrix);
            let (x, mut y) = (vec![1.0; cols], vec![0.0; rows]);
            let times = (0..PRODUCTS).map(|_| {
                let start = Instant::now();
                matmul(&packed, Rows::new(&x, 1, cols), &mut y, Precision::Auto, &Rayon);
                start.elapsed().as_secs_f64()
            });
            nanoseconds += 1e9 * times.fold(f64::INFINITY, f64::min);
        }
        Ok(BlockSizeScore {
            block,
            bits_per_weight: 8.0 * bytes as f64 / elements as f64,
            product_ns_per_kiloweight: 1e3 * nanoseconds / elements as f64,
            relative_error: if energy > 0.0 { (squared_error / energy).sqrt() } else { 0.0 },
            score: 0.0,
        })
    }
}
