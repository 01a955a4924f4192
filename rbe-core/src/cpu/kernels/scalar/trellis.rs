//! The trellis in plain Rust.

use super::isa::Scalar;
use crate::codec::Block;
use crate::cpu::kernels::generic::decode::decode_bundle;
use crate::cpu::kernels::generic::trellis::{self as generic, Decode, DecodedStrips, MultiplyTile};
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
    generic::product(Scalar, term, i, groups, x, sums);
}

pub(super) fn transposed(term: &PackedTrellis, block: Block, g: Input, acc: &mut [f32]) {
    generic::transposed(Scalar, term, block, g, acc);
}

pub(super) fn group_codes(scale_group: &PackedGroup, codes: &mut GroupCodes) {
    generic::decode_group(Scalar, scale_group, codes);
}

impl Decode for Scalar {
    fn decode_bundle(self, bundle: Bundle, codes: &mut [Line], stride: usize) {
        decode_bundle(bundle, codes, stride);
    }
}

impl MultiplyTile for Scalar {
    const CODE_BIAS: i32 = generic::code_bias::<Self>();

    fn multiply_tile(self, scale_groups: &DecodedStrips, tile: usize, sums: &mut [RowSums], stride: usize) {
        generic::multiply_tile(self, scale_groups, tile, sums, stride, add_dots);
    }
}

/// Not inlined: see [`generic::add_dots`].
#[inline(never)]
fn add_dots(dots: &RowDots, bias: i32, factor: f32, sums: &mut RowSums) {
    generic::add_dots(dots, bias, factor, sums);
}
