//! The planes term entropy coded: whole codes, under tables that blocks of alike spread share.
//!
//! Coefficients of a block are near to Gaussian, so codes in the middle are frequent: at the step with the least error for
//! `n` planes, those of llama-books' projections take `n - 0.1` (2 planes) to `n - 0.9` bits (8). At a finer step with more
//! planes the same file has a smaller error (`encode` says which).

use super::{Planes, write_masks};
use crate::codec::bytes::{Reader, Writer};
use crate::codec::entropy::{
    Counts, LARGEST_RATIO, Lanes, SYMBOLS, Table, chunks, encode, expect_ratio, parts,
};
use crate::codec::layout::{Block, Layout};
use crate::codec::sizes::zeroed;
use crate::codec::term::summand::Summand;
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;

/// Coefficients after which a chunk ends.
const CHUNK_COEFFICIENTS: usize = 1 << 16;
/// Coders that take turns at a block's symbols.
const LANES: usize = 4;
/// From so many coefficients on a symbol holds all the codes that fit it. A reader is then done with several at once, and a
/// table, which has up to 256 frequencies, is next to nothing.
const PACKED_FROM: usize = 1 << 18;

/// How the codes of a block become symbols.
#[derive(Clone, Copy)]
struct Packing {
    planes: u8,
    /// Codes in a symbol.
    codes: usize,
}

impl Packing {
    fn new(planes: u8, packed: bool) -> Self {
        Self { planes, codes: if packed { 8 / usize::from(planes) } else { 1 } }
    }

    /// Codes of which symbol `i` of eight has the `i`-th of each eight.
    fn run(self) -> usize {
        8 * self.codes
    }

    /// Symbols of so many codes.
    fn symbols(self, codes: usize) -> usize {
        codes / self.run() * 8 + (codes % self.run()).min(8)
    }

    fn pack(self, codes: &[u8]) -> Vec<u8> {
        let mut symbols = vec![0; self.symbols(codes.len())];
        for (symbols, run) in symbols.chunks_mut(8).zip(codes.chunks(self.run())) {
            for (codes, shift) in run.chunks(8).zip((0..).step_by(self.planes.into())) {
                symbols.iter_mut().zip(codes).for_each(|(symbol, code)| *symbol |= code << shift);
            }
        }
        symbols
    }

    /// Undoes [`pack`](Self::pack).
    fn unpack(self, symbols: &[u8], codes: &mut [u8]) {
        let mask = ((1u16 << self.planes) - 1) as u8;
        for (symbols, run) in symbols.chunks(8).zip(codes.chunks_mut(self.run())) {
            for (codes, shift) in run.chunks_mut(8).zip((0..).step_by(self.planes.into())) {
                codes.iter_mut().zip(symbols).for_each(|(code, symbol)| *code = symbol >> shift & mask);
            }
        }
    }
}

/// What blocks that share a table share: planes, and a class of the codes' variance, two an octave. The variance has less
/// than `2n + 2` octaves, so there are fewer than 255 of them.
type Spread = (u8, u32);

fn count(symbols: &[u8]) -> Counts {
    let mut counts: Counts = [0; SYMBOLS];
    symbols.iter().for_each(|symbol| counts[usize::from(*symbol)] += 1);
    counts
}

fn spread(planes: u8, codes: &[u8]) -> Spread {
    let square = |code: u64| (2 * code + 1).abs_diff(1 << planes).pow(2);
    let sum: u64 = (0..1 << planes).zip(&count(codes)).map(|(code, count)| square(code) * count).sum();
    // Levels are odd integers, so their mean square is 1 or more.
    let mean = 2 * sum / (codes.len() as u64).max(1);
    let octave = mean.max(2).ilog2();
    (planes, 2 * octave + (mean >> (octave - 1) & 1) as u32)
}

/// Blocks of neighbouring spreads and the table that they share.
struct Group {
    first: Spread,
    counts: Counts,
    table: Table,
}

impl Group {
    fn new(first: Spread, counts: Counts) -> Self {
        Self { first, counts, table: Table::new(&counts) }
    }

    /// Of codes and table, in parts of 2^16 bits.
    fn cost(&self) -> u64 {
        self.table.cost(&self.counts) + ((8 * self.table.size_in_bytes() as u64) << 16)
    }
}

/// Tables, and which one each block is coded under.
pub(crate) struct Tables {
    packed: bool,
    groups: Vec<Group>,
    of_block: Vec<u8>,
}

