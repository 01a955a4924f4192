//! Orthogonal discrete wavelet transforms of any length, all levels.
//!
//! One level takes `n` samples to `n/2` averages followed by `n/2` details, with periodic filters:
//!
//! ```text
//!     average[i] = h0 x[2i] + h1 x[2i+1] + h2 x[2i+2] + h3 x[2i+3]
//!     detail[i]  = h3 x[2i] - h2 x[2i+1] + h1 x[2i+2] - h0 x[2i+3]      (indices modulo n)
//! ```
//!
//! (Daubechies, "Orthonormal bases of compactly supported wavelets", 1988; Haar is `h2 = h3 = 0`.) The last
//! sample of an odd length is passed on as an average of its own: the level stays orthonormal. The next level
//! works on the averages, until one is left. At two samples D4's period wraps onto itself and it is Haar.

#[derive(Clone, Copy, Debug)]
pub(super) enum Wavelet {
    Haar,
    Daubechies4,
}

impl Wavelet {
    /// The averaging filter `h`.
    fn taps(self) -> [f32; 4] {
        match self {
            Wavelet::Haar => [std::f32::consts::FRAC_1_SQRT_2, std::f32::consts::FRAC_1_SQRT_2, 0.0, 0.0],
            Wavelet::Daubechies4 => {
                let (root, scale) = (3f64.sqrt(), 1.0 / (4.0 * 2f64.sqrt()));
                [1.0 + root, 3.0 + root, 3.0 - root, 1.0 - root].map(|tap| (tap * scale) as f32)
            }
        }
    }

    pub(super) fn forward(self, x: &mut [f32], scratch: &mut [f32]) {
        let mut len = x.len();
        while len > 1 {
            self.split(&mut x[..len], scratch);
            len = len.div_ceil(2);
        }
    }

    pub(super) fn inverse(self, x: &mut [f32], scratch: &mut [f32]) {
        let levels = usize::BITS - (x.len() - 1).leading_zeros();
        for level in (0..levels).rev() {
            let len = x.len().div_ceil(1 << level);
            self.join(&mut x[..len], scratch);
        }
    }

    /// One level: samples to averages, then details.
    fn split(self, x: &mut [f32], scratch: &mut [f32]) {
        let [h0, h1, h2, h3] = self.taps();
        let (even, half) = (x.len() & !1, x.len() / 2);
        let averages = x.len() - half;
        let out = &mut scratch[..x.len()];
        for i in 0..half {
            let (a, b) = (x[2 * i], x[2 * i + 1]);
            let next = (2 * i + 2) % even;
            let (c, d) = (x[next], x[next + 1]);
            out[i] = h0 * a + h1 * b + h2 * c + h3 * d;
            out[averages + i] = h3 * a - h2 * b + h1 * c - h0 * d;
        }
        if averages > half {
            out[half] = x[x.len() - 1];
        }
        x.copy_from_slice(out);
    }

    /// The transpose of [`split`](Self::split).
    fn join(self, x: &mut [f32], scratch: &mut [f32]) {
        let [h0, h1, h2, h3] = self.taps();
        let (even, half) = (x.len() & !1, x.len() / 2);
        let averages = x.len() - half;
        let out = &mut scratch[..x.len()];
        out.fill(0.0);
        for i in 0..half {
            let (average, detail) = (x[i], x[averages + i]);
            let next = (2 * i + 2) % even;
            out[2 * i] += h0 * average + h3 * detail;
            out[2 * i + 1] += h1 * average - h2 * detail;
            out[next] += h2 * average + h1 * detail;
            out[next + 1] += h3 * average - h0 * detail;
        }
        if averages > half {
            out[x.len() - 1] = x[half];
        }
        x.copy_from_slice(out);
    }
}
