//! The orthonormal DCT-II of any length, by `rustdct`'s fast algorithms.

use super::planned::Planned;
use rustdct::{DctPlanner, TransformType2And3};
use std::sync::Arc;

/// ```text
///     T[k][n] = s_k cos(pi k (2n + 1) / 2N),   s_0 = sqrt(1/N),  s_k = sqrt(2/N)
/// ```
#[derive(Clone)]
pub(super) struct Dct {
    algorithm: Arc<dyn TransformType2And3<f32>>,
    /// `s_0`.
    first: f32,
    /// `s_k`, k > 0.
    rest: f32,
}

impl Dct {
    pub(super) fn new(len: usize) -> Self {
        Self {
            algorithm: DctPlanner::new().plan_dct2(len),
            first: (1.0 / len as f64).sqrt() as f32,
            rest: (2.0 / len as f64).sqrt() as f32,
        }
    }

    fn scale(&self, x: &mut [f32], first: f32) {
        x[0] *= first;
        x[1..].iter_mut().for_each(|x| *x *= self.rest);
    }
}

impl Planned for Dct {
    fn scratch_len(&self, _: usize) -> usize {
        self.algorithm.get_scratch_len()
    }

    /// rustdct's DCT-II is the plain sum of cosines: scale its result.
    fn forward(&self, x: &mut [f32], scratch: &mut [f32]) {
        self.algorithm.process_dct2_with_scratch(x, &mut scratch[..self.algorithm.get_scratch_len()]);
        self.scale(x, self.first);
    }

    /// rustdct's DCT-III halves its first input: scale the input, that one doubly.
    fn inverse(&self, x: &mut [f32], scratch: &mut [f32]) {
        self.scale(x, 2.0 * self.first);
        self.algorithm.process_dct3_with_scratch(x, &mut scratch[..self.algorithm.get_scratch_len()]);
    }
}

impl std::fmt::Debug for Dct {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Dct")
    }
}
