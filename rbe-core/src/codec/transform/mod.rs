//! The orthonormal transforms of one block's rows and columns.
//!
//! `T' T = I` for every kind and every length, so squared errors of coefficients are squared errors of
//! weights (Parseval) and the inverse is the transpose.

mod dct;
mod dwt;

use dct::Dct;
use dwt::Wavelet;

/// Which orthonormal transform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Transform {
    /// The discrete cosine transform DCT-II: `T[k][n] = s_k cos(pi k (2n + 1) / 2N)`. For transformer
    /// weights (with random signs) and for smooth data.
    #[default]
    Dct,
    /// Haar's wavelet, all levels: for data with jumps.
    Haar,
    /// Daubechies' wavelet with four taps (D4, two vanishing moments), all levels, periodic: for data
    /// that is smooth in pieces.
    Daubechies4,
}

impl Transform {
    /// The name used on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Transform::Dct => "dct",
            Transform::Haar => "haar",
            Transform::Daubechies4 => "db4",
        }
    }

    /// The code of this transform in a payload.
    pub(crate) fn code(self) -> u8 {
        match self {
            Transform::Dct => 0,
            Transform::Haar => 1,
            Transform::Daubechies4 => 2,
        }
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        [Transform::Dct, Transform::Haar, Transform::Daubechies4].into_iter().find(|t| t.code() == code)
    }
}

/// A transform of one length, ready to run.
#[derive(Clone, Debug)]
pub struct Plan {
    len: usize,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Dct(Dct),
    Wavelet(Wavelet),
}

impl Plan {
    /// The transform of vectors of `len >= 1` elements.
    pub fn new(transform: Transform, len: usize) -> Self {
        let kind = match transform {
            Transform::Dct => Kind::Dct(Dct::new(len)),
            Transform::Haar => Kind::Wavelet(Wavelet::Haar),
            Transform::Daubechies4 => Kind::Wavelet(Wavelet::Daubechies4),
        };
        Self { len, kind }
    }

    /// The vector length.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true: a plan transforms at least one element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many elements of scratch [`forward`](Self::forward) and [`inverse`](Self::inverse) need.
    pub fn scratch_len(&self) -> usize {
        match &self.kind {
            Kind::Dct(dct) => dct.scratch_len(),
            Kind::Wavelet(_) => self.len,
        }
    }

    /// `x <- T x`.
    ///
    /// # Panics
    /// When `x` is not [`len`](Self::len) long or `scratch` is shorter than [`scratch_len`](Self::scratch_len).
    pub fn forward(&self, x: &mut [f32], scratch: &mut [f32]) {
        assert_eq!(x.len(), self.len);
        match &self.kind {
            Kind::Dct(dct) => dct.forward(x, scratch),
            Kind::Wavelet(wavelet) => wavelet.forward(x, scratch),
        }
    }

    /// `x <- T' x`, undoing [`forward`](Self::forward).
    ///
    /// # Panics
    /// As `forward`.
    pub fn inverse(&self, x: &mut [f32], scratch: &mut [f32]) {
        assert_eq!(x.len(), self.len);
        match &self.kind {
            Kind::Dct(dct) => dct.inverse(x, scratch),
            Kind::Wavelet(wavelet) => wavelet.inverse(x, scratch),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTHS: [usize; 16] = [1, 2, 3, 4, 5, 7, 31, 32, 33, 63, 64, 97, 127, 128, 255, 256];
    const ALL: [Transform; 3] = [Transform::Dct, Transform::Haar, Transform::Daubechies4];

    /// The rows of `T`: row k is `T' e_k`.
    fn matrix(plan: &Plan) -> Vec<Vec<f32>> {
        let mut scratch = vec![0.0; plan.scratch_len()];
        (0..plan.len())
            .map(|k| {
                let mut row = vec![0.0; plan.len()];
                row[k] = 1.0;
                plan.inverse(&mut row, &mut scratch);
                row
            })
            .collect()
    }

    #[test]
    fn every_transform_of_every_length_is_orthonormal() {
        for transform in ALL {
            for n in LENGTHS {
                let t = matrix(&Plan::new(transform, n));
                for a in 0..n {
                    for b in 0..n {
                        let dot: f64 =
                            t[a].iter().zip(&t[b]).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
                        let identity = f64::from(u8::from(a == b));
                        assert!((dot - identity).abs() < 2e-6, "{transform:?} {n}: <{a}, {b}> = {dot}");
                    }
                }
            }
        }
    }

    #[test]
    fn forward_is_the_matrix() {
        for transform in ALL {
            for n in LENGTHS {
                let plan = Plan::new(transform, n);
                let x: Vec<f32> = (0..n).map(|i| ((i * i + 3 * i) as f32 * 0.7).sin()).collect();
                let mut fast = x.clone();
                plan.forward(&mut fast, &mut vec![0.0; plan.scratch_len()]);
                for (k, row) in matrix(&plan).iter().enumerate() {
                    let exact: f64 = row.iter().zip(&x).map(|(t, x)| f64::from(*t) * f64::from(*x)).sum();
                    assert!((f64::from(fast[k]) - exact).abs() < 5e-6, "{transform:?} {n} coefficient {k}");
                }
            }
        }
    }

    #[test]
    fn the_dct_is_the_textbook_cosine() {
        use std::f64::consts::PI;
        for n in LENGTHS {
            for (k, row) in matrix(&Plan::new(Transform::Dct, n)).iter().enumerate() {
                let scale = if k == 0 { (1.0 / n as f64).sqrt() } else { (2.0 / n as f64).sqrt() };
                for (i, t) in row.iter().enumerate() {
                    let exact = scale * (PI * k as f64 * (2 * i + 1) as f64 / (2 * n) as f64).cos();
                    assert!((f64::from(*t) - exact).abs() < 1e-6, "{n}: T[{k}][{i}]");
                }
            }
        }
    }

    #[test]
    fn wavelets_annihilate_what_they_promise() {
        // A constant has one Haar coefficient; a ramp has no D4 detail but where the period wraps.
        let n = 64;
        let mut constant = vec![1.0; n];
        Plan::new(Transform::Haar, n).forward(&mut constant, &mut vec![0.0; n]);
        assert!((constant[0] - 8.0).abs() < 1e-5 && constant[1..].iter().all(|c| c.abs() < 1e-5));
        let mut ramp: Vec<f32> = (0..n).map(|i| i as f32).collect();
        Plan::new(Transform::Daubechies4, n).forward(&mut ramp, &mut vec![0.0; n]);
        let finest_details = &ramp[n / 2..n - 1];
        assert!(finest_details.iter().all(|c| c.abs() < 1e-3), "{finest_details:?}");
    }

    #[test]
    fn wavelet_coefficients_are_the_average_then_details_from_coarse_to_fine() {
        // Averages of five samples: (4, 8) / sqrt 2 and 4; of those 6 and 4; of those 10 / sqrt 2.
        let mut x = [1.0, 3.0, 7.0, 1.0, 4.0];
        Plan::new(Transform::Haar, 5).forward(&mut x, &mut [0.0; 5]);
        let root = 2f32.sqrt();
        let exact = [10.0 / root, 2.0 / root, -2.0, -2.0 / root, 6.0 / root];
        assert!(x.iter().zip(exact).all(|(x, exact)| (x - exact).abs() < 1e-5), "{x:?} {exact:?}");
    }
}
