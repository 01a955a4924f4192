//! The sparse term: each block's largest coefficients with their positions, in bit fields.
//!
//! | format | one coefficient | blocks | for |
//! |---|---|---|---|
//! | `Word32` | `[row:8][col:8][value: f16]` | all | the general format |
//! | `Word24` | `[row:6][col:6][sign:1][fraction:9][pad:2]`, one f16 scale per block | edge <= 64 | more coefficients per byte |
//! | `Word24Mu` | `[row:8][col:8][mu-law:8]`, one f16 scale per block | all | values over a wide range |
//! | `RowMask` | a bit in its row's mask, and an f16 | all | above about one coefficient in eight |
//!
//! Fields are named from the most significant bit; words are little-endian. Entries of a block are in
//! row-major order, so none occurs twice.

mod coded;

use crate::codec::layout::{Block, Layout};
use crate::codec::payload::{Reader, Writer};
use crate::error::{Error, Result};
use half::f16;
use std::ops::Range;
use std::sync::LazyLock;

/// How an entry lies in memory and on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 32 bits an entry, F16 value.
    Word32,
    /// 24 bits an entry, 10-bit value, blocks of edge 64 or less.
    Word24,
    /// 24 bits an entry, 8-bit logarithmic value.
    Word24Mu,
    /// A bit mask per row, F16 values.
    RowMask,
}

/// Every format, in the order of their codes.
pub const FORMATS: [Format; 4] = [Format::Word32, Format::Word24, Format::Word24Mu, Format::RowMask];

/// The companding constant of the mu-law (ITU-T G.711's for eight bits).
const MU: f32 = 255.0;

impl Format {
    /// Whether blocks of this edge can be written.
    pub fn allows(self, block: usize) -> bool {
        self != Format::Word24 || block <= 64
    }

    /// Whether the format has one scale per block.
    fn has_scales(self) -> bool {
        matches!(self, Format::Word24 | Format::Word24Mu)
    }

    /// Bits of one entry, positions in masks not counted.
    pub(crate) fn entry_bits(self) -> usize {
        match self {
            Format::Word32 => 32,
            Format::Word24 | Format::Word24Mu => 24,
            Format::RowMask => 16,
        }
    }

    /// Bits of a block beyond its entries: count, scale, masks.
    pub(crate) fn block_bits(self, block: Block) -> usize {
        let mask = if self == Format::RowMask { 8 * block.height * block.mask_bytes() } else { 0 };
        16 + if self.has_scales() { 16 } else { mask }
    }

    fn block_bytes(self, block: Block, count: usize) -> usize {
        match self {
            Format::RowMask => block.height * block.mask_bytes() + 2 * count,
            words => count * words.entry_bits() / 8,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Format::Word32 => "word32",
            Format::Word24 => "word24",
            Format::Word24Mu => "word24mu",
            Format::RowMask => "rowmask",
        }
    }
}

/// One kept coefficient of a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry {
    /// Row in the block.
    pub row: u8,
    /// Column in the block.
    pub col: u8,
    /// The coefficient.
    pub value: f32,
}

/// The kept coefficients of every block.
#[derive(Clone, Debug, PartialEq)]
pub struct Sparse {
    layout: Layout,
    format: Format,
    /// All f16 numbers are multiplied by this power of two.
    unit: f32,
    /// Entries per block.
    counts: Vec<u16>,
    /// The largest magnitude of each block, in `Word24` and `Word24Mu`.
    scales: Vec<f16>,
    /// Where each block's bytes begin in `data`; one more than there are blocks.
    starts: Vec<usize>,
    data: Vec<u8>,
}

