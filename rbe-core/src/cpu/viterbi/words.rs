//! Costs of 16 bits: for small states, which they take the least time for, and wherever bytes do not reach.

use super::codebook::Codebook;
use super::costs::Costs;
use crate::cpu::kernels::OVERREAD;

/// Costs from which the least is taken away, far from where they saturate.
const RENORMALIZE: u16 = 1 << 13;

/// The costs of all classes before each step and after the last, [`OVERREAD`] elements between them.
#[derive(Debug, Default)]
pub(super) struct Words(Vec<u16>);

impl Costs for Words {
    type Cost = u16;

    fn run(&mut self, book: &Codebook, part: &[i16], from: Option<usize>) -> bool {
        let classes = book.classes();
        let stride = classes + OVERREAD;
        let needed = (part.len() + 1) * stride;
        if self.0.len() < needed {
            self.0.resize(needed, 0);
        }
        self.0[..classes].fill(if from.is_some() { u16::MAX } else { 0 });
        if let Some(class) = from {
            self.0[class] = 0;
        }
        for (step, target) in part.iter().rev().enumerate() {
            let (before, next) = self.0[step * stride..].split_at_mut(stride);
            let next = &mut next[..classes];
            let least = book.step.run(before, &book.values, *target, next);
            if least >= RENORMALIZE {
                next.iter_mut().for_each(|cost| *cost -= least);
            }
        }
        true
    }

    fn kept_before(&self, step: usize) -> usize {
        step - 1
    }

    fn before(&self, book: &Codebook, step: usize) -> &[u16] {
        &self.0[step * (book.classes() + OVERREAD)..][..book.classes()]
    }

    fn units(_: &Codebook, cost: u16) -> Option<u32> {
        Some(cost.into())
    }
}
