//! The trellis in plain Rust.

use super::Scalar;
use crate::cpu::kernels::generic::decode::decode_bundle;
use crate::cpu::kernels::generic::trellis::{Decode, DecodedStrips, add_dots, multiply_tile};
use crate::cpu::layout::RowSums;
use crate::cpu::layout::planes::Line;
use crate::cpu::layout::trellis::Bundle;

impl Decode for Scalar {
    fn decode_bundle(self, bundle: Bundle, codes: &mut [Line], stride: usize) {
        decode_bundle(bundle, codes, stride);
    }

    fn multiply_tile(self, strips: &DecodedStrips, tile: usize, sums: &mut [RowSums], stride: usize) {
        /// Not inlined.
        #[inline(never)]
        fn add(dots: &crate::cpu::layout::RowDots, bias: i32, factor: f32, sums: &mut RowSums) {
            add_dots(dots, bias, factor, sums);
        }
        multiply_tile(self, strips, tile, sums, stride, add);
    }
}
