//! The trellis term: every coefficient at `k` = 1 to 4 bits, each bit shared by many coefficients.
//!
//! A column of a block with `h` rows is a cycle of `h k` bits, `k` of its own to each row. The **state** of a row
//! are the `L` bits that begin with its own and go on through the rows that follow, from the last row on to the
//! first again ("tail-biting": no bits are spent on a beginning). The state alone gives the value:
//!
//! ```text
//!     state(r)    = b(r) + 2^k b(r+1) + 4^k b(r+2) + ..   mod 2^L        rows modulo h
//!     coefficient = scale * values[floor(N frac(M state / 2^L))]           N values
//! ```
//!
//! So each `b` moves `L / k` coefficients, and a search over all bits (Viterbi's) finds sequences that lie closer
//! to the wanted values than any quantiser of single coefficients: it is trellis-coded quantisation with the
//! bit-shift trellis of QTIP (arXiv 2406.11235). The code is another: `frac(M state / 2^L)` is linear in the state
//! modulo 1, a lattice, in which the `2^k` values that a row's own bits choose from are spread evenly whatever the
//! other bits are, if `M / 2^L` lies near an odd multiple of `2^-k`; [`COARSE_VALUES`] and [`FINE_VALUES`] bend it to a
//! Gaussian.
//!
//! Measured relative error of a unit Gaussian, columns of 256 rows, scales counted (bits are `k + 0.003`):
//!
//! | | k = 1 | 2 | 3 | 4 |
//! |---|---|---|---|---|
//! | no code can do better | 0.500 | 0.250 | 0.125 | 0.0625 |
//! | L = 16 | 0.527 | 0.263 | 0.133 | 0.0677 |
//! | L = 12 | 0.530 | 0.267 | 0.136 | 0.0698 |
//!
//! A processor with AVX-512 VBMI takes 8 instructions for 64 values: cut 64 states out of the bits (two shifts), two 16-bit
//! multiplications by `M 2^(16-L)`, which drop the bits beyond the state, three that bring the indices together, one
//! for a table of 128 bytes; two more for the sign from 3 bits on. `L` costs the decoder nothing.
//!
//! Columns are grouped in **strips** of 32 (a block's last may be narrower) that share `k` and a scale; `k = 0`
//! makes a strip zero.

use crate::codec::layout::{Block, Layout};
use crate::codec::payload::{Reader, Writer};
use crate::error::{Error, Result};
use half::f16;
use std::ops::{Range, RangeInclusive};

/// The most bits a coefficient can have.
pub const MAX_BITS: u8 = 4;
/// The most bits for which 128 values do.
pub const COARSE_BITS: u8 = 2;
/// The bits a state may have.
pub const STATE_BITS: RangeInclusive<u8> = 12..=16;
/// Columns that share `k` and a scale. Every block edge is a multiple, so no strip crosses blocks.
pub const STRIP: usize = 32;

/// The values of up to [`COARSE_BITS`] bits, in the order of the index: `COARSE_VALUES[64 + j] = round(127 g(q(j)) / g(q(63)))`
/// with `q(j)` the Gaussian's quantile at `(j + 129/2) / 128` and `g(q) = q + q^3 / 64`, and
/// `COARSE_VALUES[63 - j] = -COARSE_VALUES[64 + j]`.
///
/// Equal steps of the index are equal shares of a Gaussian whose tail is drawn out a little.
pub static COARSE_VALUES: [i8; 128] = {
    let mut values = [0; 128];
    let mut j = 0;
    while j < 64 {
        values[64 + j] = COARSE_MAGNITUDES[j];
        values[63 - j] = -COARSE_MAGNITUDES[j];
        j += 1;
    }
    values
};

/// The values of more bits, which need more of them and farther out: the index's top bit is the sign.
/// `FINE_VALUES[j] = round(127 g(q(j)) / g(q(127)))` with `q(j)` at `(j + 257/2) / 256` and `g(q) = q + q^3 / 32`, and
/// `FINE_VALUES[128 + j] = -FINE_VALUES[j]`.
pub static FINE_VALUES: [i8; 256] = {
    let mut values = [0; 256];
    let mut j = 0;
    while j < 128 {
        values[j] = FINE_MAGNITUDES[j];
        values[128 + j] = -FINE_MAGNITUDES[j];
        j += 1;
    }
    values
};

#[rustfmt::skip]
const COARSE_MAGNITUDES: [i8; 64] = [
    0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 11, 12, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26,
    27, 28, 29, 30, 31, 32, 33, 34, 35, 37, 38, 39, 41, 42, 43, 45, 46, 48, 50, 51, 53, 55, 57, 59, 62, 64,
    67, 70, 73, 77, 82, 87, 95, 105, 127,
];

