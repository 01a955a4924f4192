//! The sparse term laid out for products: sixteen rows in the lanes of a register.
//!
//! A block is cut into chunks of sixteen rows, and a chunk into slots: the first entry of each row that has one, then the
//! second, and so on (the sliced ELLPACK of Kreutzer et al., SELL-C, arXiv 1307.6209, with `C = 16`). Nothing is padded: a
//! slot holds the columns and the fields of its entries alone, and a mask says which rows these belong to.
//!
//! ```text
//!     rows of a chunk          slot 0               slot 1            slot 2
//!     0   a . . b . c          mask  1101           mask  1001        mask  0001
//!     1   . . . . . .          columns 0 2 1        columns 3 3       columns 5
//!     2   . . d . . .          fields  a d e        fields  b f       fields  c
//!     3   . e . f . .
//! ```
//!
//! So one expansion by the mask puts a slot's columns into the lanes of their rows, and its fields likewise; the inputs of a
//! block are looked up in registers. An entry takes three bytes, and its slot two more.

use super::entries::Place;
use crate::codec::term::Sparse;
use crate::codec::term::sparse::Format;
use crate::codec::term::summand::Summand;
use crate::codec::{Block, Layout};
use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

/// Rows of a chunk: the lanes of a 64-byte register.
pub(in crate::cpu) const CHUNK_ROWS: usize = 16;
/// Entries that may be read beyond the last.
pub(in crate::cpu) const SLACK: usize = CHUNK_ROWS;

/// How many slots and entries a chunk has.
#[derive(Clone, Copy, Debug)]
struct Extent {
    slots: u16,
    entries: u16,
}

/// The sparse entries of every block in chunks.
#[derive(Clone, Debug)]
pub(in crate::cpu) struct PackedSparse {
    /// The term without its entries.
    head: Sparse,
    /// The first slot and the first entry of each block.
    starts: Vec<(usize, usize)>,
    /// Block after block, and in each from the top.
    extents: Vec<Extent>,
    /// Which rows have an entry in each slot.
    masks: Vec<u16>,
    /// The column in its block of each entry, and [`SLACK`].
    cols: Vec<u8>,
    /// The field of each entry ([`Format::field`]), and [`SLACK`].
    fields: Vec<u16>,
}

/// The entries of sixteen rows of a block.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Chunk<'a> {
    /// The first of its rows, in the block.
    pub row: usize,
    /// Slot by slot, which rows have an entry.
    pub masks: &'a [u16],
    /// The columns of its entries, and at least [`SLACK`] bytes more.
    pub cols: &'a [u8],
    /// Their fields, likewise.
    pub fields: &'a [u16],
}

/// Chunks down a block.
fn chunks(block: Block) -> usize {
    block.height.div_ceil(CHUNK_ROWS)
}

impl PackedSparse {
    /// Packs a term.
    pub(in crate::cpu) fn new(term: &Sparse) -> Self {
        let entries = term.coefficients();
        let mut laid_out = Self {
            head: term.head(),
            starts: Vec::with_capacity(term.layout().blocks()),
            extents: Vec::new(),
            masks: Vec::new(),
            cols: Vec::with_capacity(entries + SLACK),
            fields: Vec::with_capacity(entries + SLACK),
        };
        let mut rows: [Vec<(u8, u16)>; CHUNK_ROWS] = Default::default();
        for block in term.layout().iter() {
            laid_out.starts.push((laid_out.masks.len(), laid_out.cols.len()));
            for first in (0..block.height).step_by(CHUNK_ROWS) {
                rows.iter_mut().for_each(Vec::clear);
                let end = (first + CHUNK_ROWS).min(block.height);
                term.for_each_field(block, first..end, |row, col, field| {
                    // No term has others; gathers do not look where a block ends.
                    assert!(col < block.width, "column {col} of a block {} wide", block.width);
                    rows[row - first].push((col as u8, field));
                });
                laid_out.push_chunk(&rows);
            }
        }
        laid_out.cols.resize(entries + SLACK, 0);
        laid_out.fields.resize(entries + SLACK, 0);
        laid_out
    }

    fn push_chunk(&mut self, rows: &[Vec<(u8, u16)>; CHUNK_ROWS]) {
        let slots = rows.iter().map(Vec::len).max().unwrap_or(0);
        for slot in 0..slots {
            let mut mask = 0;
            for (lane, row) in rows.iter().enumerate() {
                if let Some((col, field)) = row.get(slot) {
                    mask |= 1 << lane;
                    self.cols.push(*col);
                    self.fields.push(*field);
                }
            }
            self.masks.push(mask);
        }
        // Of sixteen rows with at most 256 entries each.
        let entries = rows.iter().map(Vec::len).sum::<usize>();
        self.extents.push(Extent { slots: slots as u16, entries: entries as u16 });
    }

    /// The layout of the matrix.
    pub(in crate::cpu) fn layout(&self) -> Layout {
        self.head.layout()
    }

    /// How fields are to be read.
    pub(in crate::cpu) fn format(&self) -> Format {
        self.head.format()
    }

    /// What the numbers of a block's fields are multiplied by.
    pub(in crate::cpu) fn scale(&self, block: Block) -> f32 {
        self.head.scale(block)
    }

    /// Entries of all blocks.
    pub(in crate::cpu) fn coefficients(&self) -> usize {
        self.cols.len() - SLACK
    }

