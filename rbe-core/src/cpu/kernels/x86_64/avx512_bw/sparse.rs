//! Sparse products of many vectors in lanes: the generic loops.

use super::isa::Avx512;
use crate::cpu::kernels::generic::sparse as generic;
use crate::cpu::layout::{LaneInput, Lanes, Place, SortedEntries};

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
pub(super) fn spmm(entries: &SortedEntries, x: LaneInput, acc: &mut [Lanes], stride: usize) {
    generic::spmm::<Avx512>(entries, x, acc, stride);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
pub(super) fn sddmm(places: &[Place], a: LaneInput, b: LaneInput, sums: &mut [f32]) {
    generic::sddmm::<Avx512>(places, a, b, sums);
}