#[rustfmt::skip]
const FINE_MAGNITUDES: [i8; 128] = [
    0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6, 7, 7, 7, 8, 8, 8, 9, 9, 10, 10, 10, 11, 11, 11,
    12, 12, 12, 13, 13, 14, 14, 14, 15, 15, 15, 16, 16, 17, 17, 17, 18, 18, 19, 19, 19, 20, 20, 21, 21, 21,
    22, 22, 23, 23, 24, 24, 25, 25, 25, 26, 26, 27, 27, 28, 28, 29, 29, 30, 30, 31, 31, 32, 33, 33, 34, 34,
    35, 35, 36, 37, 37, 38, 39, 39, 40, 41, 41, 42, 43, 44, 45, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 56,
    57, 58, 60, 61, 63, 65, 66, 69, 71, 73, 76, 80, 84, 89, 95, 106, 127,
];

/// `M` of each `k` at `L = 16`, found by trying all odd numbers at L = 12 and refining the best.
const MULTIPLIERS: [u16; MAX_BITS as usize] = [0x79dd, 0xbd99, 0x606b, 0xf073];

/// The map from states to values of one `k` and `L`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    bits: u8,
    state_bits: u8,
}

impl Code {
    /// The code of `bits` (`k`, 1 to [`MAX_BITS`]) a row and `state_bits` (`L`, one of [`STATE_BITS`]).
    pub fn new(bits: u8, state_bits: u8) -> Self {
        assert!((1..=MAX_BITS).contains(&bits) && STATE_BITS.contains(&state_bits));
        Self { bits, state_bits }
    }

    /// Bits of a row.
    pub fn bits(self) -> u8 {
        self.bits
    }

    /// Bits of a state.
    pub fn state_bits(self) -> u8 {
        self.state_bits
    }

    /// `M 2^(16-L)`: the product's low 16 bits are `2^16 frac(M state / 2^L)`, whatever lies above the state.
    ///
    /// `M` is the first `L` bits of the number for `L = 16`, the last of them set.
    pub fn multiplier(self) -> u16 {
        let unit = 1 << (16 - self.state_bits);
        MULTIPLIERS[usize::from(self.bits - 1)] & !(unit - 1) | unit
    }

    /// The values of all indices.
    pub fn values(self) -> &'static [i8] {
        if self.is_fine() { &FINE_VALUES } else { &COARSE_VALUES }
    }

    /// Whether the values are [`FINE_VALUES`].
    pub(crate) fn is_fine(self) -> bool {
        self.bits > COARSE_BITS
    }

    /// The value of a state; bits above the state do not matter.
    pub fn value(self, state: u16) -> i8 {
        let values = self.values();
        let product = usize::from(state.wrapping_mul(self.multiplier()));
        values[(product * values.len()) >> 16]
    }

    /// Sixteen bits from those of row `row` on (rows count around and around); the state is the first `L` of them.
    pub fn state(self, codes: &[u8], row: usize) -> u16 {
        let ahead = 16usize.div_ceil(usize::from(self.bits));
        (row..row + ahead).rev().fold(0, |state, row| self.push(state, codes[row % codes.len()]))
    }

    /// The state of a row from that of the next and its own bits.
    fn push(self, state: u16, code: u8) -> u16 {
        state << self.bits | u16::from(code)
    }

    /// The values of a whole column from each row's own bits.
    pub fn decode(self, codes: &[u8], values: &mut [i8]) {
        let mut state = self.state(codes, 0);
        for (code, value) in codes.iter().zip(values).rev() {
            state = self.push(state, *code);
            *value = self.value(state);
        }
    }
}

/// A column's cycle of bits.
#[derive(Clone, Copy, Debug)]
pub struct Column<'a> {
    code: Code,
    rows: usize,
    bytes: &'a [u8],
}

