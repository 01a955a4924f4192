//! Products with a trellis, multiplied as it is decoded for one digit or two.

use super::isa::Simd128;
use crate::codec::Block;
use crate::cpu::kernels::generic::fused::{self, Fused, dispatch_columns};
use crate::cpu::kernels::generic::trellis::{self as generic, Decode, DecodedStrips, MultiplyTile};
use crate::cpu::kernels::generic::windows;
use crate::cpu::kernels::unroll::dispatch_code;
use crate::cpu::layout::planes::Line;
use crate::cpu::layout::trellis::{Bundle, GroupCodes, PackedGroup, PackedTrellis};
use crate::cpu::layout::{Input, QuantizedRows, RowDots, RowSums};
use std::ops::Range;

pub(super) fn product(
    term: &PackedTrellis,
    i: usize,
    groups: Range<usize>,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    if !fused::fuses(term, i, x) {
        generic::product(Simd128, term, i, groups, x, sums);
        return;
    }
    fused::product(term, i, groups, x, |group| {
        dispatch_columns!(group.scale_group, add_group(group, sums));
    });
}

pub(super) fn transposed(term: &PackedTrellis, block: Block, g: Input, acc: &mut [f32]) {
    generic::transposed(Simd128, term, block, g, acc);
}

pub(super) fn group_codes(scale_group: &PackedGroup, codes: &mut GroupCodes) {
    generic::decode_group(Simd128, scale_group, codes);
}

/// As many rows in a pass as the registers of x86-64 hold the dot products of, where a module runs most.
fn add_group<const BITS: usize, const STATE: usize, const TILES: usize>(group: Fused, sums: &mut [RowSums]) {
    match group.x.slices() {
        1 => fused::add_group::<_, BITS, STATE, TILES, 8, 1>(Simd128, group, sums),
        _ => fused::add_group::<_, BITS, STATE, TILES, 4, 2>(Simd128, group, sums),
    }
}

impl Decode for Simd128 {
    #[inline(always)]
    fn decode_bundle(self, bundle: Bundle, codes: &mut [Line], stride: usize) {
        dispatch_code!(bundle.code, decode(bundle, codes, stride))
    }
}

fn decode<const BITS: usize, const STATE: usize>(bundle: Bundle, codes: &mut [Line], stride: usize) {
    windows::decode_bundle::<_, BITS, STATE>(Simd128, bundle, codes, stride);
}

impl MultiplyTile for Simd128 {
    const CODE_BIAS: i32 = generic::code_bias::<Self>();

    #[inline(always)]
    fn multiply_tile(self, scale_groups: &DecodedStrips, tile: usize, sums: &mut [RowSums], stride: usize) {
        generic::multiply_tile(self, scale_groups, tile, sums, stride, add_dots);
    }
}

/// Not inlined: see [`generic::add_dots`].
#[inline(never)]
fn add_dots(dots: &RowDots, bias: i32, factor: f32, sums: &mut RowSums) {
    generic::add_dots(dots, bias, factor, sums);
}