impl Tables {
    /// One table for all blocks of a spread, and of the next too where two would take more than they save. Blocks come
    /// with their planes and codes.
    pub(crate) fn new<C: AsRef<[u8]>>(layout: Layout, blocks: impl ParallelIterator<Item = (u8, C)>) -> Self {
        let packed = layout.elements() >= PACKED_FROM;
        type Sums = (Vec<Option<Spread>>, BTreeMap<Spread, Counts>);
        let add = |sums: &mut Counts, counts: &Counts| {
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        };
        let one = |(mut spreads, mut classes): Sums, (planes, codes): (u8, C)| {
            if planes == 0 {
                spreads.push(None);
            } else {
                let spread = spread(planes, codes.as_ref());
                let symbols = Packing::new(planes, packed).pack(codes.as_ref());
                add(classes.entry(spread).or_insert([0; SYMBOLS]), &count(&symbols));
                spreads.push(Some(spread));
            }
            (spreads, classes)
        };
        let both = |(mut spreads, mut classes): Sums, (more, others): Sums| {
            spreads.extend(more);
            others.iter().for_each(|(key, counts)| add(classes.entry(*key).or_insert([0; SYMBOLS]), counts));
            (spreads, classes)
        };
        let (spreads, classes) = blocks.fold(Sums::default, one).reduce(Sums::default, both);
        let mut groups: Vec<Group> = Vec::new();
        for (spread, counts) in classes {
            let own = Group::new(spread, counts);
            if let Some(last) = groups.last_mut()
                && last.first.0 == spread.0
            {
                let mut counts = last.counts;
                add(&mut counts, &own.counts);
                let shared = Group::new(last.first, counts);
                if shared.cost() <= last.cost() + own.cost() {
                    *last = shared;
                    continue;
                }
            }
            groups.push(own);
        }
        let group = |spread| groups.partition_point(|group| group.first <= spread) - 1;
        let of_block = spreads.iter().map(|spread| spread.map_or(0, group) as u8).collect();
        Self { packed, groups, of_block }
    }

    /// Bits of codes, tables, and of which is whose, but for what lanes round up.
    pub(crate) fn bits(&self) -> usize {
        let bits: u64 = self.groups.iter().map(Group::cost).sum();
        16 + 8 * self.of_block.len() + (bits >> 16) as usize
    }
}

impl Planes {
    /// Bytes in a payload, the planes entropy coded where that takes fewer. It takes as long to know as to do.
    pub fn coded_size_in_bytes(&self) -> usize {
        self.coded().map_or(self.size_in_bytes(), |coded| coded.len())
    }

    /// The term with its planes entropy coded, where that is smaller.
    pub(in crate::codec) fn coded(&self) -> Option<Writer> {
        let mut writer = Writer::default();
        self.write_head(&mut writer);
        let in_proportion = self.write_coded(&mut writer);
        (in_proportion && writer.len() < self.size_in_bytes()).then_some(writer)
    }

    /// Writes the planes entropy coded; whether that is not so small that readers refuse it.
    fn write_coded(&self, writer: &mut Writer) -> bool {
        let blocks: Vec<Block> = self.layout.iter().collect();
        let codes = |block: &Block| {
            // A block without planes has no codes, however large it is.
            let mut codes = vec![0; if self.planes(*block) > 0 { block.len() } else { 0 }];
            self.codes(*block, &mut codes);
            codes
        };
        let with_planes = blocks.par_iter().map(|block| (self.planes(*block), codes(block)));
        let tables = Tables::new(self.layout, with_planes);
        writer.u8(tables.packed.into());
        writer.u8(tables.groups.len() as u8);
        tables.groups.iter().for_each(|group| group.table.write(writer));
        writer.bytes(&tables.of_block);
        let encoders: Vec<_> = tables.groups.iter().map(|group| group.table.encoder()).collect();
        let chunk = |chunk: Range<usize>| {
            let blocks = || blocks[chunk.clone()].iter().filter(|block| self.planes(**block) > 0);
            let pack = |block: &Block| Packing::new(self.planes(*block), tables.packed).pack(&codes(block));
            let symbols: Vec<Vec<u8>> = blocks().map(pack).collect();
            let encoder = |block: &Block| &encoders[usize::from(tables.of_block[block.index])];
            let runs: Vec<_> =
                symbols.iter().zip(blocks()).map(|(symbols, block)| (&symbols[..], encoder(block))).collect();
            let mut writer = Writer::default();
            encode::<LANES>(&runs, &mut writer);
            writer
        };
        let written: Vec<Writer> = self.chunks().into_par_iter().map(chunk).collect();
        let coded: usize = written.iter().map(Writer::len).sum();
        written.into_iter().for_each(|chunk| writer.append(chunk));
        self.data.len() <= LARGEST_RATIO * coded
    }

