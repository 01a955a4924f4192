//! The transforms: the generic recursion, and arrays of eight for segments alone.

use super::isa::Scalar;
use crate::cpu::kernels::generic::dct::{self, Recursive};
use crate::cpu::kernels::generic::strip::{self, OCTET, Octets};
use crate::cpu::kernels::generic::tiles::{self, TileParts};
use crate::cpu::layout::{Element, Strip};

pub(super) fn dct2<L: Element>(x: &mut [L], scratch: &mut [L]) {
    dct::dct2(Scalar, x, scratch);
}

pub(super) fn dct3<L: Element>(x: &mut [L], scratch: &mut [L]) {
    dct::dct3(Scalar, x, scratch);
}

fn dct4<L: Element>(x: &mut [L], scratch: &mut [L]) {
    dct::dct4(Scalar, x, scratch);
}

pub(super) fn dct2_of_strip(strip: &mut Strip, len: usize, count: usize) {
    strip::dct2(Scalar, strip, len, count);
}

pub(super) fn dct3_of_strip(strip: &mut Strip, len: usize, count: usize) {
    strip::dct3(Scalar, strip, len, count);
}

pub(super) fn add_tiles(sums: TileParts, out: &mut [f32]) {
    tiles::add_tiles(Scalar, sums, out);
}

impl Recursive for Scalar {
    #[inline(always)]
    fn dct2<L: Element>(self, x: &mut [L], scratch: &mut [L]) {
        dct2(x, scratch);
    }

    #[inline(always)]
    fn dct3<L: Element>(self, x: &mut [L], scratch: &mut [L]) {
        dct3(x, scratch);
    }

    #[inline(always)]
    fn dct4<L: Element>(self, x: &mut [L], scratch: &mut [L]) {
        dct4(x, scratch);
    }
}

impl Octets for Scalar {
    type Octet = [f32; OCTET];

    #[inline(always)]
    fn load(self, from: &[f32; OCTET]) -> [f32; OCTET] {
        *from
    }

    #[inline(always)]
    fn store(self, x: [f32; OCTET], to: &mut [f32; OCTET]) {
        *to = x;
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; OCTET] {
        [x; OCTET]
    }

    #[inline(always)]
    fn add(self, a: [f32; OCTET], b: [f32; OCTET]) -> [f32; OCTET] {
        std::array::from_fn(|n| a[n] + b[n])
    }

    #[inline(always)]
    fn sub(self, a: [f32; OCTET], b: [f32; OCTET]) -> [f32; OCTET] {
        std::array::from_fn(|n| a[n] - b[n])
    }

    #[inline(always)]
    fn mul(self, a: [f32; OCTET], b: [f32; OCTET]) -> [f32; OCTET] {
        std::array::from_fn(|n| a[n] * b[n])
    }

    #[inline(always)]
    fn reverse(self, x: [f32; OCTET]) -> [f32; OCTET] {
        std::array::from_fn(|n| x[OCTET - 1 - n])
    }

    #[inline(always)]
    fn interleave(self, a: [f32; OCTET], b: [f32; OCTET]) -> [[f32; OCTET]; 2] {
        [0, OCTET / 2].map(|first| {
            std::array::from_fn(|n| if n.is_multiple_of(2) { a[first + n / 2] } else { b[first + n / 2] })
        })
    }

    #[inline(always)]
    fn part(self, x: [[f32; OCTET]; 2]) -> [[f32; OCTET]; 2] {
        let x = x.as_flattened();
        [0, 1].map(|odd| std::array::from_fn(|n| x[2 * n + odd]))
    }

    #[inline(always)]
    fn transpose(self, rows: [[f32; OCTET]; OCTET]) -> [[f32; OCTET]; OCTET] {
        std::array::from_fn(|col| std::array::from_fn(|row| rows[row][col]))
    }

    #[inline(always)]
    fn select(self, mask: &[u32; OCTET], a: [f32; OCTET], b: [f32; OCTET]) -> [f32; OCTET] {
        std::array::from_fn(|n| if mask[n] == 0 { b[n] } else { a[n] })
    }
}
