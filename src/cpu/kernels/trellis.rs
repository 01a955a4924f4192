//! A trellis term's strips, decoded once for all vectors: as 8-bit codes for the integer products (see
//! [`walk`](super::walk)), as floats for the transposed product.

use super::{EDGE, RowDots};
use crate::codec::term::trellis::{COARSE_VALUES, Code, FINE_VALUES, STRIP};
use crate::cpu::strips::{BIAS, PERIOD, Packing, Strip, StripCodes};
use crate::cpu::tiles::{GROUP, GROUPS, Line, TILE_ROWS};

/// The coefficients of a strip, row by row.
pub(in crate::cpu) type StripRows = [[f32; STRIP]; EDGE];

/// Integer products of a strip with one digit, tile by tile.
pub(super) type StripDots = [RowDots; PERIOD];

/// `COARSE_VALUES + BIAS`, the codes of all indices.
pub(super) static COARSE_CODES: [Line; 2] = biased(&COARSE_VALUES);
/// `FINE_VALUES + BIAS` of the indices without a sign.
pub(super) static FINE_CODES: [Line; 2] = biased(&FINE_VALUES);

const fn biased(values: &[i8]) -> [Line; 2] {
    let mut lines = [Line([0; 64]); 2];
    let mut n = 0;
    while n < 128 {
        lines[n / 64].0[n % 64] = (values[n] as i32 + BIAS) as u8;
        n += 1;
    }
    lines
}

/// The codes of one register's groups: `codes[s * stride]` has row `s` of each lane's period.
#[inline(always)]
pub(super) fn decode_bundle(
    (ac, bd): (&[Line], &[Line]),
    code: Code,
    packing: Packing,
    codes: &mut [Line],
    stride: usize,
) {
    let bits = usize::from(code.bits());
    let word = |lines: &[Line], lane: usize, half: usize, word: usize| {
        let (line, lane) =
            if word == bits && packing.is_full() { (0, packing.next_lane(lane)) } else { (word, lane) };
        let byte = 4 * lane + 2 * half;
        u32::from(u16::from_le_bytes([lines[line].0[byte], lines[line].0[byte + 1]]))
    };
    for s in 0..PERIOD {
        let (first, shift) = (bits * s / 16, bits * s % 16);
        for (n, byte) in codes[s * stride].0.iter_mut().enumerate() {
            let (lane, half, lines) = (n / GROUP, n % GROUP / 2, if n % 2 == 0 { ac } else { bd });
            let two = word(lines, lane, half, first) | word(lines, lane, half, first + 1) << 16;
            *byte = (i32::from(code.value((two >> shift) as u16)) + BIAS) as u8;
        }
    }
}

/// Rows of a register's groups that share its lanes, to the lines of their groups.
#[inline(always)]
pub(super) fn spread(bundle: &[Line; PERIOD], groups: usize, first_group: usize, codes: &mut StripCodes) {
    let bytes = size_of::<Line>() / groups;
    for (s, line) in bundle.iter().enumerate() {
        for (group, piece) in line.0.chunks_exact(bytes).enumerate() {
            let line = &mut codes[s / groups * GROUPS + first_group + group];
            line.0[s % groups * bytes..][..bytes].copy_from_slice(piece);
        }
    }
}

/// A strip's coefficients from its codes.
#[inline(always)]
pub(super) fn rows_of_codes(strip: &Strip, codes: &StripCodes, rows: &mut StripRows) {
    for tile in 0..strip.packing.tiles() {
        for lane in 0..TILE_ROWS {
            let row = &mut rows[strip.packing.row(tile, lane)];
            for (group, row) in row.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                let codes = &codes[tile * GROUPS + group].0[lane * GROUP..][..GROUP];
                for (value, code) in row.iter_mut().zip(codes) {
                    *value = (i32::from(*code) - BIAS) as f32 * strip.scale;
                }
            }
        }
    }
}
