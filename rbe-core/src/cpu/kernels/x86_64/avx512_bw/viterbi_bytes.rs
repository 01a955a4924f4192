//! The step of AVX2 with twice as many registers. (Wider ones need a table twice as large, which takes the time that they save.)

use crate::cpu::kernels::generic::viterbi_bytes::{self as generic, ByteRow};
use crate::cpu::kernels::x86_64::avx2::isa::Avx2;
use crate::cpu::kernels::x86_64::frame::align_frame;
use crate::cpu::layout::planes::Line;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
pub(super) fn step<const W: usize>(row: ByteRow, table: &mut [Line], next: &mut [u8]) -> u8 {
    align_frame();
    generic::step::<_, W>(Avx2::new(), row, table, next)
}
