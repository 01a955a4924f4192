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
//! 16-bit ones (`words`) or, for large states, bytes (`bytes`). Every level finds the same bits. No back-pointers are written; costs
//! are kept and the best `i` is computed again along the one path that is followed back.
//!
//! The column is a cycle. A search goes once around with free ends and on over the seam, where the ends meet; the path is followed
//! back from what it has farther away until it is on itself. Should it never be (with one bit, two paths may go side by side for long),
//! a second search goes over the rows on both sides of the seam, and begins and ends with what the first found farther away. So it is
//! with short columns too.

mod bytes;
mod codebook;
mod costs;
mod words;

use super::kernels::cost;
use bytes::ByteCosts;
pub(crate) use codebook::Codebook;
use codebook::shift;
use costs::{Costs, place_of_least};
use words::Words;

/// Lengths of a state that a search goes beyond the seam. (Half of this costs half a percent of error, twice as much saves a tenth.)
const DEPTH: usize = 12;
/// The most rows it goes, a multiple of four, so that it takes at most three eighths of the time of once around a column of 256.
const MAX_DEPTH: usize = 96;

/// A search with its memory, kept from column to column: about `2 (rows + 96) 2^(L-k)` bytes, of states from 14 bits on half of it.
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

    /// Searches around and over the seam.
    fn cycle(&mut self, book: &Codebook, codes: &mut [u8]) {
        let rows = codes.len();
        let depth = DEPTH * usize::from(book.code.state_bits().div_ceil(book.code.bits()));
        let depth = depth.min(MAX_DEPTH);
        if 2 * depth < rows {
            if !self.around(book, depth, codes) {
                self.mend_seam(book, depth, 0, codes);
            }
            return;
        }
        // A short column several times around, of which the middle is taken: ends do the least harm there.
        let turns = (2 * depth).div_ceil(rows);
        let seam = (turns - 1) * rows / 2;
        self.take_part(0, turns * rows);
        self.path(book, None, |n, code| {
            if (seam..seam + rows).contains(&n) {
                codes[n % rows] = code;
            }
        });
        self.mend_seam(book, depth, seam, codes);
    }

    /// Searches around row `seam`, where the ends of what was found meet; rows far from it stay as they are. Where none are far, once
    /// more from the other side.
    fn mend_seam(&mut self, book: &Codebook, depth: usize, seam: usize, codes: &mut [u8]) {
        let rows = codes.len();
        let half = depth.min(rows / 2);
        let mut first = seam + rows - half;
        for _ in 0..if 2 * half < rows { 1 } else { 2 } {
            self.take_part(first, 2 * half);
            let ends = [first + 2 * half, first].map(|row| book.class(codes, row));
            self.path(book, Some(ends), |n, code| codes[(first + n) % rows] = code);
            first += half;
        }
    }

    /// Searches once around with free ends and `depth` rows farther. False when what comes from there does not meet the path, which
    /// `codes` then has with a seam.
    fn around(&mut self, book: &Codebook, depth: usize, codes: &mut [u8]) -> bool {
        self.take_part(codes.len() - depth, depth + codes.len());
        let closed = book.bytes.as_ref().and_then(|_| around(&mut self.bytes, book, &self.part, codes));
        let closed = closed.or_else(|| around(&mut self.words, book, &self.part, codes));
        debug_assert!(closed.is_some(), "words always reach");
        closed.unwrap_or(false)
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
fn search<C: Costs>(
    costs: &mut C,
    book: &Codebook,
    part: &[i16],
    ends: Option<[usize; 2]>,
    mut visit: impl FnMut(usize, u8),
) -> bool {
    if !costs.run(book, part, ends.map(|[from, _]| from)) {
        return false;
    }
    let last = costs.before(book, part.len());
    let end = ends.map_or_else(|| place_of_least(last), |[_, end]| end);
    let reached = C::units(book, last[end]).is_some();
    if reached {
        back(costs, book, part, end).enumerate().for_each(|(n, (code, _))| visit(n, code));
    }
    reached
}

/// [`Search::around`] with these costs: the part ends with all rows of the column, after some of the last. None when they do not reach.
fn around<C: Costs>(costs: &mut C, book: &Codebook, part: &[i16], codes: &mut [u8]) -> Option<bool> {
    if !costs.run(book, part, None) {
        return None;
    }
    let rows = codes.len();
    let depth = part.len() - rows;
    debug_assert!(depth.is_multiple_of(4), "costs are kept there");
    let free = place_of_least(costs.before(book, rows));
    codes.iter_mut().zip(back(costs, book, &part[depth..], free)).for_each(|(out, (code, _))| *out = code);
    // Over the seam to this path, which went on as it did when it came from there, and back until they meet.
    let end = book.class(codes, rows - depth);
    C::units(book, costs.before(book, part.len())[end])?;
    let mut closing = Vec::with_capacity(2 * depth);
    for (n, (code, class)) in back(costs, book, part, end).take(rows).enumerate() {
        closing.push(code);
        if n >= depth && class == book.class(codes, n + 1 - depth) {
            let from = rows - depth;
            closing.into_iter().enumerate().for_each(|(n, code)| codes[(from + n) % rows] = code);
            return Some(true);
        }
    }
    Some(false)
}

/// The best path to class `end` back: each row's own bits and the class before it, the part's first row first.
fn back(costs: &impl Costs, book: &Codebook, part: &[i16], end: usize) -> impl Iterator<Item = (u8, usize)> {
    let (bits, last) = (usize::from(book.code.bits()), book.classes() - 1);
    // The class after the rows that are left, below the bits that came before it, and how many rows of these are to be visited.
    let (mut path, mut found) = (end, 0);
    part.iter().enumerate().map(move |(n, _)| {
        if found == 0 {
            let step = part.len() - n;
            let before = costs.kept_before(step);
            found = step - before;
            path = best_way(costs, book, &part[n..n + found], (before, path));
        }
        let code = path as u8 & ((1 << bits) - 1);
        path >>= bits;
        found -= 1;
        (code, path & last)
    })
}

/// The best of all ways to a class over some rows, which begin before step `before`: the class below the bits that came before it.
fn best_way<C: Costs>(costs: &C, book: &Codebook, rows: &[i16], (before, class): (usize, usize)) -> usize {
    let (bits, last) = (usize::from(book.code.bits()), book.values.len() - 1);
    let before = costs.before(book, before);
    let ways = (0..1 << (bits * rows.len())).map(|i| i * before.len() + class);
    let total = |way: &usize| {
        let before = C::units(book, before[way >> (bits * rows.len())]).unwrap_or(u32::MAX);
        let row =
            |(n, target): (usize, &i16)| u32::from(cost(*target, book.values[way >> (bits * n) & last]));
        before.saturating_add(rows.iter().enumerate().map(row).sum())
    };
    ways.min_by_key(total).unwrap_or(0)
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
