//! The transforms: the generic recursion.

use super::isa::Avx512;
use crate::cpu::kernels::generic::dct::{self, Recursive};
use crate::cpu::kernels::x86_64::frame::align_frame;
use crate::cpu::layout::Element;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
pub(super) fn dct2<L: Element>(x: &mut [L], scratch: &mut [L]) {
    align_frame();
    dct::dct2(Avx512::new(), x, scratch);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
pub(super) fn dct3<L: Element>(x: &mut [L], scratch: &mut [L]) {
    align_frame();
    dct::dct3(Avx512::new(), x, scratch);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
fn dct4<L: Element>(x: &mut [L], scratch: &mut [L]) {
    align_frame();
    dct::dct4(Avx512::new(), x, scratch);
}

impl Recursive for Avx512 {
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
