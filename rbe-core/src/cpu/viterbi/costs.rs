//! What the costs of a search do.

use super::codebook::Codebook;

/// The costs of a search: before each of its steps, of which the first takes a part's last row, and after the last.
pub(super) trait Costs {
    /// That of a class.
    type Cost: Copy + Ord;

    /// Computes those of all classes, and keeps those before the steps that [`kept_before`](Self::kept_before) names and after the last. So
    /// are those before a step that is a multiple of four steps away from the end. The path begins in class `from` or, where there is
    /// none, anywhere. False when the numbers are too small for it.
    fn run(&mut self, book: &Codebook, part: &[i16], from: Option<usize>) -> bool;

    /// The last step before `step` before which costs were kept, as those before `step` were.
    fn kept_before(&self, step: usize) -> usize;

    /// Those of all classes before a step, one before which they were kept.
    fn before(&self, book: &Codebook, step: usize) -> &[Self::Cost];

    /// A cost in units of [`cost`](crate::cpu::kernels::cost); none when no path leads there.
    fn units(book: &Codebook, cost: Self::Cost) -> Option<u32>;
}

/// The place of the first of the least.
pub(super) fn place_of_least<T: Copy + Ord>(costs: &[T]) -> usize {
    let least = costs.iter().copied().min();
    costs.iter().position(|cost| Some(*cost) == least).unwrap_or(0)
}
