//! Sparse products from entry to entry: no instruction looks sixteen numbers up in as many registers as a block's inputs take.

use super::isa::Neon;
use crate::codec::Block;
use crate::cpu::kernels::generic::sparse as generic;
use crate::cpu::layout::sparse::PackedSparse;
use crate::cpu::layout::{Input, LaneInput, Lanes, Place, SortedEntries};

#[target_feature(enable = "neon")]
pub(super) fn product(term: &PackedSparse, block: Block, x: Input, acc: &mut [f32]) {
    generic::product::<Neon, false>(term, block, x, acc);
}

#[target_feature(enable = "neon")]
pub(super) fn transposed(term: &PackedSparse, block: Block, g: Input, acc: &mut [f32]) {
    generic::product::<Neon, true>(term, block, g, acc);
}

#[target_feature(enable = "neon")]
pub(super) fn spmm(entries: &SortedEntries, x: LaneInput, acc: &mut [Lanes], stride: usize) {
    generic::spmm::<Neon>(entries, x, acc, stride);
}

#[target_feature(enable = "neon")]
pub(super) fn sddmm(places: &[Place], a: LaneInput, b: LaneInput, sums: &mut [f32]) {
    generic::sddmm::<Neon>(places, a, b, sums);
}
