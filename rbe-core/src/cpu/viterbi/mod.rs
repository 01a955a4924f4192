//! Viterbi's search in the bit-shift trellis: the bits whose values lie closest to a column's.
//!
//! Rows are taken from the last to the first, because then a step shifts the state up and puts a row's own bits
//! below: `state(r) = (2^k state(r+1) + b(r)) mod 2^L`. What a state was before counts only through its **class**,
//! the low `L - k` bits that the step keeps, so costs are kept per class:
//!
//! ```text
//!     next[j] = min over i < 2^k of  costs[s >> k] + (target - value[s])^2,    s = i 2^(L-k) + j
//! ```
//!
//! which is one pass over all `2^L` values with a gather from `costs` that is a fixed shuffle. Costs are integers that saturate:
//! 16-bit ones (`words`) or, for large states, bytes (`bytes`). Every level finds the same bits. No back-pointers are written; the
//! costs of all rows are kept and the best `i` is computed again along the one path that is followed back.
//!
//! The column is a cycle. A first search lets its ends be free; a second goes over the rows on both sides of the
//! seam, where the ends meet, and begins and ends with what the first found farther away.

mod bytes;
mod codebook;
mod costs;
mod words;

use super::kernels::cost;
use bytes::ByteCosts;
pub(crate) use codebook::Codebook;
use codebook::shift;
use costs::Costs;
use words::Words;

/// Lengths of a state that the second search goes to each side of the seam. (Half of this costs half a percent of
/// error, twice as much saves a tenth.)
const DEPTH: usize = 12;
/// The most rows it goes, so that it takes at most three quarters of the first search's time in a column of 256.
const MAX_DEPTH: usize = 96;

/// A search with its memory, kept from column to column: about `2 rows 2^(L-k)` bytes, of states from 14 bits on half of it.
#[derive(Debug, Default)]
pub(crate) struct Search {
    words: Words,
    bytes: ByteCosts,
    /// The column in fixed point, and the part of it that is searched.
    targets: Vec<i16>,
    part: Vec<i16>,
}

impl Search {
    /// The bits whose values, times `scale`, lie closest to `column`: `codes` gets each row's own bits and
    /// `values` the integers that `scale` multiplies.
    ///
    /// # Panics
    /// When the slices differ in length.
    pub(crate) fn column(
        &mut self,
        book: &Codebook,
        column: &[f32],
        scale: f32,
        codes: &mut [u8],
        values: &mut [i8],
    ) {
        assert!(column.len() == codes.len() && column.len() == values.len());
        let unit = f32::from(1u16 << shift(book.code)) / scale;
        self.targets.clear();
        self.targets.extend(column.iter().map(|value| (value * unit).round() as i16));
        if column.len() * usize::from(book.code.bits()) <= usize::from(book.code.state_bits()) {
            try_all(book, &self.targets, codes, values);
        } else {
            self.cycle(book, codes);
        }
        book.code.decode(codes, values);
    }

    /// Searches with free ends, then again around the seam.
    fn cycle(&mut self, book: &Codebook, codes: &mut [u8]) {
        let rows = codes.len();
        let depth = DEPTH * usize::from(book.code.state_bits().div_ceil(book.code.bits()));
        let depth = depth.min(MAX_DEPTH);
        // A short column several times around, of which the middle is taken: ends do the least harm there.
        let turns = (2 * depth).div_ceil(rows);
        let seam = (turns - 1) * rows / 2;
        self.take_part(0, turns * rows);
        self.path(book, None, |n, code| {
            if (seam..seam + rows).contains(&n) {
                codes[n % rows] = code;
            }
        });
        // The ends of what was taken meet at the seam; rows far from it stay as they are. Where none are far, once
        // more from the other side.
        let half = depth.min(rows / 2);
        let mut first = seam + rows - half;
        for _ in 0..if 2 * half < rows { 1 } else { 2 } {
            self.take_part(first, 2 * half);
            let ends = [first + 2 * half, first].map(|row| book.class(codes, row));
            self.path(book, Some(ends), |n, code| codes[(first + n) % rows] = code);
            first += half;
        }
    }

    /// Rows `first..first + len` of the cycle, for [`path`](Self::path).
    fn take_part(&mut self, first: usize, len: usize) {
        self.part.clear();
        self.part.extend((first..first + len).map(|row| self.targets[row % self.targets.len()]));
    }

    /// Finds the best path through the part's rows, from the last to the first, and calls `visit` with each row's place in the
    /// part, the first row first, and its own bits. It begins and ends in the classes of `ends` or, where there are none, anywhere.
    fn path(&mut self, book: &Codebook, ends: Option<[usize; 2]>, mut visit: impl FnMut(usize, u8)) {
        if book.bytes.is_some() && search(&mut self.bytes, book, &self.part, ends, &mut visit) {
            return;
        }
        let found = search(&mut self.words, book, &self.part, ends, &mut visit);
        debug_assert!(found, "words always reach");
    }
}

/// [`Search::path`] with these costs. False when they do not reach, in which case nothing was visited.
fn search(
    costs: &mut impl Costs,
    book: &Codebook,
    part: &[i16],
    ends: Option<[usize; 2]>,
    mut visit: impl FnMut(usize, u8),
) -> bool {
    if !costs.run(book, part, ends.map(|[from, _]| from)) {
        return false;
    }
    let end = ends.map_or_else(|| costs.cheapest(book, part.len()), |[_, end]| end);
    let reached = costs.cost(book, part.len(), end).is_some();
    if reached {
        follow(costs, book, part, end, &mut visit);
    }
    reached
}

/// Follows the best path to class `end` back.
fn follow(costs: &impl Costs, book: &Codebook, part: &[i16], end: usize, visit: &mut impl FnMut(usize, u8)) {
    let bits = book.code.bits();
    let mut class = end;
    for (n, target) in part.iter().enumerate() {
        let candidates = (0..1 << bits).map(|i| i * book.classes() + class);
        let total = |state: &usize| {
            let before = costs.cost(book, part.len() - 1 - n, state >> bits).unwrap_or(u32::MAX);
            before.saturating_add(cost(*target, book.values[*state]).into())
        };
        let state = candidates.min_by_key(total).unwrap_or(0);
        visit(n, (state & ((1 << bits) - 1)) as u8);
        class = state >> bits;
    }
}

/// A cycle no longer than a state: every one is tried.
fn try_all(book: &Codebook, targets: &[i16], codes: &mut [u8], values: &mut [i8]) {
    let bits = usize::from(book.code.bits());
    let write = |word: u32, codes: &mut [u8]| {
        let code = |row: usize| (word >> (row * bits)) as u8 & ((1 << bits) - 1);
        codes.iter_mut().enumerate().for_each(|(row, out)| *out = code(row));
    };
    let mut error = |word: &u32| -> u64 {
        write(*word, codes);
        book.code.decode(codes, values);
        let difference = |(target, value): (&i16, &i8)| {
            (i64::from(*target) - (i64::from(*value) << shift(book.code))).unsigned_abs().pow(2)
        };
        targets.iter().zip(&*values).map(difference).sum()
    };
    let best = (0..1u32 << (targets.len() * bits)).min_by_key(&mut error).unwrap_or(0);
    write(best, codes);
}

#[cfg(test)]
mod tests;
