//! Costs in bytes: for large states, of which a register takes twice as many, and whose costs do not leave the caches as early.
//!
//! A unit is two of those of 16 bits, with one bit a row four, so that a mean squared error is about 7 units, or 3: what comes into
//! a byte is then 30 times the mean squared error behind the best path, or 70, where a path that was the best in the end was seldom
//! as far as 20. (A row's error is the larger the fewer bits it has, and few of the classes can go on well where a target lies far
//! out; with half the unit, one bit had 0.2 % more error.)

use super::codebook::{Codebook, dropped};
use super::costs::Costs;
use crate::cpu::kernels::{ByteRow, DEAD, cost};
use crate::cpu::layout::planes::Line;
use std::ops::Range;

/// Costs from which the least is taken away.
const RENORMALIZE: u8 = 32;
/// Bits of a path that begins in a given class which are all tried, to the last unit: few classes can be reached there, and all of
/// them may be too far from a target for a byte.
const FIRST_BITS: usize = 8;

/// Rows of one bit between costs that are kept: there are so many classes that those of every row would fill the caches. Over four
/// rows, following a path back tries all sixteen ways.
const APART: usize = 4;

/// The costs of all classes before the first steps of a path that begins in a class, then before some of the steps, and after the last.
#[derive(Debug, Default)]
pub(super) struct ByteCosts {
    /// Those of each step that are kept, and two that are not, a line between them.
    lines: Vec<Line>,
    /// Steps.
    steps: usize,
    /// Of these, the first few.
    begun: usize,
    /// How far kept costs are apart.
    apart: usize,
    /// What a step writes down for itself.
    table: Vec<Line>,
}

/// Lines of the costs of all classes, and one: at a distance of a power of two what is written would meet what is read in a cache.
fn stride(book: &Codebook) -> usize {
    book.classes() / size_of::<Line>() + 1
}

impl ByteCosts {
    /// Whether the costs before a step are kept: those in front of a number of rows that `apart` divides, and the first.
    fn keeps(&self, step: usize) -> bool {
        step <= self.begun || (self.steps - step).is_multiple_of(self.apart)
    }

    /// The lines of the costs before a step.
    fn place(&self, book: &Codebook, step: usize) -> Range<usize> {
        let place = if self.keeps(step) { step } else { self.steps + 1 + step % 2 };
        place * stride(book)..(place + 1) * stride(book)
    }

    /// The costs before a step, to be written.
    fn costs_mut(&mut self, book: &Codebook, step: usize) -> &mut [u8] {
        let place = self.place(book, step);
        &mut Line::bytes_mut(&mut self.lines[place])[..book.classes()]
    }

    /// The costs of the first steps from a class.
    fn begin(&mut self, book: &Codebook, part: &[i16], from: usize) {
        let bits = book.code.bits();
        let mut paths = vec![0u32];
        for step in 0..=self.begun {
            let least = paths.iter().copied().min().unwrap_or(0);
            let costs = self.costs_mut(book, step);
            costs.fill(DEAD);
            let last = costs.len() - 1;
            let class = |path: usize| (from << (step * usize::from(bits)) | path) & last;
            for (path, cost) in paths.iter().enumerate() {
                costs[class(path)] = ((cost - least) >> dropped(book.code)).min(u32::from(DEAD) - 1) as u8;
            }
            if step < self.begun {
                let target = part[part.len() - 1 - step];
                let longer = |path: usize| {
                    let state = class(path >> bits) << bits | path & ((1 << bits) - 1);
                    paths[path >> bits] + u32::from(cost(target, book.values[state]))
                };
                paths = (0..paths.len() << bits).map(longer).collect();
            }
        }
    }
}

impl Costs for ByteCosts {
    type Cost = u8;

    fn run(&mut self, book: &Codebook, part: &[i16], from: Option<usize>) -> bool {
        let Some(bytes) = &book.bytes else { return false };
        let bits = usize::from(book.code.bits());
        self.steps = part.len();
        self.begun = from.map_or(0, |_| (FIRST_BITS / bits).min(part.len()));
        self.apart = if bits == 1 { APART } else { 1 };
        let grow = |lines: &mut Vec<Line>, needed| {
            if lines.len() < needed {
                lines.resize(needed, Line([0; 64]));
            }
        };
        grow(&mut self.lines, (part.len() + 3) * stride(book));
        grow(&mut self.table, bytes.blocks.table_lines());
        match from {
            Some(class) => self.begin(book, part, class),
            None => self.costs_mut(book, 0).fill(0),
        }
        let mut excess = 0;
        for (step, target) in part.iter().rev().enumerate().skip(self.begun) {
            let places = [step, step + 1].map(|step| self.place(book, step));
            let [before, next] = self.lines.get_disjoint_mut(places).expect("two places");
            let next = &mut Line::bytes_mut(next)[..book.classes()];
            let row = ByteRow { blocks: &bytes.blocks, target: *target, before: Line::bytes(before), excess };
            let least = bytes.step.run(row, &mut self.table, next);
            if least == DEAD {
                return false;
            }
            excess = if least < RENORMALIZE { 0 } else { least };
        }
        true
    }

    fn kept_before(&self, step: usize) -> usize {
        if step > self.begun { step.saturating_sub(self.apart).max(self.begun) } else { step - 1 }
    }

    fn before(&self, book: &Codebook, step: usize) -> &[u8] {
        debug_assert!(self.keeps(step));
        &Line::bytes(&self.lines[step * stride(book)..])[..book.classes()]
    }

    #[inline]
    fn units(book: &Codebook, cost: u8) -> Option<u32> {
        (cost < DEAD).then(|| u32::from(cost) << dropped(book.code))
    }
}
