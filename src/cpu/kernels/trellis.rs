//! A trellis term's strips, decoded once for all vectors: as 8-bit codes for the integer products (see
//! [`walk`](super::walk)), as floats for the transposed product.

use super::{EDGE, RowDots};
use crate::codec::term::trellis::{COARSE_VALUES, Code, FINE_VALUES, STRIP};
use crate::cpu::activations::Activations;
use crate::cpu::strips::{BIAS, PERIOD, Packing, Strip, StripCodes};
use crate::cpu::tiles::{GROUP, GROUPS, Line, TILE_COLS, TILE_ROWS};
use std::ops::Range;

/// The coefficients of a strip, row by row.
pub(in crate::cpu) type StripRows = [[f32; STRIP]; EDGE];

/// Integer products of a strip with one digit, tile by tile.
pub(super) type StripDots = [RowDots; PERIOD];

/// Digits whose sums over a row tile are held while a block's strips are gone through: 1 KiB.
pub(super) const DIGITS_AT_ONCE: usize = 16;
/// Strips of the widest block.
pub(super) const MOST_STRIPS: usize = EDGE / STRIP;

/// Strips of a block, decoded, and some digits of the vectors that they are to be multiplied with.
pub(super) struct DecodedStrips<'a> {
    pub codes: &'a [StripCodes],
    pub digits: usize,
    /// Digits of each vector.
    pub per_vector: usize,
    /// Distance of two digits' values.
    pub stride: usize,
    /// What is taken away from a strip's product with a digit, and what multiplies the rest.
    pub biases: [[i32; DIGITS_AT_ONCE]; MOST_STRIPS],
    pub factors: [[f32; DIGITS_AT_ONCE]; MOST_STRIPS],
    values: [&'a [i8]; MOST_STRIPS],
}

impl<'a> DecodedStrips<'a> {
    /// `places` are the strips' first columns in a digit and their scales, `j` their block column; `bias` is in every
    /// code.
    pub(super) fn new(
        codes: &'a [StripCodes],
        places: &[(usize, f32); MOST_STRIPS],
        x: &'a Activations,
        j: usize,
        digits: Range<usize>,
        bias: i32,
    ) -> Self {
        assert!(digits.len() <= DIGITS_AT_ONCE);
        let mut strips = Self {
            codes,
            digits: digits.len(),
            per_vector: x.digits,
            stride: x.stride,
            biases: [[0; DIGITS_AT_ONCE]; MOST_STRIPS],
            factors: [[0.0; DIGITS_AT_ONCE]; MOST_STRIPS],
            values: [&[]; MOST_STRIPS],
        };
        for (n, (col, scale)) in places[..codes.len()].iter().enumerate() {
            strips.values[n] = &x.values[digits.start * x.stride + col..];
            for (at, digit) in digits.clone().enumerate() {
                strips.biases[n][at] = x.tile_sums[digit * x.tiles() + col / TILE_COLS] * bias;
                strips.factors[n][at] = scale * x.scales[digit * x.starts.len() + j];
            }
        }
        strips
    }

    /// The digits' values from a strip's first column on.
    pub(super) fn values(&self, strip: usize) -> &'a [i8] {
        self.values[strip]
    }
}

/// `dot_strip` of a level that decodes first.
pub(super) fn no_dot_strip(_: &Strip, _: &[i8], _: usize, _: usize, _: &mut [StripDots]) {
    unreachable!("up to FEW = 0 digits");
}

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
