//! What the costs of a search do.

use super::codebook::Codebook;

/// The costs of a search: before each of its steps, of which the first takes a part's last row, and after the last.
pub(super) trait Costs {
    /// Computes those of all classes. The path begins in class `from` or, where there is none, anywhere. False when the numbers are
    /// too small for it.
    fn run(&mut self, book: &Codebook, part: &[i16], from: Option<usize>) -> bool;

    /// That of a class before a step, in units of [`cost`](crate::cpu::kernels::cost); none when no path leads there.
    fn cost(&self, book: &Codebook, step: usize, class: usize) -> Option<u32>;

    /// The first class of the least cost before a step.
    fn cheapest(&self, book: &Codebook, step: usize) -> usize;
}

/// The place of the first of the least.
pub(super) fn place_of_least<T: Copy + Ord>(costs: &[T]) -> usize {
    let least = costs.iter().copied().min();
    costs.iter().position(|cost| Some(*cost) == least).unwrap_or(0)
}
