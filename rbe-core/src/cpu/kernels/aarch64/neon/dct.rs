//! The transforms of segments alone: eight elements in two registers. Those in lanes are plain Rust.

use super::isa::{Neon, Proof};
use super::lanes::transpose;
use crate::cpu::kernels::generic::strip::{self, OCTET, Octets};
use crate::cpu::kernels::generic::tiles::{self, TileParts};
use crate::cpu::layout::Strip;
use std::arch::aarch64::*;

#[target_feature(enable = "neon")]
pub(super) fn dct2_of_strip(strip: &mut Strip, len: usize, count: usize) {
    strip::dct2(Neon::new(), strip, len, count);
}

#[target_feature(enable = "neon")]
pub(super) fn dct3_of_strip(strip: &mut Strip, len: usize, count: usize) {
    strip::dct3(Neon::new(), strip, len, count);
}

#[target_feature(enable = "neon")]
pub(super) fn add_tiles(sums: TileParts, out: &mut [f32]) {
    tiles::add_tiles(Neon::new(), sums, out);
}

/// Elements of a register.
const HALF: usize = OCTET / 2;

impl<P: Proof> Octets for Neon<P> {
    type Octet = [float32x4_t; 2];

    #[inline(always)]
    fn load(self, from: &[f32; OCTET]) -> [float32x4_t; 2] {
        // SAFETY: here and below, the token proves the instructions; four numbers of eight.
        unsafe { [vld1q_f32(from.as_ptr()), vld1q_f32(from[HALF..].as_ptr())] }
    }

    #[inline(always)]
    fn store(self, [low, high]: [float32x4_t; 2], to: &mut [f32; OCTET]) {
        // SAFETY: as above.
        unsafe {
            vst1q_f32(to.as_mut_ptr(), low);
            vst1q_f32(to[HALF..].as_mut_ptr(), high);
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [float32x4_t; 2] {
        // SAFETY: as above.
        unsafe { [vdupq_n_f32(x); 2] }
    }

    #[inline(always)]
    fn add(self, a: [float32x4_t; 2], b: [float32x4_t; 2]) -> [float32x4_t; 2] {
        // SAFETY: as above.
        unsafe { [vaddq_f32(a[0], b[0]), vaddq_f32(a[1], b[1])] }
    }

    #[inline(always)]
    fn sub(self, a: [float32x4_t; 2], b: [float32x4_t; 2]) -> [float32x4_t; 2] {
        // SAFETY: as above.
        unsafe { [vsubq_f32(a[0], b[0]), vsubq_f32(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul(self, a: [float32x4_t; 2], b: [float32x4_t; 2]) -> [float32x4_t; 2] {
        // SAFETY: as above.
        unsafe { [vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1])] }
    }

    #[inline(always)]
    fn reverse(self, [low, high]: [float32x4_t; 2]) -> [float32x4_t; 2] {
        // SAFETY: as above. Neighbours change places, then pairs.
        unsafe {
            let (low, high) = (vrev64q_f32(low), vrev64q_f32(high));
            [vextq_f32::<2>(high, high), vextq_f32::<2>(low, low)]
        }
    }

    #[inline(always)]
    fn interleave(self, a: [float32x4_t; 2], b: [float32x4_t; 2]) -> [[float32x4_t; 2]; 2] {
        // SAFETY: as above.
        unsafe {
            [
                [vzip1q_f32(a[0], b[0]), vzip2q_f32(a[0], b[0])],
                [vzip1q_f32(a[1], b[1]), vzip2q_f32(a[1], b[1])],
            ]
        }
    }

    #[inline(always)]
    fn part(self, [a, b]: [[float32x4_t; 2]; 2]) -> [[float32x4_t; 2]; 2] {
        // SAFETY: as above.
        unsafe {
            [
                [vuzp1q_f32(a[0], a[1]), vuzp1q_f32(b[0], b[1])],
                [vuzp2q_f32(a[0], a[1]), vuzp2q_f32(b[0], b[1])],
            ]
        }
    }

    /// Four squares of four.
    #[inline(always)]
    fn transpose(self, [a, b, c, d, e, f, g, h]: [[float32x4_t; 2]; OCTET]) -> [[float32x4_t; 2]; OCTET] {
        // SAFETY: as above.
        unsafe {
            let (above, below) = (transpose([a[0], b[0], c[0], d[0]]), transpose([e[0], f[0], g[0], h[0]]));
            let (right, far) = (transpose([a[1], b[1], c[1], d[1]]), transpose([e[1], f[1], g[1], h[1]]));
            [
                [above[0], below[0]],
                [above[1], below[1]],
                [above[2], below[2]],
                [above[3], below[3]],
                [right[0], far[0]],
                [right[1], far[1]],
                [right[2], far[2]],
                [right[3], far[3]],
            ]
        }
    }

    #[inline(always)]
    fn select(self, mask: &[u32; OCTET], a: [float32x4_t; 2], b: [float32x4_t; 2]) -> [float32x4_t; 2] {
        // SAFETY: as above; four masks of eight.
        unsafe {
            let (low, high) = (vld1q_u32(mask.as_ptr()), vld1q_u32(mask[HALF..].as_ptr()));
            [vbslq_f32(low, a[0], b[0]), vbslq_f32(high, a[1], b[1])]
        }
    }
}
