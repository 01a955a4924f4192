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

use crate::cpu::kernels::isa::Isa;
use crate::cpu::layout::{Element, LANES};
use std::f32::consts::SQRT_2;
use std::f64::consts::PI;
use std::sync::LazyLock;

/// An instruction set's own copies of the steps below: these call each other, so that none can be inlined into all. `scratch` is
/// as long as `x`, and `x` has eight elements or more.
pub(in crate::cpu) trait Recursive: Isa {
    /// [`dct2`], compiled for the set.
    fn dct2<L: Element>(self, x: &mut [L], scratch: &mut [L]);
    /// [`dct3`], compiled for the set.
    fn dct3<L: Element>(self, x: &mut [L], scratch: &mut [L]);
    /// [`dct4`], compiled for the set.
    fn dct4<L: Element>(self, x: &mut [L], scratch: &mut [L]);
}

/// The longest transform.
const MAX_LEN: usize = 256;

/// `c_k`, `s_k`, and both times `(-1)^k`.
type Rotation = [f32; 4];

/// The rotations of `T_IV(2h)` at `h + k`.
pub(super) static ROTATIONS: LazyLock<[Rotation; MAX_LEN / 2]> = LazyLock::new(|| {
    std::array::from_fn(|index| {
        if index == 0 {
            return [0.0; 4];
        }
        let half = 1usize << index.ilog2();
        let k = index - half;
        let (s, c) = (PI * (2 * k + 1) as f64 / (8 * half) as f64).sin_cos();
        let sign = if k.is_multiple_of(2) { 1.0 } else { -1.0 };
        [c, s, sign * c, sign * s].map(|x| x as f32)
    })
});

/// The rotations of `T_IV(2 half)`.
#[inline(always)]
fn rotations(half: usize) -> &'static [Rotation] {
    &ROTATIONS[half..2 * half]
}

/// Whether vectors of this length can go through the transforms: the ways between rows and lanes take sixteen elements at a
/// time.
pub(in crate::cpu) fn supports(len: usize) -> bool {
    len.is_power_of_two() && (LANES..=MAX_LEN).contains(&len)
}

/// `x <- T_II x`.
#[inline(always)]
pub(in crate::cpu) fn dct2<I: Recursive, L: Element>(isa: I, x: &mut [L], scratch: &mut [L]) {
    if let Ok(x) = <&mut [L; 8]>::try_from(&mut *x) {
        *x = dct2_8(*x);
        return;
    }
    let h = x.len() / 2;
    let (u, v) = scratch[..2 * h].split_at_mut(h);
    let (low, high) = x.split_at_mut(h);
    for ((u, v), (low, high)) in u.iter_mut().zip(v.iter_mut()).zip(low.iter().zip(high.iter().rev())) {
        *u = *low + *high;
        *v = *low - *high;
    }
    isa.dct2(u, low);
    isa.dct4(v, high);
    for (pair, (u, v)) in x.chunks_exact_mut(2).zip(u.iter().zip(v.iter())) {
        pair[0] = *u;
        pair[1] = *v;
    }
}

/// `x <- T_II' x`, the inverse up to a factor of `n`.
#[inline(always)]
pub(in crate::cpu) fn dct3<I: Recursive, L: Element>(isa: I, x: &mut [L], scratch: &mut [L]) {
    if let Ok(x) = <&mut [L; 8]>::try_from(&mut *x) {
        *x = dct3_8(*x);
        return;
    }
    let h = x.len() / 2;
    let (u, v) = scratch[..2 * h].split_at_mut(h);
    for (pair, (u, v)) in x.chunks_exact(2).zip(u.iter_mut().zip(v.iter_mut())) {
        *u = pair[0];
        *v = pair[1];
    }
    let (low, high) = x.split_at_mut(h);
    isa.dct3(u, low);
    isa.dct4(v, high);
    for ((u, v), (low, high)) in u.iter().zip(v.iter()).zip(low.iter_mut().zip(high.iter_mut().rev())) {
        *low = *u + *v;
        *high = *u - *v;
    }
}

