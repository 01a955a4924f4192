//! The codes of a tile as signed bytes: four rows by four columns in a register.

use super::isa::Neon;
use crate::cpu::kernels::generic::unpack as generic;
use crate::cpu::kernels::unroll::each;
use crate::cpu::layout::planes::{Line, QUADS};
use std::arch::aarch64::*;

/// [`generic::unpack`] of a quarter of a line. Codes of eight planes are less 128, so that all are signed bytes.
#[target_feature(enable = "neon")]
#[inline]
pub(in crate::cpu::kernels::aarch64) fn unpack<const PLANES: usize>(
    tile: &[Line; PLANES],
    quarter: usize,
) -> [int8x16_t; QUADS] {
    let codes = generic::unpack::<_, PLANES>(Neon::new(), tile, quarter);
    each!(GROUP_INDEX in [0 1 2 3 4 5 6 7] {
        let codes = codes[GROUP_INDEX];
        vreinterpretq_s8_u8(if PLANES == 8 { veorq_u8(codes, vdupq_n_u8(0x80)) } else { codes })
    })
}