    /// Reads what [`coded`](Self::coded) wrote after this head, whose planes are still to come.
    pub(in crate::codec) fn read_coded(mut self, reader: &mut Reader) -> Result<Self> {
        let total = self.starts[self.planes.len()];
        expect_ratio(reader, total, "bit-planes")?;
        let packed = match reader.u8("packing of codes")? {
            0 => false,
            1 => true,
            packing => return Err(Error::payload(format!("unknown packing {packing} of codes"))),
        };
        let mut tables = Vec::new();
        for _ in 0..reader.u8("planes table count")? {
            tables.push(Table::read(reader)?);
        }
        let of_block = reader.take(self.planes.len(), "tables of blocks")?;
        for ((index, planes), table) in self.planes.iter().enumerate().zip(of_block) {
            let largest = tables.get(usize::from(*table)).map(Table::largest);
            let fits = |largest: usize| {
                let packing = Packing::new(*planes, packed);
                largest >> (packing.codes * usize::from(*planes)) == 0
            };
            if *planes > 0 && !largest.is_some_and(fits) {
                return Err(Error::payload(format!(
                    "planes block {index}: table {table} is not for {planes} planes"
                )));
            }
            if *planes == 0 && *table != 0 {
                return Err(Error::payload(format!("planes block {index}: table {table} for no planes")));
            }
        }
        let decoders: Vec<_> = tables.iter().map(Table::decoder).collect();
        let (chunks, blocks) = (self.chunks(), self.layout.iter().collect::<Vec<_>>());
        let mut coded = Vec::with_capacity(chunks.len());
        for _ in &chunks {
            coded.push(Lanes::<LANES>::read(reader)?);
        }
        let mut data = zeroed(&[total], "bit-planes")?;
        let parts = parts(&mut data, &self.starts, &chunks);
        let decode = |((chunk, mut lanes), mut out): ((Range<usize>, Lanes<LANES>), &mut [u8])| {
            let [mut symbols, mut codes] = [(); 2].map(|()| vec![0; self.layout.largest_block()]);
            for block in blocks[chunk].iter().filter(|block| self.planes(**block) > 0) {
                let packing = Packing::new(self.planes(*block), packed);
                let codes = &mut codes[..block.len()];
                let symbols = &mut symbols[..packing.symbols(codes.len())];
                lanes.decode(&decoders[usize::from(of_block[block.index])], symbols);
                packing.unpack(symbols, codes);
                let masks;
                let len = self.starts[block.index + 1] - self.starts[block.index];
                (masks, out) = std::mem::take(&mut out).split_at_mut(len);
                write_masks(codes, *block, self.planes(*block), masks);
            }
            lanes.finish()
        };
        chunks.into_par_iter().zip(coded).zip(parts).try_for_each(decode)?;
        self.data = data;
        Ok(self)
    }

    fn chunks(&self) -> Vec<Range<usize>> {
        let size = |block: Block| if self.planes(block) > 0 { block.len() } else { 0 };
        chunks(self.layout.iter().map(size), CHUNK_COEFFICIENTS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_are_the_formats() {
        let codes: Vec<u8> = (0..29).map(|n| n * 5 % 8).collect();
        // Two codes of three bits: sixteen codes to eight symbols, then eight with a second code where there is one.
        let second = |i: usize| codes.get(i).map_or(0, |code| code << 3);
        let expected: Vec<u8> = (0..8).chain(16..24).map(|i| codes[i] | second(i + 8)).collect();
        assert_eq!(Packing::new(3, true).pack(&codes), expected);
        assert_eq!(Packing::new(3, true).pack(&codes[..20]), [&expected[..8], &codes[16..20]].concat());
        assert_eq!(Packing::new(3, false).pack(&codes), codes);
    }

    #[test]
    fn codes_of_any_number_come_back() {
        for planes in 1..=8 {
            for (packed, len) in (0..200).flat_map(|len| [(false, len), (true, len)]) {
                let codes: Vec<u8> = (0..len).map(|n| (n * 197 / 7 % (1 << planes)) as u8).collect();
                let packing = Packing::new(planes, packed);
                let mut back = vec![0; codes.len()];
                packing.unpack(&packing.pack(&codes), &mut back);
                assert_eq!(back, codes, "{planes} planes, packed: {packed}");
            }
        }
    }
}
