//! The trellis term: every coefficient at `k` = 1 to 4 bits, each bit shared by many coefficients.
//!
//! A column of a block with `h` rows is a cycle of `h k` bits, `k` of its own to each row. The **state** of a row
//! are the `L` bits that begin with its own and go on through the rows that follow, from the last row on to the
//! first again ("tail-biting": no bits are spent on a beginning). The state alone gives the value:
//!
//! ```text
//!     state(r)    = b(r) + 2^k b(r+1) + 4^k b(r+2) + ..   mod 2^L        rows modulo h
//!     x           = 2^(32-L) state;   x ^= 2^a x;   x ^= floor(x / 2^b);   x ^= 2^c x        mod 2^32
//!     coefficient = +- scale * magnitude[x's bits after the first, which is the sign]
//! ```
//!
//! So each `b` moves `L / k` coefficients, and a search over all bits (Viterbi's) finds sequences that lie closer
//! to the wanted values than any quantiser of single coefficients: it is trellis-coded quantisation with the
//! bit-shift trellis of QTIP (arXiv 2406.11235). The code is another: an **xorshift** (Marsaglia, "Xorshift RNGs", 2003),
//! whose three shifts are those of each `k` and `L` that code a Gaussian best, followed by a table of magnitudes that are a
//! Gaussian's quantiles ([`COARSE_MAGNITUDES`], [`FINE_MAGNITUDES`]).
//!
//! Measured relative error of a unit Gaussian, columns of 256 rows, scales counted (bits are `k + 0.003`):
//!
//! | | k = 1 | 2 | 3 | 4 |
//! |---|---|---|---|---|
//! | no code can do better | 0.500 | 0.250 | 0.125 | 0.0625 |
//! | L = 16 | 0.519 | 0.260 | 0.132 | 0.0677 |
//! | L = 12 | 0.524 | 0.265 | 0.135 | 0.0696 |
//!
//! An xorshift is linear over the integers modulo 2: the index is the sum (`^`) of what each bit of the state contributes,
//! so what each byte or nibble of it contributes can be had from a small matrix or table. A processor with AVX-512 and GFNI
//! takes five instructions for 64 values whose states lie in two bytes: two products with a matrix of 8 by 8 bits, their sum,
//! one look-up among 128 values; two more for the sign from 3 bits on, two where a state lies in three bytes.
//!
//! Columns are grouped in **scale groups** of 32 (a block's last may be narrower) that share `k` and a scale; `k = 0`
//! makes a scale group zero.

use super::{Stored, Summand, Term};
use crate::codec::layout::{Block, Layout};
use crate::codec::payload::{Compression, Reader, Writer};
use crate::error::{Error, Result};
use half::f16;
use std::ops::{Range, RangeInclusive};

/// The most bits a coefficient can have.
pub const MAX_BITS: u8 = 4;
/// The most bits of a coefficient for which [`COARSE_MAGNITUDES`] do.
pub const COARSE_BITS: u8 = 2;
/// The bits a state may have.
pub const STATE_BITS: RangeInclusive<u8> = 12..=16;
/// Columns that share `k` and a scale. Every block begins at a multiple, so no scale group crosses blocks.
pub const GROUP_COLS: usize = 32;

/// The magnitudes of up to [`COARSE_BITS`] bits: `round(127 g(q(j)) / g(q(63)))` with `q(j)` the Gaussian's quantile at
/// `(j + 129/2) / 128` and `g(q) = q + q^3 / 64`.
///
/// Equal steps of the index are equal shares of a Gaussian whose tail is drawn out a little.
#[rustfmt::skip]
pub static COARSE_MAGNITUDES: [i8; 64] = [
    0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 11, 12, 12, 13,
    14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29,
    30, 31, 32, 33, 34, 35, 37, 38, 39, 41, 42, 43, 45, 46, 48, 50,
    51, 53, 55, 57, 59, 62, 64, 67, 70, 73, 77, 82, 87, 95, 105, 127,
];

/// The magnitudes of more bits, which need more of them and farther out: `round(127 g(q(j)) / g(q(127)))` with `q(j)` at
/// `(j + 257/2) / 256` and `g(q) = q + q^3 / 40`.
#[rustfmt::skip]
pub static FINE_MAGNITUDES: [i8; 128] = [
    0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 6,
    6, 6, 7, 7, 7, 8, 8, 8, 9, 9, 10, 10, 10, 11, 11, 11,
    12, 12, 13, 13, 13, 14, 14, 15, 15, 15, 16, 16, 16, 17, 17, 18,
    18, 19, 19, 19, 20, 20, 21, 21, 21, 22, 22, 23, 23, 24, 24, 25,
    25, 26, 26, 26, 27, 27, 28, 28, 29, 29, 30, 31, 31, 32, 32, 33,
    33, 34, 34, 35, 36, 36, 37, 37, 38, 39, 39, 40, 41, 41, 42, 43,
    44, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 59,
    60, 61, 63, 64, 66, 68, 70, 73, 75, 78, 81, 85, 90, 97, 106, 127,
];

