//! The sparse term entropy coded: gaps between positions, magnitudes, signs.
//!
//! In a block the entry at position `n = row * width + col` is told by how many positions are passed over since the last.
//! Small gaps are symbols, larger ones share a symbol with their neighbours and have raw bits ([`symbol`]). Of a value the
//! highest bits of its magnitude are a symbol, its sign and the rest are raw: a block's largest coefficients have
//! magnitudes just above a threshold, more or less, and nothing is known of their low bits.

use super::{Format, Sparse};
use crate::codec::bytes::{Reader, Writer};
use crate::codec::entropy::{
    Counts, Decoder, LARGEST_RATIO, Lanes, RawBits, RawWriter, SYMBOLS, Table, chunks, encode, expect_ratio,
    parts,
};
use crate::codec::layout::Block;
use crate::codec::sizes::zeroed;
use crate::codec::term::summand::Summand;
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::ops::{Range, RangeInclusive};

/// Entries after which a chunk ends.
const CHUNK_ENTRIES: usize = 1 << 14;
/// How many bits of a magnitude may be its symbol. Few symbols suit few entries.
const SYMBOL_BITS: RangeInclusive<u8> = 5..=7;
/// The symbol of the largest gap there is, 65535.
const LARGEST_GAP_SYMBOL: usize = 33;

/// A gap's symbol, its raw bits, and how many these are: of `8..`, each half of an octave shares one.
fn symbol(gap: u32) -> (u8, u32, u32) {
    if gap < 8 {
        return (gap as u8, 0, 0);
    }
    let raw = gap.ilog2() - 1;
    ((2 * raw + 4 + (gap >> raw & 1)) as u8, gap & ((1 << raw) - 1), raw)
}

/// The first gap of a symbol, and how many raw bits say which.
#[inline(always)]
fn gap(symbol: u8) -> (u32, u32) {
    let symbol = u32::from(symbol);
    if symbol < 8 {
        return (symbol, 0);
    }
    let raw = symbol / 2 - 2;
    ((2 + symbol % 2) << raw, raw)
}

/// What a chunk of blocks has to code.
#[derive(Default)]
struct Chunk {
    gaps: Vec<u32>,
    /// `[sign][magnitude]`.
    values: Vec<u32>,
}

impl Sparse {
    /// Bytes in a payload, the entries entropy coded where that takes fewer. It takes as long to know as to do.
    pub fn coded_size_in_bytes(&self) -> usize {
        self.coded().map_or(self.size_in_bytes(), |coded| coded.len())
    }

    /// The term with its entries entropy coded, where that is smaller.
    pub(in crate::codec) fn coded(&self) -> Option<Writer> {
        let mut writer = Writer::default();
        self.write_head(&mut writer);
        let in_proportion = self.write_coded(&mut writer);
        (in_proportion && writer.len() < self.size_in_bytes()).then_some(writer)
    }

    /// Writes the entries entropy coded; whether that is not so small that readers refuse it.
    fn write_coded(&self, writer: &mut Writer) -> bool {
        let chunks = self.chunks();
        let blocks: Vec<Block> = self.layout.iter().collect();
        let chunks: Vec<Chunk> = chunks.into_par_iter().map(|chunk| self.chunk(&blocks[chunk])).collect();
        let count = |symbols: &mut dyn Iterator<Item = u8>| {
            let mut counts: Counts = [0; SYMBOLS];
            symbols.for_each(|symbol| counts[usize::from(symbol)] += 1);
            counts
        };
        let gaps = count(&mut chunks.iter().flat_map(|chunk| &chunk.gaps).map(|gap| symbol(*gap).0));
        let magnitude_bits = self.format.magnitude_bits();
        let low_bits = |symbol_bits: u8| magnitude_bits - u32::from(symbol_bits);
        let magnitude = |value: u32| value & ((1 << magnitude_bits) - 1);
        // What a table of fewer symbols saves, the bits that become raw may cost.
        let values = SYMBOL_BITS.map(|bits| {
            let values = chunks.iter().flat_map(|chunk| &chunk.values);
            let counts = count(&mut values.map(|value| (magnitude(*value) >> low_bits(bits)) as u8));
            let (table, entries) = (Table::new(&counts), counts.iter().sum::<u64>());
            let raw = (entries * u64::from(low_bits(bits))) << 16;
            (table.cost(&counts) + raw + ((8 * table.size_in_bytes() as u64) << 16), bits, table)
        });
        let Some((_, symbol_bits, values)) = values.min_by_key(|(cost, ..)| *cost) else { return false };
        let gaps = Table::new(&gaps);
        writer.u8(symbol_bits);
        gaps.write(writer);
        values.write(writer);
        let (gaps, values, low_bits) = (gaps.encoder(), values.encoder(), low_bits(symbol_bits));
        let write = |chunk: &Chunk| {
            let mut writer = Writer::default();
            let (mut gap_symbols, mut value_symbols) = (Vec::new(), Vec::new());
            let mut raw = RawWriter::default();
            for (gap, value) in chunk.gaps.iter().zip(&chunk.values) {
                let (symbol, bits, count) = symbol(*gap);
                gap_symbols.push(symbol);
                raw.put(bits, count);
                value_symbols.push((magnitude(*value) >> low_bits) as u8);
                let sign = value >> magnitude_bits;
                raw.put(sign << low_bits | value & ((1 << low_bits) - 1), 1 + low_bits);
            }
            encode::<1>(&[(&gap_symbols, &gaps)], &mut writer);
            encode::<1>(&[(&value_symbols, &values)], &mut writer);
            raw.finish(&mut writer);
            writer
        };
        let written: Vec<Writer> = chunks.par_iter().map(write).collect();
        let coded: usize = written.iter().map(Writer::len).sum();
        written.into_iter().for_each(|chunk| writer.append(chunk));
        self.data.len() <= LARGEST_RATIO * coded
    }

