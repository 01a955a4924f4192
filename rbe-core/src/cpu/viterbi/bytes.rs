//! Costs in bytes: for large states, of which a register takes twice as many, and whose costs do not leave the caches as early.
//!
//! A unit is two of those of 16 bits, with one bit a row four, so that a mean squared error is about 7 units, or 3: what comes into
//! a byte is then 30 times the mean squared error behind the best path, or 70, where a path that was the best in the end was seldom
//! as far as 20. (A row's error is the larger the fewer bits it has, and few of the classes can go on well where a target lies far
//! out; with half the unit, one bit had 0.2 % more error.)

use super::codebook::{Codebook, dropped};
use super::costs::{Costs, place_of_least};
use crate::cpu::kernels::{BYTE_OVERREAD, ByteRow, DEAD, cost};
use crate::cpu::layout::planes::Line;

/// Costs from which the least is taken away.
const RENORMALIZE: u8 = 32;
/// Bits of a path that begins in a given class which are all tried, to the last unit: few classes can be reached there, and all of
/// them may be too far from a target for a byte.
const FIRST_BITS: u8 = 8;

/// The costs of all classes before each step and after the last, a line between them.
#[derive(Debug, Default)]
pub(super) struct ByteCosts {
    lines: Vec<Line>,
    /// What a step writes down for itself.
    table: Vec<Line>,
}

/// Lines of the costs of all classes, and one that a step may read.
fn stride(book: &Codebook) -> usize {
    const { assert!(BYTE_OVERREAD <= size_of::<Line>()) };
    book.classes() / size_of::<Line>() + 1
}

impl ByteCosts {
    /// The costs before a step.
    fn costs(&self, book: &Codebook, step: usize) -> &[u8] {
        &Line::bytes(&self.lines[step * stride(book)..])[..book.classes()]
    }

    /// The same, to be written.
    fn costs_mut(&mut self, book: &Codebook, step: usize) -> &mut [u8] {
        let stride = stride(book);
        &mut Line::bytes_mut(&mut self.lines[step * stride..][..stride])[..book.classes()]
    }

    /// The costs of the first steps from a class, and how many they are.
    fn begin(&mut self, book: &Codebook, part: &[i16], from: usize) -> usize {
        let bits = book.code.bits();
        let steps = usize::from(FIRST_BITS / bits).min(part.len());
        let mut paths = vec![0u32];
        for step in 0..=steps {
            let least = paths.iter().copied().min().unwrap_or(0);
            let costs = self.costs_mut(book, step);
            costs.fill(DEAD);
            let last = costs.len() - 1;
            let class = |path: usize| (from << (step * usize::from(bits)) | path) & last;
            for (path, cost) in paths.iter().enumerate() {
                costs[class(path)] = ((cost - least) >> dropped(book.code)).min(u32::from(DEAD) - 1) as u8;
            }
            if step < steps {
                let target = part[part.len() - 1 - step];
                let longer = |path: usize| {
                    let state = class(path >> bits) << bits | path & ((1 << bits) - 1);
                    paths[path >> bits] + u32::from(cost(target, book.values[state]))
                };
                paths = (0..paths.len() << bits).map(longer).collect();
            }
        }
        steps
    }
}

impl Costs for ByteCosts {
    fn run(&mut self, book: &Codebook, part: &[i16], from: Option<usize>) -> bool {
        let Some(bytes) = &book.bytes else { return false };
        let (classes, stride) = (book.classes(), stride(book));
        let grow = |lines: &mut Vec<Line>, needed| {
            if lines.len() < needed {
                lines.resize(needed, Line([0; 64]));
            }
        };
        grow(&mut self.lines, (part.len() + 1) * stride);
        grow(&mut self.table, bytes.blocks.table_lines());
        let begun = match from {
            Some(class) => self.begin(book, part, class),
            None => {
                self.costs_mut(book, 0).fill(0);
                0
            }
        };
        let mut excess = 0;
        for (step, target) in part.iter().rev().enumerate().skip(begun) {
            let (before, next) = self.lines[step * stride..].split_at_mut(stride);
            let next = &mut Line::bytes_mut(&mut next[..stride])[..classes];
            let row = ByteRow { blocks: &bytes.blocks, target: *target, before: Line::bytes(before), excess };
            let least = bytes.step.run(row, &mut self.table, next);
            if least == DEAD {
                return false;
            }
            excess = if least < RENORMALIZE { 0 } else { least };
        }
        true
    }

    fn cost(&self, book: &Codebook, step: usize, class: usize) -> Option<u32> {
        let cost = self.costs(book, step)[class];
        (cost < DEAD).then(|| u32::from(cost) << dropped(book.code))
    }

    fn cheapest(&self, book: &Codebook, step: usize) -> usize {
        place_of_least(self.costs(book, step))
    }
}
