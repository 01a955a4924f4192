//! The planes term entropy coded: whole codes, under tables that blocks of alike spread share.
//!
//! Coefficients of a block are near to Gaussian, so codes in the middle are frequent: at the step with the least error for
//! `n` planes, those of llama-books' projections take `n - 0.1` (2 planes) to `n - 0.9` bits (8). At a finer step with more
//! planes the same file has a smaller error (`encode` says which).

use super::Planes;
use crate::codec::bits;
use crate::codec::entropy::{Counts, LARGEST_RATIO, Lanes, SYMBOLS, Table, chunks, encode, parts};
use crate::codec::layout::Block;
use crate::codec::payload::{Reader, Writer};
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;

/// Coefficients after which a chunk ends.
const CHUNK_COEFFICIENTS: usize = 1 << 16;
/// Coders that take turns at a block's codes.
const LANES: usize = 4;

/// What blocks that share a table share: planes, and a class of the codes' variance, two an octave. The variance has less
/// than `2n + 2` octaves, so there are fewer than 255 of them.
type Spread = (u8, u32);

fn spread(planes: u8, codes: &[u8]) -> (Spread, Counts) {
    let mut counts: Counts = [0; SYMBOLS];
    codes.iter().for_each(|code| counts[usize::from(*code)] += 1);
    let square = |code: u64| (2 * code + 1).abs_diff(1 << planes).pow(2);
    let sum: u64 = (0..1 << planes).zip(&counts).map(|(code, count)| square(code) * count).sum();
    // Levels are odd integers, so their mean square is 1 or more.
    let mean = 2 * sum / (codes.len() as u64).max(1);
    let octave = mean.max(2).ilog2();
    ((planes, 2 * octave + (mean >> (octave - 1) & 1) as u32), counts)
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
    groups: Vec<Group>,
    of_block: Vec<u8>,
}

impl Tables {
    /// One table for all blocks of a spread, and of the next too where two would take more than they save. Blocks come
    /// with their planes and codes.
    pub(crate) fn new<C: AsRef<[u8]>>(blocks: impl ParallelIterator<Item = (u8, C)>) -> Self {
        type Sums = (Vec<Option<Spread>>, BTreeMap<Spread, Counts>);
        let add = |sums: &mut Counts, counts: &Counts| {
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        };
        let one = |(mut spreads, mut classes): Sums, (planes, codes): (u8, C)| {
            if planes == 0 {
                spreads.push(None);
            } else {
                let (spread, counts) = spread(planes, codes.as_ref());
                add(classes.entry(spread).or_insert([0; SYMBOLS]), &counts);
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
        Self { groups, of_block }
    }

    /// Bits of codes, tables, and of which is whose, but for what lanes round up.
    pub(crate) fn bits(&self) -> usize {
        let bits: u64 = self.groups.iter().map(Group::cost).sum();
        8 + 8 * self.of_block.len() + (bits >> 16) as usize
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
            let mut codes = vec![0; block.len()];
            self.codes(*block, &mut codes);
            codes
        };
        let tables = Tables::new(blocks.par_iter().map(|block| (self.planes(*block), codes(block))));
        writer.u8(tables.groups.len() as u8);
        tables.groups.iter().for_each(|group| group.table.write(writer));
        writer.bytes(&tables.of_block);
        let encoders: Vec<_> = tables.groups.iter().map(|group| group.table.encoder()).collect();
        let chunk = |chunk: Range<usize>| {
            let blocks = || blocks[chunk.clone()].iter().filter(|block| self.planes(**block) > 0);
            let codes: Vec<Vec<u8>> = blocks().map(codes).collect();
            let encoder = |block: &Block| &encoders[usize::from(tables.of_block[block.index])];
            let runs: Vec<_> =
                codes.iter().zip(blocks()).map(|(codes, block)| (&codes[..], encoder(block))).collect();
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
        reader.expect_ratio(total, "bit-planes")?;
        let mut tables = Vec::new();
        for _ in 0..reader.u8("planes table count")? {
            tables.push(Table::read(reader)?);
        }
        let of_block = reader.take(self.planes.len(), "tables of blocks")?;
        for ((index, planes), table) in self.planes.iter().enumerate().zip(of_block) {
            let largest = tables.get(usize::from(*table)).map(Table::largest);
            if *planes > 0 && largest.is_none_or(|largest| largest >> planes != 0) {
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
        let mut data = vec![0; total];
        let parts = parts(&mut data, &self.starts, &chunks);
        let decode = |((chunk, mut lanes), mut out): ((Range<usize>, Lanes<LANES>), &mut [u8])| {
            let mut codes = vec![0; self.layout.block().pow(2)];
            for block in blocks[chunk].iter().filter(|block| self.planes(**block) > 0) {
                let codes = &mut codes[..block.len()];
                lanes.decode(&decoders[usize::from(of_block[block.index])], codes);
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

/// The bit-planes of a block's codes.
pub(super) fn write_masks(codes: &[u8], block: Block, planes: u8, masks: &mut [u8]) {
    if planes == 0 {
        return;
    }
    let plane_bytes = block.height * block.mask_bytes();
    for (row, codes) in codes.chunks_exact(block.width).enumerate() {
        for (byte, codes) in codes.chunks(8).enumerate() {
            let mut eight = [0; 8];
            eight[..codes.len()].copy_from_slice(codes);
            let eight = u64::from_le_bytes(eight);
            let masks = masks[row * block.mask_bytes() + byte..].iter_mut().step_by(plane_bytes);
            for (mask, bit) in masks.zip((0..planes).rev()) {
                *mask = bits::collect(eight >> bit);
            }
        }
    }
}