    /// Reads what [`coded`](Self::coded) wrote after this head, whose entries are still to come.
    pub(in crate::codec) fn read_coded(mut self, reader: &mut Reader) -> Result<Self> {
        let total = self.starts[self.counts.len()];
        expect_ratio(reader, total, "sparse entries")?;
        let symbol_bits = reader.u8("sparse symbol bits")?;
        if !SYMBOL_BITS.contains(&symbol_bits) {
            return Err(Error::payload(format!("sparse symbols of {symbol_bits} bits; 5 to 7 are allowed")));
        }
        let (gaps, values) = (Table::read(reader)?, Table::read(reader)?);
        if gaps.largest() > LARGEST_GAP_SYMBOL || values.largest() >> symbol_bits != 0 {
            return Err(Error::payload("a table of the sparse term has symbols that mean nothing"));
        }
        let tables = (gaps.decoder(), values.decoder());
        let mut data = zeroed(&[total], "sparse entries")?;
        let (chunks, blocks) = (self.chunks(), self.layout.iter().collect::<Vec<_>>());
        let mut coded = Vec::with_capacity(chunks.len());
        for _ in &chunks {
            coded.push(Coded {
                gaps: Lanes::read(reader)?,
                values: Lanes::read(reader)?,
                raw: RawBits::read(reader)?,
                low_bits: self.format.magnitude_bits() - u32::from(symbol_bits),
            });
        }
        let parts = parts(&mut data, &self.starts, &chunks);
        chunks
            .into_par_iter()
            .zip(coded)
            .zip(parts)
            .try_for_each(|((chunk, coded), out)| coded.decode(&self, &blocks[chunk], &tables, out))?;
        self.data = data;
        self.checked()
    }

    fn chunks(&self) -> Vec<Range<usize>> {
        chunks(self.counts.iter().map(|count| usize::from(*count)), CHUNK_ENTRIES)
    }

    /// Gaps and values of these blocks.
    fn chunk(&self, blocks: &[Block]) -> Chunk {
        let mut chunk = Chunk::default();
        for block in blocks {
            let mut next = 0;
            self.for_each_field(*block, 0..block.height, |row, col, field| {
                let position = row * block.width + col;
                chunk.gaps.push((position - next) as u32);
                chunk.values.push(field.into());
                next = position + 1;
            });
        }
        chunk
    }
}

/// The bytes of a chunk of blocks, on their way out.
struct Coded<'a> {
    gaps: Lanes<'a, 1>,
    values: Lanes<'a, 1>,
    raw: RawBits<'a>,
    /// Bits of a magnitude that are raw.
    low_bits: u32,
}

impl Coded<'_> {
    /// Writes the entries of these blocks, as they lie in memory, to `out`.
    fn decode(
        mut self,
        head: &Sparse,
        blocks: &[Block],
        tables: &(Decoder, Decoder),
        mut out: &mut [u8],
    ) -> Result<()> {
        for &block in blocks {
            let data;
            let len = head.starts[block.index + 1] - head.starts[block.index];
            (data, out) = std::mem::take(&mut out).split_at_mut(len);
            match head.format {
                Format::Word32 => self.decode_block(Format::Word32, head, block, tables, data),
                Format::Word24 => self.decode_block(Format::Word24, head, block, tables, data),
                Format::Word24Mu => self.decode_block(Format::Word24Mu, head, block, tables, data),
                Format::RowMask => self.decode_block(Format::RowMask, head, block, tables, data),
            }?;
        }
        self.gaps.finish()?;
        self.values.finish()?;
        self.raw.finish()
    }

    /// One block; `format` is known where this is called, so that each has a loop of its own.
    #[inline(always)]
    fn decode_block(
        &mut self,
        format: Format,
        head: &Sparse,
        block: Block,
        (gaps, values): &(Decoder, Decoder),
        data: &mut [u8],
    ) -> Result<()> {
        let (magnitude_bits, low_bits) = (format.magnitude_bits(), self.low_bits);
        let mut next = 0;
        for n in 0..usize::from(head.counts[block.index]) {
            let (first, raw_bits) = gap(self.gaps.next(gaps));
            let position = next + (first | self.raw.take(raw_bits)) as usize;
            if position >= block.len() {
                let index = block.index;
                return Err(Error::payload(format!("sparse block {index}: a position outside the block")));
            }
            let high = u32::from(self.values.next(values)) << low_bits;
            let low = self.raw.take(1 + low_bits);
            let sign = low >> low_bits << magnitude_bits;
            let field = (sign | high | low & ((1 << low_bits) - 1)) as u16;
            format.put(data, block, n, (position / block.width, position % block.width), field);
            next = position + 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gap_has_a_symbol_and_raw_bits_that_say_it() {
        for n in 0..=65535 {
            let (symbol, bits, count) = symbol(n);
            let (first, raw) = gap(symbol);
            assert_eq!((first | bits, raw), (n, count));
            assert!(usize::from(symbol) <= LARGEST_GAP_SYMBOL && bits >> count == 0);
        }
        assert_eq!([7, 8, 11, 12, 15, 16, 65535].map(|n| symbol(n).0), [7, 8, 8, 9, 9, 10, 33]);
    }
}