/// How many [`STATE_BITS`] there are.
const STATE_SIZES: usize = (*STATE_BITS.end() - *STATE_BITS.start() + 1) as usize;

/// The shifts `a, b, c` of each `k` and `L`: of all of 1 to 15 those that code a Gaussian best.
const SHIFTS: [[[u8; 3]; STATE_SIZES]; MAX_BITS as usize] = [
    [[6, 2, 5], [7, 2, 5], [9, 1, 4], [9, 2, 5], [11, 1, 4]],
    [[6, 2, 5], [6, 2, 5], [8, 2, 5], [9, 2, 5], [9, 2, 5]],
    [[9, 8, 5], [6, 3, 7], [13, 3, 11], [4, 3, 8], [5, 3, 8]],
    [[9, 4, 10], [11, 4, 10], [11, 4, 10], [11, 5, 6], [3, 4, 9]],
];

/// The map from states to values of one `k` and `L`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    bits: u8,
    state_bits: u8,
}

impl Code {
    /// How many codes there are.
    pub(crate) const COUNT: usize = MAX_BITS as usize * STATE_SIZES;

    /// The code of `bits` (`k`, 1 to [`MAX_BITS`]) a row and `state_bits` (`L`, one of [`STATE_BITS`]).
    pub fn new(bits: u8, state_bits: u8) -> Self {
        assert!((1..=MAX_BITS).contains(&bits) && STATE_BITS.contains(&state_bits));
        Self { bits, state_bits }
    }

    /// One of all codes, for tables of what they need.
    pub(crate) const fn numbered(number: usize) -> Self {
        assert!(number < Self::COUNT);
        let (bits, state_bits) =
            (number / STATE_SIZES + 1, number % STATE_SIZES + *STATE_BITS.start() as usize);
        Self { bits: bits as u8, state_bits: state_bits as u8 }
    }

    /// The number of [`numbered`](Self::numbered).
    pub(crate) fn number(self) -> usize {
        usize::from(self.bits - 1) * STATE_SIZES + usize::from(self.state_bits - STATE_BITS.start())
    }

    /// Bits of a row.
    pub const fn bits(self) -> u8 {
        self.bits
    }

    /// Bits of a state.
    pub const fn state_bits(self) -> u8 {
        self.state_bits
    }

    /// The xorshift's shifts, to the left, to the right and to the left.
    pub const fn shifts(self) -> [u8; 3] {
        SHIFTS[self.bits as usize - 1][(self.state_bits - *STATE_BITS.start()) as usize]
    }

    /// The magnitudes of all indices.
    pub const fn magnitudes(self) -> &'static [i8] {
        if self.bits > COARSE_BITS { &FINE_MAGNITUDES } else { &COARSE_MAGNITUDES }
    }

    /// What a state stands for: in the low bits the index of a magnitude, above it the sign, set for less than zero. Bits above
    /// the state do not matter.
    ///
    /// It is linear: `index(s ^ t) = index(s) ^ index(t)`.
    pub const fn index(self, state: u16) -> u8 {
        let [a, b, c] = self.shifts();
        let mut x = (state as u32) << (32 - self.state_bits);
        x ^= x << a;
        x ^= x >> b;
        x ^= x << c;
        (x >> (31 - self.magnitudes().len().ilog2())) as u8
    }

    /// The value of a state; bits above the state do not matter.
    pub fn value(self, state: u16) -> i8 {
        let magnitudes = self.magnitudes();
        let index = usize::from(self.index(state));
        let magnitude = magnitudes[index % magnitudes.len()];
        if index < magnitudes.len() { magnitude } else { -magnitude }
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

/// A column's cycle of bits, somewhere in those of its scale group.
#[derive(Clone, Copy, Debug)]
pub struct Column<'a> {
    code: Code,
    rows: usize,
    /// The scale group's bytes from the one in which the cycle begins.
    bytes: &'a [u8],
    /// The bit of that byte.
    first: usize,
}

impl Column<'_> {
    /// The bits' code.
    pub fn code(&self) -> Code {
        self.code
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
            let here = self.first + at;
            let byte = |n: usize| u32::from(self.bytes.get(here / 8 + n).copied().unwrap_or(0)) << (8 * n);
            let bits = (byte(0) | byte(1) | byte(2)) >> (here % 8);
            let take = (cycle - at).min(16 - have);
            state |= (bits & ((1 << take) - 1)) << have;
            have += take;
            at = 0;
        }
        state as u16
    }

    /// The value of a row, to be multiplied by the scale group's scale.
    pub fn value(&self, row: usize) -> i8 {
        self.code.value(self.state(row))
    }
}

