//! The DCT of sixteen vectors at once, one in each lane of a register.
//!
//! With `T` the unnormalised transform `sqrt(n) C`, `C` orthonormal, one step of the recursion is (Plonka and
//! Tasche, "Fast and numerically stable algorithms for discrete cosine transforms", 2005, sections 3 and 4)
//!
//! ```text
//!     T_II(n) x:   u_k = x_k + x_{n-1-k},  v_k = x_k - x_{n-1-k}                      k < n/2
//!                  even coefficients T_II(n/2) u,  odd coefficients T_IV(n/2) v
//!     T_IV(n) x:   p_k = c_k x_k + s_k x_{n-1-k},  q_k = (-1)^k (c_k x_{n-1-k} - s_k x_k)
//!                  P = T_II(n/2) p,  Q = T_II(n/2) q
//!                  y_0 = sqrt2 P_0,  y_{2m-1} = P_m - Q_{h-m},  y_{2m} = P_m + Q_{h-m},  y_{n-1} = -sqrt2 Q_0
//! ```
//!
//! with `h = n/2`, `c_k + i s_k = exp(i pi (2k + 1) / 4n)`. Every step is an orthogonal matrix times `sqrt2`, so
//! rounding does not grow; about `1.5 n log2 n` additions and multiplications in place of `n^2`. `T_IV` is its own
//! transpose and `T_II`'s is the same steps backwards. There is no fused multiply-add: every level gives the
//! same bits.

use std::f64::consts::PI;
use std::sync::LazyLock;

/// Vectors transformed together.
pub(super) const LANES: usize = 16;
/// One element of each.
pub(super) type Lanes = [f32; LANES];

/// The longest transform.
const MAX_LEN: usize = 256;

/// `(c_k, s_k)` of `T_IV(2h)` at `h + k`.
static ROTATIONS: LazyLock<[(f32, f32); MAX_LEN / 4 * 2]> = LazyLock::new(|| {
    std::array::from_fn(|index| {
        if index == 0 {
            return (0.0, 0.0);
        }
        let half = 1usize << index.ilog2();
        let angle = PI * (2 * (index - half) + 1) as f64 / (8 * half) as f64;
        (angle.cos() as f32, angle.sin() as f32)
    })
});

/// Whether vectors of this length can go through [`Dct::forward`].
pub(super) fn supports(len: usize) -> bool {
    len.is_power_of_two() && len <= MAX_LEN
}

/// Compiles the transforms for one level: they call themselves, so they cannot be inlined into one.
macro_rules! transforms {
    ($($feature:literal)?) => {
        use crate::cpu::transform::{Lanes, rotations};

        #[inline(always)]
        fn combine(a: &Lanes, b: &Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
            std::array::from_fn(|lane| f(a[lane], b[lane]))
        }

        /// `x <- T_II x`; `scratch` is as long.
        $(#[target_feature(enable = $feature)])?
        pub(super) fn dct2(x: &mut [Lanes], scratch: &mut [Lanes]) {
            let n = x.len();
            if n == 1 {
                return;
            }
            let h = n / 2;
            let (u, v) = scratch[..n].split_at_mut(h);
            for k in 0..h {
                u[k] = combine(&x[k], &x[n - 1 - k], |a, b| a + b);
                v[k] = combine(&x[k], &x[n - 1 - k], |a, b| a - b);
            }
            let (a, b) = x.split_at_mut(h);
            dct2(u, a);
            dct4(v, b);
            for k in 0..h {
                x[2 * k] = u[k];
                x[2 * k + 1] = v[k];
            }
        }

        /// `x <- T_II' x`, the inverse up to a factor of `n`; `scratch` is as long.
        $(#[target_feature(enable = $feature)])?
        pub(super) fn dct3(x: &mut [Lanes], scratch: &mut [Lanes]) {
            let n = x.len();
            if n == 1 {
                return;
            }
            let h = n / 2;
            let (u, v) = scratch[..n].split_at_mut(h);
            for k in 0..h {
                u[k] = x[2 * k];
                v[k] = x[2 * k + 1];
            }
            let (a, b) = x.split_at_mut(h);
            dct3(u, a);
            dct4(v, b);
            for k in 0..h {
                x[k] = combine(&u[k], &v[k], |a, b| a + b);
                x[n - 1 - k] = combine(&u[k], &v[k], |a, b| a - b);
            }
        }

        /// `x <- T_IV x`, its own transpose; `scratch` is as long.
        $(#[target_feature(enable = $feature)])?
        fn dct4(x: &mut [Lanes], scratch: &mut [Lanes]) {
            let n = x.len();
            if n == 1 {
                return;
            }
            let h = n / 2;
            let (p, q) = scratch[..n].split_at_mut(h);
            for (k, &(c, s)) in rotations(h).iter().enumerate() {
                let sign = if k % 2 == 0 { 1.0 } else { -1.0 };
                p[k] = combine(&x[k], &x[n - 1 - k], |a, b| c * a + s * b);
                q[k] = combine(&x[k], &x[n - 1 - k], |a, b| (sign * c) * b - (sign * s) * a);
            }
            let (a, b) = x.split_at_mut(h);
            dct2(p, a);
            dct2(q, b);
            x[0] = p[0].map(|p| std::f32::consts::SQRT_2 * p);
            x[n - 1] = q[0].map(|q| -std::f32::consts::SQRT_2 * q);
            for m in 1..h {
                x[2 * m - 1] = combine(&p[m], &q[h - m], |p, q| p - q);
                x[2 * m] = combine(&p[m], &q[h - m], |p, q| p + q);
            }
        }
    };
}
pub(super) use transforms;

/// The rotations of `T_IV(2 half)`.
pub(super) fn rotations(half: usize) -> &'static [(f32, f32)] {
    &ROTATIONS[half..2 * half]
}
