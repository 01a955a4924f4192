//! The transforms: the generic recursion.

use super::isa::Scalar;
use crate::cpu::kernels::generic::dct::{self, Recursive};
use crate::cpu::layout::Element;

pub(super) fn dct2<L: Element>(x: &mut [L], scratch: &mut [L]) {
    dct::dct2(Scalar, x, scratch);
}

pub(super) fn dct3<L: Element>(x: &mut [L], scratch: &mut [L]) {
    dct::dct3(Scalar, x, scratch);
}

fn dct4<L: Element>(x: &mut [L], scratch: &mut [L]) {
    dct::dct4(Scalar, x, scratch);
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