/// One scale group on its way into [`Trellis::pack`].
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedGroup {
    /// Bits of a coefficient, up to [`MAX_BITS`]; 0 makes every coefficient zero.
    pub bits: u8,
    /// What multiplies the integer values, in units.
    pub scale: f16,
    /// Each row's own bits, column after column; empty without bits.
    pub codes: Vec<u8>,
}

/// The columns of every scale group.
#[derive(Clone, Debug, PartialEq)]
pub struct Trellis {
    layout: Layout,
    state_bits: u8,
    /// All scales are multiplied by this power of two.
    unit: f32,
    /// Bits of a coefficient of each scale group.
    bits: Vec<u8>,
    scales: Vec<f16>,
    /// Where each scale group's columns begin in `data`; one more than there are scale groups.
    starts: Vec<usize>,
    /// Scale group after scale group in whole bytes, and in each its columns, bit by bit.
    data: Vec<u8>,
}

/// The scale groups of a layout, block row by block row and in each from left to right.
pub fn scale_groups(layout: Layout) -> impl Iterator<Item = Block> {
    let per_row = layout.cols().div_ceil(GROUP_COLS);
    (0..layout.block_rows()).flat_map(move |i| {
        let rows = layout.row_range(i);
        (0..per_row).map(move |n| Block {
            index: i * per_row + n,
            row: rows.start,
            col: n * GROUP_COLS,
            height: rows.len(),
            width: GROUP_COLS.min(layout.cols() - n * GROUP_COLS),
        })
    })
}

/// Bytes of a scale group.
pub(crate) fn group_bytes(scale_group: Block, bits: u8) -> usize {
    (scale_group.len() * usize::from(bits)).div_ceil(8)
}

