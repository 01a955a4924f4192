//! The codes of a tile in registers: four rows by four columns in each.

use super::super::unroll::each;
use crate::cpu::layout::planes::{Line, QUADS};
use std::arch::aarch64::*;

/// [`planes::unpack`](crate::cpu::layout::planes::unpack) of the four rows of a quarter of a line. Codes of eight planes are less
/// 128, so that all are signed bytes.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn unpack<const PLANES: usize>(tile: &[Line; PLANES], quarter: usize) -> [int8x16_t; QUADS] {
    if PLANES == 8 {
        return each!(GROUP_INDEX in [0 1 2 3 4 5 6 7] {
            let codes = load(&tile[GROUP_INDEX % PLANES], quarter);
            vreinterpretq_s8_u8(veorq_u8(codes, vdupq_n_u8(0x80)))
        });
    }
    let mut codes = None;
    let mut first = 0;
    if PLANES & 4 != 0 {
        codes = Some(add_part::<4>(&tile[first..], quarter, codes));
        first += 4;
    }
    if PLANES & 2 != 0 {
        codes = Some(add_part::<2>(&tile[first..], quarter, codes));
        first += 2;
    }
    if PLANES & 1 != 0 {
        codes = Some(add_part::<1>(&tile[first..], quarter, codes));
    }
    let codes = codes.unwrap_or([vdupq_n_u8(0); QUADS]);
    each!(GROUP_INDEX in [0 1 2 3 4 5 6 7] vreinterpretq_s8_u8(codes[GROUP_INDEX]))
}

/// `above << BITS | field` for every column group of a part.
#[target_feature(enable = "neon")]
#[inline]
fn add_part<const BITS: i32>(
    part: &[Line],
    quarter: usize,
    above: Option<[uint8x16_t; QUADS]>,
) -> [uint8x16_t; QUADS] {
    let bits = BITS as usize;
    each!(GROUP_INDEX in [0 1 2 3 4 5 6 7] {
        let field = shift_right(load(&part[GROUP_INDEX % bits], quarter), GROUP_INDEX / bits * bits);
        match above {
            // Inserted above the field, they take the place of its neighbours.
            Some(above) => vsliq_n_u8::<BITS>(field, above[GROUP_INDEX]),
            None => vandq_u8(field, vdupq_n_u8((1 << BITS) - 1)),
        }
    })
}

/// `bytes >> shift`; the optimiser knows the shift.
#[target_feature(enable = "neon")]
#[inline]
fn shift_right(bytes: uint8x16_t, shift: usize) -> uint8x16_t {
    match shift {
        1 => vshrq_n_u8::<1>(bytes),
        2 => vshrq_n_u8::<2>(bytes),
        3 => vshrq_n_u8::<3>(bytes),
        4 => vshrq_n_u8::<4>(bytes),
        5 => vshrq_n_u8::<5>(bytes),
        6 => vshrq_n_u8::<6>(bytes),
        7 => vshrq_n_u8::<7>(bytes),
        _ => bytes,
    }
}

#[target_feature(enable = "neon")]
#[inline]
fn load(line: &Line, quarter: usize) -> uint8x16_t {
    // SAFETY: a quarter of a line is sixteen bytes.
    unsafe { vld1q_u8(line.0[16 * quarter..][..16].as_ptr()) }
}
