//! The transforms: the generic recursion.

use super::isa::Avx2;
use crate::cpu::kernels::generic::dct::{self, Recursive};
use crate::cpu::kernels::x86_64::frame::align_frame;
use crate::cpu::layout::Element;

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn dct2<L: Element>(x: &mut [L], scratch: &mut [L]) {
    align_frame();
    dct::dct2(Avx2::new(), x, scratch);
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn dct3<L: Element>(x: &mut [L], scratch: &mut [L]) {
    align_frame();
    dct::dct3(Avx2::new(), x, scratch);
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn dct4<L: Element>(x: &mut [L], scratch: &mut [L]) {
    align_frame();
    dct::dct4(Avx2::new(), x, scratch);
}

impl Recursive for Avx2 {
    #[inline(always)]
    fn dct2<L: Element>(self, x: &mut [L], scratch: &mut [L]) {
        // SAFETY: the token proves the instructions.
        unsafe { dct2(x, scratch) }
    }

    #[inline(always)]
    fn dct3<L: Element>(self, x: &mut [L], scratch: &mut [L]) {
        // SAFETY: as above.
        unsafe { dct3(x, scratch) }
    }

    #[inline(always)]
    fn dct4<L: Element>(self, x: &mut [L], scratch: &mut [L]) {
        // SAFETY: as above.
        unsafe { dct4(x, scratch) }
    }
}