impl Column<'_> {
    /// The bits' code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The cycle, first row in the lowest bits of the first byte.
    pub fn bytes(&self) -> &[u8] {
        self.bytes
    }

    /// Sixteen bits from row `row`'s own on; the state is the first `L` of them.
    pub fn state(&self, row: usize) -> u16 {
        self.bits_from(row * usize::from(self.code.bits))
    }

    /// Sixteen bits from bit `at` on; after the cycle's last bit it begins again.
    pub(crate) fn bits_from(&self, at: usize) -> u16 {
        let cycle = self.rows * usize::from(self.code.bits);
        let (mut state, mut have) = (0u32, 0);
        let mut at = at % cycle;
        while have < 16 {
            let byte = |n: usize| u32::from(self.bytes.get(at / 8 + n).copied().unwrap_or(0)) << (8 * n);
            let bits = (byte(0) | byte(1) | byte(2)) >> (at % 8);
            let take = (cycle - at).min(16 - have);
            state |= (bits & ((1 << take) - 1)) << have;
            have += take;
            at = 0;
        }
        state as u16
    }

    /// The value of a row, to be multiplied by the strip's scale.
    pub fn value(&self, row: usize) -> i8 {
        self.code.value(self.state(row))
    }
}

/// One strip on its way into [`Trellis::pack`].
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedStrip {
    /// Bits of a coefficient, up to [`MAX_BITS`]; 0 makes every coefficient zero.
    pub bits: u8,
    /// What multiplies the integer values, in units.
    pub scale: f16,
    /// Each row's own bits, column after column; empty without bits.
    pub codes: Vec<u8>,
}

/// The columns of every strip.
#[derive(Clone, Debug, PartialEq)]
pub struct Trellis {
    layout: Layout,
    state_bits: u8,
    /// All scales are multiplied by this power of two.
    unit: f32,
    /// Bits of a coefficient of each strip.
    bits: Vec<u8>,
    scales: Vec<f16>,
    /// Where each strip's columns begin in `data`; one more than there are strips.
    starts: Vec<usize>,
    /// Columns one after another, each in whole bytes.
    data: Vec<u8>,
}

/// The strips of a layout, block row by block row and in each from left to right.
pub fn strips(layout: Layout) -> impl Iterator<Item = Block> {
    let per_row = layout.cols().div_ceil(STRIP);
    (0..layout.block_rows()).flat_map(move |i| {
        let rows = layout.row_range(i);
        (0..per_row).map(move |n| Block {
            index: i * per_row + n,
            row: rows.start,
            col: n * STRIP,
            height: rows.len(),
            width: STRIP.min(layout.cols() - n * STRIP),
        })
    })
}

/// Bytes of a column.
pub(crate) fn column_bytes(rows: usize, bits: u8) -> usize {
    (rows * usize::from(bits)).div_ceil(8)
}

impl Trellis {
    /// Packs quantised strips in the order of [`strips`]. `unit` multiplies every scale.
    pub fn pack(layout: Layout, state_bits: u8, unit: f32, quantized: &[QuantizedStrip]) -> Self {
        assert!(STATE_BITS.contains(&state_bits));
        let bits: Vec<u8> = quantized.iter().map(|strip| strip.bits).collect();
        let scales = quantized.iter().map(|strip| strip.scale).collect();
        let starts = starts(layout, &bits);
        assert_eq!(starts.len(), quantized.len() + 1);
        let mut data = vec![0; starts[quantized.len()]];
        for (strip, source) in strips(layout).zip(quantized) {
            assert!(source.bits <= MAX_BITS);
            if source.bits == 0 {
                continue;
            }
            assert_eq!(source.codes.len(), strip.len());
            let columns = data[starts[strip.index]..].chunks_mut(column_bytes(strip.height, source.bits));
            for (codes, bytes) in source.codes.chunks_exact(strip.height).zip(columns) {
                for (row, code) in codes.iter().enumerate() {
                    assert!(*code < 1 << source.bits);
                    let at = row * usize::from(source.bits);
                    let [low, high] = (u16::from(*code) << (at % 8)).to_le_bytes();
                    bytes[at / 8] |= low;
                    if high != 0 {
                        bytes[at / 8 + 1] |= high;
                    }
                }
            }
        }
        Self { layout, state_bits, unit, bits, scales, starts, data }
    }

    /// The layout of the matrix.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Bits of a state.
    pub fn state_bits(&self) -> u8 {
        self.state_bits
    }

    /// What multiplies every scale.
    pub(crate) fn unit(&self) -> f32 {
        self.unit
    }

    /// Bits and scale of every strip, in the order of [`strips`].
    pub(crate) fn strip_scales(&self) -> impl Iterator<Item = (u8, f16)> {
        self.bits.iter().copied().zip(self.scales.iter().copied())
    }

    /// What multiplies the values of each strip, in the order of [`strips`].
    pub fn scales(&self) -> Vec<f32> {
        self.scales.iter().map(|scale| scale.to_f32() * self.unit).collect()
    }

