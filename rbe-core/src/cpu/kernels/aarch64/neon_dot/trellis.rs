//! The trellis: NEON's codes, multiplied with dot products.

use super::isa::NeonDot;
use crate::cpu::kernels::aarch64::neon::trellis::{add_dots, decode_bundle};
use crate::cpu::kernels::generic::trellis::{self as generic, Decode, DecodedStrips, MultiplyTile};
use crate::cpu::layout::planes::Line;
use crate::cpu::layout::trellis::{Bundle, PackedTrellis};
use crate::cpu::layout::{QuantizedRows, RowSums};
use std::ops::Range;

#[target_feature(enable = "neon,dotprod")]
pub(super) fn product(
    term: &PackedTrellis,
    i: usize,
    blocks: Range<usize>,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    generic::product(NeonDot::new(), term, i, blocks, x, sums);
}

impl Decode for NeonDot {
    #[inline(always)]
    fn decode_bundle(self, bundle: Bundle, codes: &mut [Line], stride: usize) {
        // SAFETY: the token proves the instructions.
        unsafe { decode_bundle(bundle, codes, stride) }
    }
}

impl MultiplyTile for NeonDot {
    #[inline(always)]
    fn multiply_tile(self, scale_groups: &DecodedStrips, tile: usize, sums: &mut [RowSums], stride: usize) {
        generic::multiply_tile(self, scale_groups, tile, sums, stride, |dots, bias, factor, sums| {
            // SAFETY: as above.
            unsafe { add_dots(dots, bias, factor, sums) }
        });
    }
}