impl Sparse {
    /// Packs the entries of every block, each in row-major order.
    ///
    /// # Errors
    /// When the format does not allow the block edge, or a block has more than 65,535 entries.
    pub fn pack(layout: Layout, format: Format, blocks: &[Vec<Entry>]) -> Result<Self> {
        assert_eq!(blocks.len(), layout.blocks());
        if !format.allows(layout.block()) {
            return Err(Error::config(format!(
                "sparse format word24 holds positions of six bits; block edge {} needs another format",
                layout.block()
            )));
        }
        let counts = blocks
            .iter()
            .map(|entries| u16::try_from(entries.len()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| Error::config("a block of the sparse term has more than 65535 coefficients"))?;
        let unit = super::unit_for(blocks.iter().flatten().map(|entry| entry.value), 14);
        let mut scales = Vec::new();
        let mut data = Vec::new();
        for (block, entries) in layout.iter().zip(blocks) {
            let scale = largest_as_f16(entries, unit);
            if format.has_scales() {
                scales.push(scale);
            }
            let full_scale = scale.to_f32() * unit;
            match format {
                Format::Word32 => entries.iter().for_each(|e| {
                    let value = f16::from_f32(e.value / unit).to_bits();
                    let word = u32::from(e.row) << 24 | u32::from(e.col) << 16 | u32::from(value);
                    data.extend_from_slice(&word.to_le_bytes());
                }),
                Format::Word24 => entries.iter().for_each(|e| {
                    let word =
                        u32::from(e.row) << 18 | u32::from(e.col) << 12 | linear_code(e.value, full_scale);
                    data.extend_from_slice(&word.to_le_bytes()[..3]);
                }),
                Format::Word24Mu => entries.iter().for_each(|e| {
                    data.extend_from_slice(&[mu_law_code(e.value, full_scale), e.col, e.row]);
                }),
                Format::RowMask => {
                    let mut masks = vec![0u8; block.height * block.mask_bytes()];
                    for e in entries {
                        masks[usize::from(e.row) * block.mask_bytes() + usize::from(e.col) / 8] |=
                            1 << (e.col % 8);
                    }
                    data.extend_from_slice(&masks);
                    let values = entries.iter().map(|e| f16::from_f32(e.value / unit));
                    data.extend(values.flat_map(f16::to_le_bytes));
                }
            }
        }
        let starts = starts(layout, format, &counts);
        debug_assert_eq!(starts.last(), Some(&data.len()));
        Ok(Self { layout, format, unit, counts, scales, starts, data })
    }

    /// The layout of the matrix.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The format in use.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Kept coefficients of a block.
    pub fn count(&self, block: Block) -> usize {
        usize::from(self.counts[block.index])
    }

    /// The same positions with other values, one for each entry, block after block and in each row by row.
    ///
    /// # Panics
    /// When there are not as many as [`coefficients`](Self::coefficients) says.
    pub fn with_values(&self, values: &[f32]) -> Self {
        assert_eq!(values.len(), self.coefficients());
        let mut values = values.iter();
        let blocks: Vec<Vec<Entry>> = self
            .layout
            .iter()
            .map(|block| {
                let entries = self.entries(block).into_iter().zip(&mut values);
                entries.map(|(entry, value)| Entry { value: *value, ..entry }).collect()
            })
            .collect();
        let packed = Self::pack(self.layout, self.format, &blocks);
        packed.unwrap_or_else(|_| unreachable!("the positions were packed in this format before"))
    }

    /// The power of two that multiplies every F16 number.
    pub fn unit(&self) -> f32 {
        self.unit
    }

    /// What a block's values in `-1..=1` are multiplied by, in `Word24` and `Word24Mu`; 0 in the others.
    pub fn scale(&self, block: Block) -> f32 {
        self.scales.get(block.index).map_or(0.0, |scale| scale.to_f32() * self.unit)
    }

    /// The stored field of a value of this block, as [`for_each`](Self::for_each) gives it: the bits of an F16,
    /// `[sign:1][fraction:9]`, or `[sign:1][level:7]`.
    pub(crate) fn field(&self, block: Block, value: f32) -> u16 {
        match self.format {
            Format::Word32 | Format::RowMask => f16::from_f32(value / self.unit).to_bits(),
            Format::Word24 => (linear_code(value, self.scale(block)) >> 2) as u16,
            Format::Word24Mu => u16::from(mu_law_code(value, self.scale(block))),
        }
    }

    /// Kept coefficients in all blocks.
    pub fn coefficients(&self) -> usize {
        self.counts.iter().map(|&count| usize::from(count)).sum()
    }

    /// Calls `f(row, column, value)` for each entry of the block in these rows, in row-major order.
    #[inline]
    pub fn for_each(&self, block: Block, rows: Range<usize>, mut f: impl FnMut(usize, usize, f32)) {
        let data = &self.data[self.starts[block.index]..self.starts[block.index + 1]];
        let scale = self.scale(block);
        match self.format {
            Format::Word32 => {
                let (words, _) = data.as_chunks::<4>();
                for word in words[words.partition_point(|word| usize::from(word[3]) < rows.start)..].iter() {
                    let (row, col) = (usize::from(word[3]), usize::from(word[2]));
                    if row >= rows.end {
                        break;
                    }
                    f(row, col, f16::from_le_bytes([word[0], word[1]]).to_f32() * self.unit);
                }
            }
            Format::Word24 => {
                let (words, _) = data.as_chunks::<3>();
                let row_of = |word: &[u8; 3]| usize::from(word[2] >> 2);
                for word in words[words.partition_point(|word| row_of(word) < rows.start)..].iter() {
                    if row_of(word) >= rows.end {
                        break;
                    }
                    let field = u32::from_le_bytes([word[0], word[1], word[2], 0]);
                    f(row_of(word), (field >> 12 & 63) as usize, linear_value(field) * scale);
                }
            }
            Format::Word24Mu => {
                let (words, _) = data.as_chunks::<3>();
                let mu_law = &*MU_LAW;
                for word in words[words.partition_point(|word| usize::from(word[2]) < rows.start)..].iter() {
                    let (row, col) = (usize::from(word[2]), usize::from(word[1]));
                    if row >= rows.end {
                        break;
                    }
                    f(row, col, mu_law[usize::from(word[0])] * scale);
                }
            }
            Format::RowMask => {
                let (masks, values) = data.split_at(block.height * block.mask_bytes());
                let ones = |masks: &[u8]| masks.iter().map(|mask| mask.count_ones() as usize).sum::<usize>();
                let (values, _) = values.as_chunks::<2>();
                let mut values = values[ones(&masks[..rows.start * block.mask_bytes()])..].iter();
                let masks = masks.chunks_exact(block.mask_bytes());
                for (row, masks) in masks.enumerate().take(rows.end).skip(rows.start) {
                    for (byte, &mask) in masks.iter().enumerate() {
                        let mut mask = mask;
                        while mask != 0 {
                            let Some(value) = values.next() else { return };
                            let col = 8 * byte + mask.trailing_zeros() as usize;
                            f(row, col, f16::from_le_bytes(*value).to_f32() * self.unit);
                            mask &= mask - 1;
                        }
                    }
                }
            }
        }
    }

    /// The entries of a block.
    pub fn entries(&self, block: Block) -> Vec<Entry> {
        let mut entries = Vec::with_capacity(usize::from(self.counts[block.index]));
        self.for_each(block, 0..block.height, |row, col, value| {
            entries.push(Entry { row: row as u8, col: col as u8, value });
        });
        entries
    }

    /// Adds rows of a block to `out` (`rows.len() x width`).
    pub fn add_rows(&self, block: Block, rows: Range<usize>, out: &mut [f32]) {
        let first = rows.start;
        self.for_each(block, rows, |row, col, value| out[(row - first) * block.width + col] += value);
    }

    /// Bytes in a payload.
    pub fn size_in_bytes(&self) -> usize {
        1 + 4 + size_of_val(&self.counts[..]) + size_of_val(&self.scales[..]) + self.data.len()
    }

    pub(super) fn summary(&self) -> String {
        let per_block = self.coefficients() as f64 / self.layout.blocks() as f64;
        format!("sparse {} K {per_block:.0}", self.format.name())
    }

    /// What comes first, whether or not the entries that follow are coded.
    pub(super) fn write_head(&self, writer: &mut Writer) {
        writer.u8(FORMATS.iter().position(|format| *format == self.format).unwrap_or(0) as u8);
        writer.f32(self.unit);
        self.counts.iter().for_each(|count| writer.u16(*count));
        writer.f16s(&self.scales);
    }

    pub(super) fn write_entries(&self, writer: &mut Writer) {
        writer.bytes(&self.data);
    }

    /// A term without its entries, which follow.
    pub(super) fn read_head(reader: &mut Reader, layout: Layout) -> Result<Self> {
        let code = reader.u8("sparse format")?;
        let format = *FORMATS
            .get(usize::from(code))
            .ok_or_else(|| Error::payload(format!("unknown sparse format {code}")))?;
        if !format.allows(layout.block()) {
            return Err(Error::payload(format!("sparse format word24 with block edge {}", layout.block())));
        }
        let unit = reader.unit("sparse unit")?;
        let counts = reader.u16s(layout.blocks(), "sparse counts")?;
        let scales =
            if format.has_scales() { reader.scales(layout.blocks(), "sparse scales")? } else { Vec::new() };
        let starts = starts(layout, format, &counts);
        Ok(Self { layout, format, unit, counts, scales, starts, data: Vec::new() })
    }

    pub(super) fn read_entries(mut self, reader: &mut Reader) -> Result<Self> {
        self.data = reader.take(*self.starts.last().unwrap_or(&0), "sparse entries")?.to_vec();
        self.checked()
    }

    fn checked(self) -> Result<Self> {
        self.layout.iter().try_for_each(|block| self.check(block))?;
        Ok(self)
    }

    /// Refuses positions outside the block or twice, values that are not finite, and bits that mean nothing.
    fn check(&self, block: Block) -> Result<()> {
        let data = &self.data[self.starts[block.index]..self.starts[block.index + 1]];
        let bad = |what: &str| Err(Error::payload(format!("sparse block {}: {what}", block.index)));
        match self.format {
            Format::RowMask => {
                let (masks, _) = data.split_at(block.height * block.mask_bytes());
                let set: usize = masks.iter().map(|mask| mask.count_ones() as usize).sum();
                if set != usize::from(self.counts[block.index]) {
                    return bad("the masks do not have as many bits as the block has coefficients");
                }
                if !block.width.is_multiple_of(8) {
                    let outside = 0xffu8 << (block.width % 8);
                    if masks.chunks_exact(block.mask_bytes()).any(|row| row[row.len() - 1] & outside != 0) {
                        return bad("a position outside the block");
                    }
                }
            }
            Format::Word24 if data.as_chunks::<3>().0.iter().any(|word| word[0] & 3 != 0) => {
                return bad("padding bits are set");
            }
            _ => {}
        }
        let mut previous = None;
        let mut fault = None;
        self.for_each(block, 0..256, |row, col, value| {
            if row >= block.height || col >= block.width {
                fault = fault.or(Some("a position outside the block"));
            } else if previous >= Some((row, col)) {
                fault = fault.or(Some("positions repeat or are out of order"));
            } else if !value.is_finite() {
                fault = fault.or(Some("a value is not finite"));
            }
            previous = Some((row, col));
        });
        fault.map_or(Ok(()), bad)
    }
}

/// Where each block's bytes begin, and where the last ends.
fn starts(layout: Layout, format: Format, counts: &[u16]) -> Vec<usize> {
    let mut end = 0;
    let mut starts = Vec::with_capacity(counts.len() + 1);
    starts.push(0);
    for (block, count) in layout.iter().zip(counts) {
        end += format.block_bytes(block, usize::from(*count));
        starts.push(end);
    }
    starts
}

/// The largest magnitude in units, rounded up to f16 so that every value is within it.
fn largest_as_f16(entries: &[Entry], unit: f32) -> f16 {
    let largest = entries.iter().fold(0f32, |largest, e| largest.max(e.value.abs())) / unit;
    let rounded = f16::from_f32(largest);
    if rounded.to_f32() < largest { f16::from_bits(rounded.to_bits() + 1) } else { rounded }
}

/// `[sign:1][fraction:9][pad:2]` with `|value| = fraction / 511 * scale`.
fn linear_code(value: f32, scale: f32) -> u32 {
    let fraction = if scale > 0.0 { (value.abs() / scale * 511.0).round().min(511.0) as u32 } else { 0 };
    u32::from(value.is_sign_negative()) << 11 | fraction << 2
}

/// The value in `-1..=1` of the low twelve bits.
fn linear_value(field: u32) -> f32 {
    let magnitude = (field >> 2 & 511) as f32 / 511.0;
    if field >> 11 & 1 == 1 { -magnitude } else { magnitude }
}

/// `[sign:1][level:7]` with `|value| = ((1 + mu)^(level / 127) - 1) / mu * scale`.
fn mu_law_code(value: f32, scale: f32) -> u8 {
    let level = if scale > 0.0 {
        (127.0 * (MU * (value.abs() / scale).min(1.0)).ln_1p() / MU.ln_1p()).round() as u8
    } else {
        0
    };
    u8::from(value.is_sign_negative()) << 7 | level
}

/// The value in `-1..=1` of each mu-law code.
pub(crate) static MU_LAW: LazyLock<[f32; 256]> = LazyLock::new(|| {
    std::array::from_fn(|code| {
        let magnitude = ((code & 127) as f32 / 127.0 * MU.ln_1p()).exp_m1() / MU;
        if code >> 7 == 1 { -magnitude } else { magnitude }
    })
});

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `step`-th position of each block, with values over three decades.
    fn entries(layout: Layout, step: usize) -> Vec<Vec<Entry>> {
        layout
            .iter()
            .map(|block| {
                (block.index % step..block.len())
                    .step_by(step)
                    .map(|n| Entry {
                        row: (n / block.width) as u8,
                        col: (n % block.width) as u8,
                        value: (n as f32 * 1.7).sin() * 0.1f32.powf((n % 3) as f32),
                    })
                    .collect()
            })
            .collect()
    }

