//! Products with panels of integers, an instruction for 32 of them.

use crate::cpu::kernels::generic::panels::{IntegerStrip, IntegerVectors};
use crate::cpu::kernels::x86_64::avx512_bw::isa::Avx512;
use crate::cpu::kernels::x86_64::avx512_bw::panels::add_all;
use crate::cpu::kernels::x86_64::frame::align_frame;
use crate::cpu::layout::RowSums;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt,avx512vnni")]
pub(super) fn integers(strip: IntegerStrip, x: IntegerVectors, sums: &mut [RowSums]) {
    align_frame();
    add_all(Avx512::with_vnni(), strip, x, sums);
}
