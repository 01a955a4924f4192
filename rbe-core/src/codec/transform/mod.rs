//! The orthonormal transforms of one block's rows and columns.
//!
//! `T' T = I` for every kind and every length, so squared errors of coefficients are squared errors of
//! weights (Parseval) and the inverse is the transpose.

mod dct;
mod dwt;
mod planned;

use dct::Dct;
use dwt::Wavelet;
use planned::Planned;
use std::sync::Arc;

/// The list of transforms: each with its code in a payload, its name, that in full, and what it does to vectors of a length.
macro_rules! transforms {
    ($($(#[$meta:meta])* $code:literal => $Transform:ident, $name:literal, $title:literal, $plan:expr;)*) => {
        /// Which orthonormal transform.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
        pub enum Transform {
            $($(#[$meta])* $Transform,)*
        }

        impl Transform {
            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$Transform,)*];

            /// The name used on the command line and in reports.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$Transform => $name,)*
                }
            }

            /// The name in full.
            pub fn title(self) -> &'static str {
                match self {
                    $(Self::$Transform => $title,)*
                }
            }

            /// The code of this transform in a payload.
            pub(crate) fn code(self) -> u8 {
                match self {
                    $(Self::$Transform => $code,)*
                }
            }

            fn plan(self, len: usize) -> Arc<dyn Planned> {
                match self {
                    $(Self::$Transform => Arc::new($plan(len)),)*
                }
            }
        }
    };
}
transforms! {
    /// The discrete cosine transform DCT-II: `T[k][n] = s_k cos(pi k (2n + 1) / 2N)`. For transformer
    /// weights (with random signs) and for smooth data.
    #[default]
    0 => Dct, "dct", "Discrete cosine", Dct::new;
    /// Haar's wavelet, all levels: for data with jumps.
    1 => Haar, "haar", "Haar wavelet", |_| Wavelet::Haar;
    /// Daubechies' wavelet with four taps (D4, two vanishing moments), all levels, periodic: for data
    /// that is smooth in pieces.
    2 => Daubechies4, "db4", "Daubechies' wavelet with four taps", |_| Wavelet::Daubechies4;
}

impl Transform {
    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|transform| transform.code() == code)
    }
}

/// A transform of one length, ready to run.
#[derive(Clone, Debug)]
pub struct Plan {
    len: usize,
    plan: Arc<dyn Planned>,
}

impl Plan {
    /// The transform of vectors of `len >= 1` elements.
    pub fn new(transform: Transform, len: usize) -> Self {
        Self { len, plan: transform.plan(len) }
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
        self.plan.scratch_len(self.len)
    }

    /// `x <- T x`.
    ///
    /// # Panics
    /// When `x` is not [`len`](Self::len) long or `scratch` is shorter than [`scratch_len`](Self::scratch_len).
    pub fn forward(&self, x: &mut [f32], scratch: &mut [f32]) {
        assert_eq!(x.len(), self.len);
        self.plan.forward(x, scratch);
    }

    /// `x <- T' x`, undoing [`forward`](Self::forward).
    ///
    /// # Panics
    /// As `forward`.
    pub fn inverse(&self, x: &mut [f32], scratch: &mut [f32]) {
        assert_eq!(x.len(), self.len);
        self.plan.inverse(x, scratch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTHS: [usize; 16] = [1, 2, 3, 4, 5, 7, 31, 32, 33, 63, 64, 97, 127, 128, 255, 256];

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
        for &transform in Transform::ALL {
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
        for &transform in Transform::ALL {
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