    /// The same columns with other scales, one for each strip.
    ///
    /// # Panics
    /// When there are not as many as strips.
    pub fn with_scales(&self, scales: &[f32]) -> Self {
        assert_eq!(scales.len(), self.scales.len());
        let unit = crate::codec::term::unit_for(scales.iter().copied(), 7);
        let scales = scales.iter().map(|scale| f16::from_f32(scale / unit)).collect();
        Self { unit, scales, ..self.clone() }
    }

    /// The strip that holds column `col` of a block.
    fn strip_at(&self, block: Block, col: usize) -> usize {
        let per_row = self.layout.cols().div_ceil(STRIP);
        block.row / self.layout.block() * per_row + (block.col + col) / STRIP
    }

    /// A column of a block and the scale of its values; `None` where all are zero.
    pub fn column(&self, block: Block, col: usize) -> Option<(Column<'_>, f32)> {
        let strip = self.strip_at(block, col);
        let bits = self.bits[strip];
        if bits == 0 {
            return None;
        }
        let len = column_bytes(block.height, bits);
        let start = self.starts[strip] + col % STRIP * len;
        let code = Code::new(bits, self.state_bits);
        let column = Column { code, rows: block.height, bytes: &self.data[start..start + len] };
        Some((column, self.scales[strip].to_f32() * self.unit))
    }

    /// Adds rows of a block to `out` (`rows.len() x width`).
    pub fn add_rows(&self, block: Block, rows: Range<usize>, out: &mut [f32]) {
        for col in 0..block.width {
            let Some((column, scale)) = self.column(block, col) else { continue };
            for (row, out) in rows.clone().zip(out.chunks_exact_mut(block.width)) {
                out[col] += scale * f32::from(column.value(row));
            }
        }
    }

    /// Bytes in a payload.
    pub fn size_in_bytes(&self) -> usize {
        1 + 4 + self.bits.len() + size_of_val(&self.scales[..]) + self.data.len()
    }

    pub(super) fn summary(&self) -> String {
        let (Some(min), Some(max)) = (self.bits.iter().min(), self.bits.iter().max()) else {
            return "trellis".to_owned();
        };
        let states = self.state_bits;
        if min == max {
            format!("trellis {min}, states {states}")
        } else {
            format!("trellis {min}..{max}, states {states}")
        }
    }

    pub(super) fn write(&self, writer: &mut Writer) {
        writer.u8(self.state_bits);
        writer.f32(self.unit);
        writer.bytes(&self.bits);
        writer.f16s(&self.scales);
        writer.bytes(&self.data);
    }

    pub(super) fn read(reader: &mut Reader, layout: Layout) -> Result<Self> {
        let state_bits = reader.u8("trellis state bits")?;
        if !STATE_BITS.contains(&state_bits) {
            return Err(Error::payload(format!("trellis states of {state_bits} bits; 12 to 16 are allowed")));
        }
        let unit = reader.unit("trellis unit")?;
        let count = layout.block_rows() * layout.cols().div_ceil(STRIP);
        let bits = reader.take(count, "trellis bits")?.to_vec();
        if let Some(bits) = bits.iter().find(|bits| **bits > MAX_BITS) {
            return Err(Error::payload(format!("a trellis of {bits} bits; at most {MAX_BITS} are allowed")));
        }
        let scales = reader.scales(count, "trellis scales")?;
        let starts = starts(layout, &bits);
        let data = reader.take(starts[count], "trellis columns")?.to_vec();
        let trellis = Self { layout, state_bits, unit, bits, scales, starts, data };
        strips(layout).try_for_each(|strip| trellis.check(strip))?;
        Ok(trellis)
    }

    /// Refuses bits that mean nothing.
    fn check(&self, strip: Block) -> Result<()> {
        let bits = strip.height * usize::from(self.bits[strip.index]);
        let data = &self.data[self.starts[strip.index]..self.starts[strip.index + 1]];
        let padding = 0xff00u16 >> ((8 - bits % 8) % 8);
        if bits > 0 && data.chunks_exact(bits.div_ceil(8)).any(|c| c[c.len() - 1] & padding as u8 != 0) {
            return Err(Error::payload(format!("trellis strip {}: padding bits are set", strip.index)));
        }
        Ok(())
    }
}

/// Where each strip's columns begin, and where the last end.
fn starts(layout: Layout, bits: &[u8]) -> Vec<usize> {
    let mut end = 0;
    let mut starts = Vec::with_capacity(bits.len() + 1);
    starts.push(0);
    for (strip, bits) in strips(layout).zip(bits) {
        end += strip.width * column_bytes(strip.height, *bits);
        starts.push(end);
    }
    starts
}

#[cfg(test)]
mod tests;
