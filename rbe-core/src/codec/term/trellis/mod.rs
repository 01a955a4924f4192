//! The trellis term: every coefficient at `k` = 1 to 4 bits, each bit shared by many coefficients.
//!
//! A column of a block with `h` rows is a cycle of `h k` bits, `k` of its own to each row. The **state** of a row
//! are the `L` bits that begin with its own and go on through the rows that follow, from the last row on to the
//! first again ("tail-biting": no bits are spent on a beginning). The state alone gives the value:
//!
//! ```text
//!     state(r)    = b(r) + 2^k b(r+1) + 4^k b(r+2) + ..   mod 2^L        rows modulo h
//!     index       = c(0) if bit 0 of the state is 1  ^  c(1) if bit 1 is  ^  ..
//!     coefficient = scale * (level[index mod 16] + offset[floor(index / 16)])
//! ```
//!
//! So each `b` moves `L / k` coefficients, and a search over all bits (Viterbi's) finds sequences that lie closer
//! to the wanted values than any quantiser of single coefficients: it is trellis-coded quantisation with the
//! bit-shift trellis of QTIP (arXiv 2406.11235). The code is another, made for what processors do in one instruction.
//!
//! - **The index is linear** over the integers modulo 2: each half of a byte contributes what a table of sixteen says, each byte
//!   what a matrix of 8 by 8 bits does (AVX-512's GFNI).
//! - **Its bytes `c` are few.** The level depends on the state's lowest four bits and on the four from bit 8 on, the offset on the
//!   four from bit 4 on: a set of instructions that looks bytes up in a table of sixteen (AVX2, NEON) takes three look-ups, one
//!   `^` and one sum for as many values as a register has bytes. With `k` = 3 these windows begin at multiples of three bits, so
//!   that every row's own window serves four rows, and with `L` above 12 one more window contributes to both. What the later
//!   windows contribute are sums of shifts, so that a GPU has two states of a word at once.
//! - **Values are at most 63 in magnitude.** As codes of 1 to 127 they are multiplied with signed bytes, two products added
//!   in 16 bits, without a sign to take care of (`vpmaddubsw`).
//!
//! Levels and offsets that add up make two tables of sixteen do for 256 values. At four bits, where that costs 2.5 % of the error,
//! offsets count twice at the outermost two levels, and it costs half a percent.
//!
//! Measured relative error of a unit Gaussian, columns of 256 rows, scales counted (bits are `k + 0.003`):
//!
//! | | k = 1 | 2 | 3 | 4 |
//! |---|---|---|---|---|
//! | no code can do better | 0.500 | 0.250 | 0.125 | 0.0625 |
//! | L = 16 | 0.516 | 0.262 | 0.133 | 0.0674 |
//! | L = 12 | 0.521 | 0.266 | 0.135 | 0.0686 |
//!
//! Columns are grouped in **scale groups** of 32 (a block's last may be narrower) that share `k` and a scale; `k = 0`
//! makes a scale group zero.

mod code;
mod windows;

pub use code::{Code, MAX_BITS, STATE_BITS};
pub use windows::Windows;

use super::summand::{Compression, Summand};
use crate::codec::bytes::{Reader, Writer};
use crate::codec::layout::{Block, Layout};
use crate::codec::units;
use crate::error::{Error, Result};
use half::f16;
use std::ops::Range;

/// Columns that share `k` and a scale. Every block begins at a multiple, so no scale group crosses blocks.
pub const GROUP_COLS: usize = 32;

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
        self.bits_from(row * usize::from(self.code.bits()))
    }

    /// The cycle's bytes, where it has whole ones.
    pub(crate) fn whole_bytes(&self) -> Option<&[u8]> {
        let cycle = self.rows * usize::from(self.code.bits());
        (self.first == 0 && cycle.is_multiple_of(8)).then(|| &self.bytes[..cycle / 8])
    }

    /// Sixteen bits from bit `at` on; after the cycle's last bit it begins again.
    pub(crate) fn bits_from(&self, at: usize) -> u16 {
        let cycle = self.rows * usize::from(self.code.bits());
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
        units::expect_scales("trellis", unit, quantized.iter().map(|scale_group| scale_group.scale));
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
        let (unit, scales) = units::scales_in_units(scales, "trellis scale")?;
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

    fn with_parameters(&self, parameters: &[f32]) -> Result<Self> {
        self.with_scales(parameters)
    }

    fn add_gradient(&self, block: Block, g: &[f32], gradient: &mut [f32]) {
        for col in 0..block.width {
            let Some((column, _)) = self.column(block, col) else { continue };
            let product = |row: usize| f64::from(g[row * block.width + col]) * f64::from(column.value(row));
            gradient[col / GROUP_COLS] += (0..block.height).map(product).sum::<f64>() as f32;
        }
    }

    fn times_power_of_two(&self, exponent: i32) -> Result<Self> {
        Ok(Self { unit: units::scaled_unit(self.unit, exponent)?, ..self.clone() })
    }

    fn read(reader: &mut Reader, layout: Layout, _: Compression) -> Result<Self> {
        let state_bits = reader.u8("trellis state bits")?;
        if !STATE_BITS.contains(&state_bits) {
            return Err(Error::payload(format!("trellis states of {state_bits} bits; 12 to 16 are allowed")));
        }
        let unit = units::read_unit(reader, "trellis unit")?;
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