    #[test]
    fn every_format_gives_back_positions_exactly_and_values_within_its_step() {
        for block in [32, 64, 128, 256] {
            let layout = Layout::new(300, 171, block).unwrap();
            for step in [1, 3, 50, 100_000] {
                let blocks = entries(layout, step);
                for format in FORMATS.into_iter().filter(|format| format.allows(block)) {
                    if blocks.iter().any(|block| block.len() > 65535) {
                        continue;
                    }
                    let sparse = Sparse::pack(layout, format, &blocks).unwrap();
                    for (block, expected) in layout.iter().zip(&blocks) {
                        let got = sparse.entries(block);
                        assert_eq!(got.len(), expected.len());
                        let largest = expected.iter().fold(0f32, |m, e| m.max(e.value.abs()));
                        for (a, b) in got.iter().zip(expected) {
                            assert_eq!((a.row, a.col), (b.row, b.col), "{format:?}");
                            let bound = match format {
                                Format::Word32 | Format::RowMask => b.value.abs() / 2048.0 + 1e-9,
                                Format::Word24 => largest * (0.5 / 511.0 + 1e-3),
                                // Half a level at the top of the scale is 2.3 % of the value there.
                                Format::Word24Mu => b.value.abs() * 0.025 + largest * 1.3e-3,
                            };
                            assert!((a.value - b.value).abs() <= bound, "{format:?}: {a:?} {b:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn rows_of_a_block_are_a_slice_of_the_block() {
        let layout = Layout::new(70, 45, 64).unwrap();
        for format in FORMATS {
            let sparse = Sparse::pack(layout, format, &entries(layout, 2)).unwrap();
            for block in layout.iter() {
                let mut whole = vec![0.0; block.len()];
                sparse.add_rows(block, 0..block.height, &mut whole);
                for row in 0..block.height {
                    let mut one = vec![0.0; block.width];
                    sparse.add_rows(block, row..row + 1, &mut one);
                    assert_eq!(one, whole[row * block.width..][..block.width], "{format:?} row {row}");
                }
            }
        }
    }

    #[test]
    fn word24_refuses_blocks_its_positions_cannot_name() {
        let layout = Layout::new(200, 200, 128).unwrap();
        let error = Sparse::pack(layout, Format::Word24, &entries(layout, 9)).unwrap_err();
        assert!(error.to_string().contains("six bits"), "{error}");
    }
}