    /// A block's chunks from the top.
    #[inline(always)]
    pub(in crate::cpu) fn chunks(&self, block: Block) -> impl Iterator<Item = Chunk<'_>> {
        let layout = self.layout();
        // Every block begins at a multiple of a chunk's rows: those above fill theirs.
        let first = block.row / CHUNK_ROWS * layout.block_cols() + layout.place(block).1 * chunks(block);
        let (mut slot, mut entry) = self.starts[block.index];
        self.extents[first..first + chunks(block)].iter().enumerate().map(move |(n, extent)| {
            let chunk = Chunk {
                row: n * CHUNK_ROWS,
                masks: &self.masks[slot..slot + usize::from(extent.slots)],
                cols: &self.cols[entry..],
                fields: &self.fields[entry..],
            };
            slot += usize::from(extent.slots);
            entry += usize::from(extent.entries);
            chunk
        })
    }

    /// Visits the entries of a block as `(row, column, field)` in row-major order.
    pub(in crate::cpu) fn for_each_field(&self, block: Block, mut f: impl FnMut(usize, usize, u16)) {
        for chunk in self.chunks(block) {
            for lane in 0..CHUNK_ROWS {
                let mut first = 0;
                for mask in chunk.masks.iter().take_while(|mask| **mask >> lane & 1 == 1) {
                    let at = first + (mask & ((1 << lane) - 1)).count_ones() as usize;
                    f(chunk.row + lane, chunk.cols[at].into(), chunk.fields[at]);
                    first += mask.count_ones() as usize;
                }
            }
        }
    }

    /// The places of a block's entries in row-major order, from its columns to its rows or the other way around, after
    /// those that `places` holds.
    pub(in crate::cpu) fn push_places(&self, block: Block, transposed: bool, places: &mut Vec<Place>) {
        self.for_each_field(block, |row, col, _| places.push(Place::new(row as u8, col as u8, transposed)));
    }

    /// The entries of a block, slot by slot: their places and values, in place of what the vectors held.
    pub(in crate::cpu) fn entries(
        &self,
        block: Block,
        transposed: bool,
        places: &mut Vec<Place>,
        values: &mut Vec<f32>,
    ) {
        places.clear();
        values.clear();
        for chunk in self.chunks(block) {
            let first = places.len();
            for mask in chunk.masks {
                let mut mask = *mask;
                while mask != 0 {
                    let row = chunk.row as u8 + mask.trailing_zeros() as u8;
                    places.push(Place::new(row, chunk.cols[places.len() - first], transposed));
                    mask &= mask - 1;
                }
            }
            let fields = &chunk.fields[..places.len() - first];
            match self.format() {
                Format::Word32 | Format::RowMask => {
                    values.resize(places.len(), 0.0);
                    fields.reinterpret_cast::<f16>().convert_to_f32_slice(&mut values[first..]);
                }
                format => values.extend(fields.iter().map(|field| format.value(*field, 1.0))),
            }
        }
        let scale = self.scale(block);
        values.iter_mut().for_each(|value| *value *= scale);
    }

    /// Entries of a block.
    pub(in crate::cpu) fn count(&self, block: Block) -> usize {
        self.head.count(block)
    }

    /// Bytes in memory.
    pub(in crate::cpu) fn bytes(&self) -> usize {
        self.head.size_in_bytes()
            + size_of_val(&self.starts[..])
            + size_of_val(&self.extents[..])
            + size_of_val(&self.masks[..])
            + size_of_val(&self.cols[..])
            + size_of_val(&self.fields[..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::term::sparse::{Entry, FORMATS};

    /// The picture above, twice: at the top of a block and at the bottom of one that the matrix's border cuts.
    #[test]
    fn slots_hold_first_entries_then_second_ones() {
        let layout = Layout::new(20, 6, 32).unwrap();
        let entries = [(0, 0), (0, 3), (0, 5), (2, 2), (3, 1), (3, 3)];
        let entry =
            |row: u8, n: usize| Entry { row: row + entries[n].0, col: entries[n].1, value: 1.0 + n as f32 };
        let block: Vec<Entry> = [0, 16].iter().flat_map(|row| (0..6).map(move |n| entry(*row, n))).collect();
        for format in FORMATS {
            let term = Sparse::pack(layout, format, std::slice::from_ref(&block)).unwrap();
            let packed = PackedSparse::new(&term);
            let whole = layout.block_at(0, 0);
            assert_eq!(packed.chunks(whole).count(), 2);
            for (n, chunk) in packed.chunks(whole).enumerate() {
                assert_eq!(chunk.row, n * CHUNK_ROWS);
                assert_eq!(chunk.masks, [0b1101, 0b1001, 0b0001]);
                assert_eq!(chunk.cols[..6], [0, 2, 1, 3, 3, 5]);
            }
            let (mut read, mut stored) = (Vec::new(), Vec::new());
            packed.for_each_field(whole, |row, col, field| read.push((row, col, field)));
            term.for_each_field(whole, 0..whole.height, |row, col, field| stored.push((row, col, field)));
            assert_eq!(read, stored);
            let (mut by_slots, mut values, mut by_rows) = (Vec::new(), Vec::new(), Vec::new());
            packed.entries(whole, false, &mut by_slots, &mut values);
            packed.push_places(whole, true, &mut by_rows);
            assert_eq!(by_slots[..3], [(0, 0), (2, 2), (3, 1)].map(|(to, from)| Place { to, from }));
            assert_eq!(by_rows[..3], [(0, 0), (3, 0), (5, 0)].map(|(to, from)| Place { to, from }));
            let values: Vec<f32> = values[..6].iter().map(|value| value.round()).collect();
            assert_eq!(values, [1.0, 4.0, 5.0, 2.0, 6.0, 3.0]);
        }
    }
}