/// `x <- T_IV x`, its own transpose.
#[inline(always)]
pub(in crate::cpu) fn dct4<I: Recursive, L: Element>(isa: I, x: &mut [L], scratch: &mut [L]) {
    if let Ok(x) = <&mut [L; 8]>::try_from(&mut *x) {
        *x = dct4_8(*x);
        return;
    }
    let h = x.len() / 2;
    let (p, q) = scratch[..2 * h].split_at_mut(h);
    let (low, high) = x.split_at_mut(h);
    let turned = p.iter_mut().zip(q.iter_mut()).zip(rotations(h));
    for (((p, q), [c, s, sc, ss]), (low, high)) in turned.zip(low.iter().zip(high.iter().rev())) {
        *p = *low * *c + *high * *s;
        *q = *high * *sc - *low * *ss;
    }
    isa.dct2(p, low);
    isa.dct2(q, high);
    x[0] = p[0] * SQRT_2;
    x[2 * h - 1] = q[0] * -SQRT_2;
    let sums = p[1..].iter().zip(q[1..].iter().rev());
    for (pair, (p, q)) in x[1..2 * h - 1].chunks_exact_mut(2).zip(sums) {
        pair[0] = *p - *q;
        pair[1] = *p + *q;
    }
}

/// Both `T_II(2)` and its transpose.
#[inline(always)]
fn dct2_2<L: Element>([a, b]: [L; 2]) -> [L; 2] {
    [a + b, a - b]
}

#[inline(always)]
fn dct4_2<L: Element>([a, b]: [L; 2]) -> [L; 2] {
    let [c, s, _, _] = rotations(1)[0];
    [(a * c + b * s) * SQRT_2, (b * c - a * s) * -SQRT_2]
}

#[inline(always)]
fn dct2_4<L: Element>([a, b, c, d]: [L; 4]) -> [L; 4] {
    let ([e0, e1], [o0, o1]) = (dct2_2([a + d, b + c]), dct4_2([a - d, b - c]));
    [e0, o0, e1, o1]
}

#[inline(always)]
fn dct3_4<L: Element>([e0, o0, e1, o1]: [L; 4]) -> [L; 4] {
    let ([u0, u1], [v0, v1]) = (dct2_2([e0, e1]), dct4_2([o0, o1]));
    [u0 + v0, u1 + v1, u1 - v1, u0 - v0]
}

/// `p_k` and `q_k` of `T_IV(N)`.
#[inline(always)]
fn turn<L: Element, const N: usize>(x: [L; N], k: usize) -> (L, L) {
    let [c, s, sc, ss] = rotations(N / 2)[k];
    (x[k] * c + x[N - 1 - k] * s, x[N - 1 - k] * sc - x[k] * ss)
}

#[inline(always)]
fn dct4_4<L: Element>(x: [L; 4]) -> [L; 4] {
    let ((p0, q0), (p1, q1)) = (turn(x, 0), turn(x, 1));
    let ([p0, p1], [q0, q1]) = (dct2_2([p0, p1]), dct2_2([q0, q1]));
    [p0 * SQRT_2, p1 - q1, p1 + q1, q0 * -SQRT_2]
}

#[inline(always)]
pub(super) fn dct2_8<L: Element>(x: [L; 8]) -> [L; 8] {
    let e = dct2_4([x[0] + x[7], x[1] + x[6], x[2] + x[5], x[3] + x[4]]);
    let o = dct4_4([x[0] - x[7], x[1] - x[6], x[2] - x[5], x[3] - x[4]]);
    [e[0], o[0], e[1], o[1], e[2], o[2], e[3], o[3]]
}

#[inline(always)]
pub(super) fn dct3_8<L: Element>(x: [L; 8]) -> [L; 8] {
    let u = dct3_4([x[0], x[2], x[4], x[6]]);
    let v = dct4_4([x[1], x[3], x[5], x[7]]);
    [u[0] + v[0], u[1] + v[1], u[2] + v[2], u[3] + v[3], u[3] - v[3], u[2] - v[2], u[1] - v[1], u[0] - v[0]]
}

#[inline(always)]
pub(super) fn dct4_8<L: Element>(x: [L; 8]) -> [L; 8] {
    let [(p0, q0), (p1, q1), (p2, q2), (p3, q3)] = [turn(x, 0), turn(x, 1), turn(x, 2), turn(x, 3)];
    let (p, q) = (dct2_4([p0, p1, p2, p3]), dct2_4([q0, q1, q2, q3]));
    [
        p[0] * SQRT_2,
        p[1] - q[3],
        p[1] + q[3],
        p[2] - q[2],
        p[2] + q[2],
        p[3] - q[1],
        p[3] + q[1],
        q[0] * -SQRT_2,
    ]
}
