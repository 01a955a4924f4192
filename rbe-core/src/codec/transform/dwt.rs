//! Orthogonal discrete wavelet transforms of any length, all levels.
//!
//! One level takes `n` samples to `n/2` averages followed by `n/2` details, with periodic filters:
//!
//! ```text
//!     average[i] = h0 x[2i] + h1 x[2i+1] + h2 x[2i+2] + h3 x[2i+3]
//!     detail[i]  = g0 x[2i] + g1 x[2i+1] + g2 x[2i+2] + g3 x[2i+3]      (indices modulo n)
//! ```
//!
//! Haar: `h = (1, 1, 0, 0) / sqrt 2`, `g = (1, -1, 0, 0) / sqrt 2`. D4 (Daubechies, "Orthonormal bases of compactly
//! supported wavelets", 1988): `h = (1 + r, 3 + r, 3 - r, 1 - r) / (4 sqrt 2)` with `r = sqrt 3`,
//! `g = (h3, -h2, h1, -h0)`.
//!
//! The last sample of an odd length is passed on as an average of its own, and the period is that of the others:
//! the level stays orthonormal. The next level works on the averages, until one is left. So the coefficients are
//! the last average, then the details from the coarsest level to the finest. At two samples D4's period wraps
//! onto itself and it is Haar.

use super::planned::Planned;

#[derive(Clone, Copy, Debug)]
pub(super) enum Wavelet {
    Haar,
    Daubechies4,
}

impl Wavelet {
    /// The averaging filter `h` and the differencing filter `g`.
    fn filters(self) -> ([f32; 4], [f32; 4]) {
        match self {
            Wavelet::Haar => {
                let tap = std::f32::consts::FRAC_1_SQRT_2;
                ([tap, tap, 0.0, 0.0], [tap, -tap, 0.0, 0.0])
            }
            Wavelet::Daubechies4 => {
                let (root, scale) = (3f64.sqrt(), 1.0 / (4.0 * 2f64.sqrt()));
                let h = [1.0 + root, 3.0 + root, 3.0 - root, 1.0 - root].map(|tap| (tap * scale) as f32);
                (h, [h[3], -h[2], h[1], -h[0]])
            }
        }
    }

    /// One level: samples to averages, then details.
    fn split(self, x: &mut [f32], scratch: &mut [f32]) {
        let ([h0, h1, h2, h3], [g0, g1, g2, g3]) = self.filters();
        let (even, half) = (x.len() & !1, x.len() / 2);
        let averages = x.len() - half;
        let out = &mut scratch[..x.len()];
        for i in 0..half {
            let (a, b) = (x[2 * i], x[2 * i + 1]);
            let next = (2 * i + 2) % even;
            let (c, d) = (x[next], x[next + 1]);
            out[i] = h0 * a + h1 * b + h2 * c + h3 * d;
            out[averages + i] = g0 * a + g1 * b + g2 * c + g3 * d;
        }
        if averages > half {
            out[half] = x[x.len() - 1];
        }
        x.copy_from_slice(out);
    }

    /// The transpose of [`split`](Self::split).
    fn join(self, x: &mut [f32], scratch: &mut [f32]) {
        let ([h0, h1, h2, h3], [g0, g1, g2, g3]) = self.filters();
        let (even, half) = (x.len() & !1, x.len() / 2);
        let averages = x.len() - half;
        let out = &mut scratch[..x.len()];
        out.fill(0.0);
        for i in 0..half {
            let (average, detail) = (x[i], x[averages + i]);
            let next = (2 * i + 2) % even;
            out[2 * i] += h0 * average + g0 * detail;
            out[2 * i + 1] += h1 * average + g1 * detail;
            out[next] += h2 * average + g2 * detail;
            out[next + 1] += h3 * average + g3 * detail;
        }
        if averages > half {
            out[x.len() - 1] = x[half];
        }
        x.copy_from_slice(out);
    }
}

impl Planned for Wavelet {
    fn scratch_len(&self, len: usize) -> usize {
        len
    }

    fn forward(&self, x: &mut [f32], scratch: &mut [f32]) {
        let mut len = x.len();
        while len > 1 {
            self.split(&mut x[..len], scratch);
            len = len.div_ceil(2);
        }
    }

    fn inverse(&self, x: &mut [f32], scratch: &mut [f32]) {
        let levels = usize::BITS - (x.len() - 1).leading_zeros();
        for level in (0..levels).rev() {
            let len = x.len().div_ceil(1 << level);
            self.join(&mut x[..len], scratch);
        }
    }
}