impl Trellis {
    /// Packs quantised scale groups in the order of [`scale_groups`]. `unit` multiplies every scale.
    ///
    /// # Panics
    /// When there are not as many scale groups, or in one not as many codes, as the layout says; when a scale group has more than
    /// [`MAX_BITS`] or a code more than its scale group; when the state bits are not [`STATE_BITS`]; when a scale is negative or not
    /// finite, or the unit no power of two from `2^-126` to `2^103`.
    pub fn pack(layout: Layout, state_bits: u8, unit: f32, quantized: &[QuantizedGroup]) -> Self {
        assert!(STATE_BITS.contains(&state_bits));
        super::expect_scales("trellis", unit, quantized.iter().map(|scale_group| scale_group.scale));
        let bits: Vec<u8> = quantized.iter().map(|scale_group| scale_group.bits).collect();
        let scales = quantized.iter().map(|scale_group| scale_group.scale).collect();
        assert_eq!(bits.len(), layout.block_rows() * layout.cols().div_ceil(GROUP_COLS));
        let starts = starts(layout, &bits);
        let mut data = vec![0; starts[quantized.len()]];
        for (scale_group, source) in scale_groups(layout).zip(quantized) {
            assert!(source.bits <= MAX_BITS);
            if source.bits == 0 {
                continue;
            }
            assert_eq!(source.codes.len(), scale_group.len());
            let bytes = &mut data[starts[scale_group.index]..];
            for (n, code) in source.codes.iter().enumerate() {
                assert!(*code < 1 << source.bits);
                let at = n * usize::from(source.bits);
                let [low, high] = (u16::from(*code) << (at % 8)).to_le_bytes();
                bytes[at / 8] |= low;
                if high != 0 {
                    bytes[at / 8 + 1] |= high;
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

    /// Bits and scale of every scale group, in the order of [`scale_groups`].
    pub(crate) fn group_scales(&self) -> impl Iterator<Item = (u8, f16)> {
        self.bits.iter().copied().zip(self.scales.iter().copied())
    }

    /// What multiplies the values of each scale group, in the order of [`scale_groups`].
    pub fn scales(&self) -> Vec<f32> {
        self.scales.iter().map(|scale| scale.to_f32() * self.unit).collect()
    }

    /// The same columns with other scales, one for each scale group.
    ///
    /// # Errors
    /// When one is negative, not finite or too large.
    ///
    /// # Panics
    /// When there are not as many as scale groups.
    pub fn with_scales(&self, scales: &[f32]) -> Result<Self> {
        assert_eq!(scales.len(), self.scales.len());
        let (unit, scales) = super::scales_in_units(scales, "trellis scale")?;
        Ok(Self { unit, scales, ..self.clone() })
    }

    /// The scale group that holds column `col` of a block.
    fn group_at(&self, block: Block, col: usize) -> usize {
        let per_row = self.layout.cols().div_ceil(GROUP_COLS);
        self.layout.place(block).0 * per_row + (block.col + col) / GROUP_COLS
    }

    /// A column of a block and the scale of its values; `None` where all are zero.
    pub fn column(&self, block: Block, col: usize) -> Option<(Column<'_>, f32)> {
        let scale_group = self.group_at(block, col);
        let bits = self.bits[scale_group];
        if bits == 0 {
            return None;
        }
        let first = col % GROUP_COLS * block.height * usize::from(bits);
        let bytes = &self.data[self.starts[scale_group]..self.starts[scale_group + 1]][first / 8..];
        let code = Code::new(bits, self.state_bits);
        let column = Column { code, rows: block.height, bytes, first: first % 8 };
        Some((column, self.scales[scale_group].to_f32() * self.unit))
    }

    /// Refuses bits that mean nothing.
    fn check(&self, scale_group: Block) -> Result<()> {
        let bits = scale_group.len() * usize::from(self.bits[scale_group.index]);
        let last = self.data[self.starts[scale_group.index]..self.starts[scale_group.index + 1]].last();
        if last.is_some_and(|last| !bits.is_multiple_of(8) && last >> (bits % 8) != 0) {
            return Err(Error::payload(format!(
                "trellis scale group {}: padding bits are set",
                scale_group.index
            )));
        }
        Ok(())
    }
}

impl Summand for Trellis {
    fn name(&self) -> &'static str {
        "trellis"
    }

    fn residual_name(&self) -> Option<&'static str> {
        Some("residual_trellis")
    }

    fn layout(&self) -> Layout {
        self.layout
    }

    fn add_rows(&self, block: Block, rows: Range<usize>, out: &mut [f32]) {
        for col in 0..block.width {
            let Some((column, scale)) = self.column(block, col) else { continue };
            for (row, out) in rows.clone().zip(out.chunks_exact_mut(block.width)) {
                out[col] += scale * f32::from(column.value(row));
            }
        }
    }

    fn parameters(&self) -> Vec<f32> {
        self.scales()
    }

    fn parameters_in(&self, block: Block) -> usize {
        block.width.div_ceil(GROUP_COLS)
    }

    fn with_parameters(&self, parameters: &[f32]) -> Result<Term> {
        self.with_scales(parameters).map(Term::from)
    }

    fn add_gradient(&self, block: Block, g: &[f32], gradient: &mut [f32]) {
        for col in 0..block.width {
            let Some((column, _)) = self.column(block, col) else { continue };
            let product = |row: usize| f64::from(g[row * block.width + col]) * f64::from(column.value(row));
            gradient[col / GROUP_COLS] += (0..block.height).map(product).sum::<f64>() as f32;
        }
    }

    fn times_power_of_two(&self, exponent: i32) -> Result<Term> {
        Ok(Self { unit: super::scaled_unit(self.unit, exponent)?, ..self.clone() }.into())
    }

    fn size_in_bytes(&self) -> usize {
        1 + 4 + self.bits.len() + size_of_val(&self.scales[..]) + self.data.len()
    }

    fn summary(&self) -> String {
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

    fn write(&self, writer: &mut Writer) {
        writer.u8(self.state_bits);
        writer.f32(self.unit);
        writer.bytes(&self.bits);
        writer.f16s(&self.scales);
        writer.bytes(&self.data);
    }
}

impl Stored for Trellis {
    fn read(reader: &mut Reader, layout: Layout, _: Compression) -> Result<Self> {
        let state_bits = reader.u8("trellis state bits")?;
        if !STATE_BITS.contains(&state_bits) {
            return Err(Error::payload(format!("trellis states of {state_bits} bits; 12 to 16 are allowed")));
        }
        let unit = reader.unit("trellis unit")?;
        let count = layout.block_rows() * layout.cols().div_ceil(GROUP_COLS);
        let bits = reader.take(count, "trellis bits")?.to_vec();
        if let Some(bits) = bits.iter().find(|bits| **bits > MAX_BITS) {
            return Err(Error::payload(format!("a trellis of {bits} bits; at most {MAX_BITS} are allowed")));
        }
        let scales = reader.scales(count, "trellis scales")?;
        let starts = starts(layout, &bits);
        let data = reader.take(starts[count], "trellis columns")?.to_vec();
        let trellis = Self { layout, state_bits, unit, bits, scales, starts, data };
        scale_groups(layout).try_for_each(|scale_group| trellis.check(scale_group))?;
        Ok(trellis)
    }
}

/// Where each scale group begins, and where the last ends.
fn starts(layout: Layout, bits: &[u8]) -> Vec<usize> {
    let mut end = 0;
    let mut starts = Vec::with_capacity(bits.len() + 1);
    starts.push(0);
    for (scale_group, bits) in scale_groups(layout).zip(bits) {
        end += group_bytes(scale_group, *bits);
        starts.push(end);
    }
    starts
}

#[cfg(test)]
mod tests;
