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
pub mod format;

use super::summand::{Compression, ParameterKind, Summand};
use crate::codec::bytes::{Reader, Writer};
use crate::codec::layout::{Block, Layout};
use crate::codec::units;
use crate::error::{Error, Result};
pub use format::{FORMATS, Format};
use half::f16;
use std::ops::Range;

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
    /// When the format does not allow the block edge; when a block has more than 65,535 entries, or one that is outside it,
    /// out of order or repeated; when a value is not finite or too large for an F16 times a unit.
    ///
    /// # Panics
    /// When there are not as many lists as blocks.
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
        for (block, entries) in layout.iter().zip(blocks) {
            expect_order(block, entries)?;
        }
        let unit = units::unit_for(blocks.iter().flatten().map(|entry| entry.value), 14);
        let starts = starts(layout, format, &counts);
        let mut scales = Vec::new();
        let mut data = vec![0; starts[blocks.len()]];
        for (block, entries) in layout.iter().zip(blocks) {
            let largest = largest_as_f16(entries, unit);
            if !largest.is_finite() {
                let largest = entries.iter().fold(0f32, |largest, e| largest.max(e.value.abs()));
                let what = format!("the largest coefficient of sparse block {}", block.index);
                return Err(units::too_large(&what, largest));
            }
            if format.has_scales() {
                scales.push(largest);
            }
            let scale = if format.has_scales() { largest.to_f32() * unit } else { unit };
            let data = &mut data[starts[block.index]..starts[block.index + 1]];
            for (n, entry) in entries.iter().enumerate() {
                let field = format.field(entry.value, scale);
                format.put(data, block, n, (entry.row.into(), entry.col.into()), field);
            }
        }
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
    /// # Errors
    /// When one is not finite or too large for an F16 times a unit.
    ///
    /// # Panics
    /// When there are not as many as [`coefficients`](Self::coefficients) says.
    pub fn with_values(&self, values: &[f32]) -> Result<Self> {
        assert_eq!(values.len(), self.coefficients());
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(units::too_large(&format!("sparse coefficient {index}"), values[index]));
        }
        let mut values = values.iter();
        let blocks: Vec<Vec<Entry>> = self
            .layout
            .iter()
            .map(|block| {
                let entries = self.entries(block).into_iter().zip(&mut values);
                entries.map(|(entry, value)| Entry { value: *value, ..entry }).collect()
            })
            .collect();
        Self::pack(self.layout, self.format, &blocks)
    }

    /// The power of two that multiplies every F16 number.
    pub fn unit(&self) -> f32 {
        self.unit
    }

    /// What the numbers of a block's fields are multiplied by: its largest magnitude in `Word24` and `Word24Mu`, whose
    /// numbers are within `-1..=1`, and the unit in the others.
    pub fn scale(&self, block: Block) -> f32 {
        self.scales.get(block.index).map_or(self.unit, |scale| scale.to_f32() * self.unit)
    }

    /// The same term without its entries.
    pub(crate) fn head(&self) -> Self {
        Self {
            layout: self.layout,
            format: self.format,
            unit: self.unit,
            counts: self.counts.clone(),
            scales: self.scales.clone(),
            starts: self.starts.clone(),
            data: Vec::new(),
        }
    }

    /// Kept coefficients in all blocks.
    pub fn coefficients(&self) -> usize {
        self.counts.iter().map(|&count| usize::from(count)).sum()
    }

    /// Calls `f(row, column, field)` for each entry of the block in these rows, in row-major order.
    #[inline]
    pub fn for_each_field(&self, block: Block, rows: Range<usize>, f: impl FnMut(usize, usize, u16)) {
        let data = &self.data[self.starts[block.index]..self.starts[block.index + 1]];
        self.format.for_each(data, block, rows, f);
    }

    /// Calls `f(row, column, value)` for each entry of the block in these rows, in row-major order.
    #[inline]
    pub fn for_each(&self, block: Block, rows: Range<usize>, mut f: impl FnMut(usize, usize, f32)) {
        let (format, scale) = (self.format, self.scale(block));
        self.for_each_field(block, rows, |row, col, field| f(row, col, format.value(field, scale)));
    }

    /// The entries of a block.
    pub fn entries(&self, block: Block) -> Vec<Entry> {
        let mut entries = Vec::with_capacity(usize::from(self.counts[block.index]));
        self.for_each(block, 0..block.height, |row, col, value| {
            entries.push(Entry { row: row as u8, col: col as u8, value });
        });
        entries
    }

    /// What comes first, whether or not the entries that follow are coded.
    fn write_head(&self, writer: &mut Writer) {
        writer.u8(FORMATS.iter().position(|format| *format == self.format).unwrap_or(0) as u8);
        writer.f32(self.unit);
        self.counts.iter().for_each(|count| writer.u16(*count));
        writer.f16s(&self.scales);
    }

    /// A term without its entries, which follow.
    fn read_head(reader: &mut Reader, layout: Layout) -> Result<Self> {
        let code = reader.u8("sparse format")?;
        let format = *FORMATS
            .get(usize::from(code))
            .ok_or_else(|| Error::payload(format!("unknown sparse format {code}")))?;
        if !format.allows(layout.block()) {
            return Err(Error::payload(format!("sparse format word24 with block edge {}", layout.block())));
        }
        let unit = units::read_unit(reader, "sparse unit")?;
        let counts = reader.u16s(layout.blocks(), "sparse counts")?;
        let scales =
            if format.has_scales() { reader.scales(layout.blocks(), "sparse scales")? } else { Vec::new() };
        let starts = starts(layout, format, &counts);
        Ok(Self { layout, format, unit, counts, scales, starts, data: Vec::new() })
    }

    fn read_entries(mut self, reader: &mut Reader) -> Result<Self> {
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

impl Summand for Sparse {
    const CAN_BE_CODED: bool = true;

    fn name(&self) -> &'static str {
        "sparse"
    }

    fn layout(&self) -> Layout {
        self.layout
    }

    fn add_rows(&self, block: Block, rows: Range<usize>, out: &mut [f32]) {
        let first = rows.start;
        self.for_each(block, rows, |row, col, value| out[(row - first) * block.width + col] += value);
    }

    fn stored_numbers(&self) -> usize {
        self.coefficients()
    }

    fn parameter_kind(&self) -> ParameterKind {
        ParameterKind::Coefficients
    }

    fn parameters(&self) -> Vec<f32> {
        let values = |block| self.entries(block).into_iter().map(|entry| entry.value);
        self.layout.iter().flat_map(values).collect()
    }

    fn parameters_in(&self, block: Block) -> usize {
        self.count(block)
    }

    fn with_parameters(&self, parameters: &[f32]) -> Result<Self> {
        self.with_values(parameters)
    }

    fn add_gradient(&self, block: Block, g: &[f32], gradient: &mut [f32]) {
        let mut sums = gradient.iter_mut();
        self.for_each(block, 0..block.height, |row, col, _| {
            if let Some(sum) = sums.next() {
                *sum += g[row * block.width + col];
            }
        });
    }

    fn times_power_of_two(&self, exponent: i32) -> Result<Self> {
        Ok(Self { unit: units::scaled_unit(self.unit, exponent)?, ..self.clone() })
    }

    fn read(reader: &mut Reader, layout: Layout, compression: Compression) -> Result<Self> {
        let head = Self::read_head(reader, layout)?;
        match compression {
            Compression::Entropy => head.read_coded(reader),
            Compression::None => head.read_entries(reader),
        }
    }

    fn size_in_bytes(&self) -> usize {
        1 + 4 + size_of_val(&self.counts[..]) + size_of_val(&self.scales[..]) + self.data.len()
    }

    fn summary(&self) -> String {
        let per_block = self.coefficients() as f64 / self.layout.blocks() as f64;
        format!("sparse {} K {per_block:.0}", self.format.name())
    }

    fn write(&self, writer: &mut Writer) {
        self.write_head(writer);
        writer.bytes(&self.data);
    }

    fn coded(&self) -> Option<Writer> {
        Sparse::coded(self)
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

/// Refuses what kernels would look up beyond a block, and what no format can hold.
fn expect_order(block: Block, entries: &[Entry]) -> Result<()> {
    let mut previous = None;
    for (n, Entry { row, col, value }) in entries.iter().enumerate() {
        let bad = |what: String| {
            Err(Error::config(format!(
                "entry {n} of sparse block {} (row {row}, column {col}) {what}",
                block.index
            )))
        };
        if usize::from(*row) >= block.height || usize::from(*col) >= block.width {
            return bad(format!("is outside the block, which is {} x {}", block.height, block.width));
        }
        if previous >= Some((*row, *col)) {
            return bad(
                "comes after one at the same place or behind it; entries are in row-major order".to_owned()
            );
        }
        if !value.is_finite() {
            return bad(format!("is {value}; values must be finite"));
        }
        previous = Some((*row, *col));
    }
    Ok(())
}

/// The largest magnitude in units, rounded up to f16 so that every value is within it.
fn largest_as_f16(entries: &[Entry], unit: f32) -> f16 {
    let largest = entries.iter().fold(0f32, |largest, e| largest.max(e.value.abs())) / unit;
    let rounded = f16::from_f32(largest);
    if rounded.to_f32() < largest { f16::from_bits(rounded.to_bits() + 1) } else { rounded }
}

#[cfg(test)]
mod tests;
