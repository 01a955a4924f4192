//! The codes of planes in registers.

use crate::cpu::kernels::isa::Bytes;
use crate::cpu::kernels::unroll::each;
use crate::cpu::layout::planes::{GROUPS, Line};

/// [`planes::unpack`](crate::cpu::layout::planes::unpack) in registers, of one part of a tile's lines.
#[inline(always)]
pub(in crate::cpu) fn unpack<I: Bytes, const PLANES: usize>(
    isa: I,
    tile: &[Line; PLANES],
    part: usize,
) -> [I::Register; GROUPS] {
    if PLANES == 8 {
        return each!(GROUP_INDEX in [0 1 2 3 4 5 6 7] isa.load(&tile[GROUP_INDEX % PLANES], part));
    }
    let mut codes = None;
    let mut first = 0;
    if PLANES & 4 != 0 {
        codes = Some(add_bits::<I, 4>(isa, &tile[first..], part, codes));
        first += 4;
    }
    if PLANES & 2 != 0 {
        codes = Some(add_bits::<I, 2>(isa, &tile[first..], part, codes));
        first += 2;
    }
    if PLANES & 1 != 0 {
        codes = Some(add_bits::<I, 1>(isa, &tile[first..], part, codes));
    }
    codes.unwrap_or([isa.splat(0); GROUPS])
}

/// `above << BITS | field` for every column group.
#[inline(always)]
fn add_bits<I: Bytes, const BITS: i32>(
    isa: I,
    lines: &[Line],
    part: usize,
    above: Option<[I::Register; GROUPS]>,
) -> [I::Register; GROUPS] {
    let bits = BITS as usize;
    each!(GROUP_INDEX in [0 1 2 3 4 5 6 7] {
        let line = isa.load(&lines[GROUP_INDEX % bits], part);
        let field = isa.shift_right(line, GROUP_INDEX / bits * bits);
        match above {
            Some(above) => isa.insert_below::<BITS>(above[GROUP_INDEX], field),
            None => isa.and(field, isa.splat(((1u32 << BITS) - 1) as u8)),
        }
    })
}
