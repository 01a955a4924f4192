//! The step of Viterbi's search in the bit-shift trellis: a row's values after each state's costs.
//!
//! ```text
//!     next[j] = min over i < W of  costs[s / W] + cost(target, values[s]),    s = i classes + j
//! ```
//!
//! The `W` states that follow a class lie side by side, so a register of states needs a `W`-th of a register of costs, each
//! repeated `W` times: one shuffle with a fixed index. The values stream past in `W` runs, so a few registers of each are taken at
//! once: many runs at a power-of-two distance do not fit the first cache.

use crate::cpu::kernels::isa::Isa;

/// Elements of `costs` that a step may read beyond the last class: the largest register's.
pub(in crate::cpu) const OVERREAD: usize = 32;
/// Registers of next costs made at once.
const TILE: usize = 4;

/// The cost of a value: `(target - value)^2 / 2^15`, rounded.
#[inline(always)]
pub(in crate::cpu) fn cost(target: i16, value: i16) -> u16 {
    let difference = i32::from(target.saturating_sub(value));
    ((difference * difference + (1 << 14)) >> 15) as u16
}

/// Costs and values in the lanes of a register, of 16 bits each.
pub(in crate::cpu) trait CostLanes: Isa {
    /// States in a register, at most [`OVERREAD`].
    const STATES: usize;
    /// A register.
    type Register: Copy;

    /// The largest cost in every lane.
    fn worst(self) -> Self::Register;
    /// A number in every lane.
    fn splat(self, value: i16) -> Self::Register;
    /// What [`spread`](Self::spread) repeats costs by: class `n / W` to lane `n`.
    fn repeat<const W: usize>(self) -> Self::Register;
    /// The costs from `costs` on, each in as many lanes as `repeat` says.
    ///
    /// # Safety
    /// A register's costs can be read.
    unsafe fn spread(self, costs: *const u16, repeat: Self::Register) -> Self::Register;
    /// A register's numbers.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn load(self, values: *const i16) -> Self::Register;
    /// Writes a register's costs.
    ///
    /// # Safety
    /// They can be written.
    unsafe fn store(self, register: Self::Register, costs: *mut u16);
    /// [`cost`] in every lane.
    fn cost(self, target: Self::Register, values: Self::Register) -> Self::Register;
    /// Sums that saturate.
    fn add(self, a: Self::Register, b: Self::Register) -> Self::Register;
    /// The smaller cost in every lane.
    fn min(self, a: Self::Register, b: Self::Register) -> Self::Register;
    /// The smallest cost of all lanes.
    fn least(self, register: Self::Register) -> u16;
}

/// `next` by the formula above, and the least of it; `costs` has [`OVERREAD`] elements more than `next`.
#[inline(always)]
pub(in crate::cpu) fn step<I: CostLanes, const W: usize>(
    isa: I,
    costs: &[u16],
    values: &[i16],
    target: i16,
    next: &mut [u16],
) -> u16 {
    let classes = next.len();
    assert!(classes.is_multiple_of(TILE * I::STATES));
    assert!(values.len() == W * classes && costs.len() >= classes + I::STATES);
    let (repeat, target) = (isa.repeat::<W>(), isa.splat(target));
    let mut least = isa.worst();
    for (n, next) in next.chunks_exact_mut(TILE * I::STATES).enumerate() {
        let mut best = [isa.worst(); TILE];
        for i in 0..W {
            for (m, best) in best.iter_mut().enumerate() {
                let state = i * classes + (n * TILE + m) * I::STATES;
                // SAFETY: a register more than `state` is at most `W classes`, the length of `values`, and a register more than
                // `state / W` at most the length of `costs`: both by the assertions above.
                let (before, values) = unsafe {
                    (isa.spread(costs.as_ptr().add(state / W), repeat), isa.load(values.as_ptr().add(state)))
                };
                *best = isa.min(*best, isa.add(before, isa.cost(target, values)));
            }
        }
        for (next, best) in next.chunks_exact_mut(I::STATES).zip(best) {
            // SAFETY: `next` is a register's.
            unsafe { isa.store(best, next.as_mut_ptr()) };
            least = isa.min(least, best);
        }
    }
    isa.least(least)
}

/// [`step`] in plain Rust.
pub(in crate::cpu) fn plain_step<const W: usize>(
    costs: &[u16],
    values: &[i16],
    target: i16,
    next: &mut [u16],
) -> u16 {
    let classes = next.len();
    next.fill(u16::MAX);
    for (i, values) in values.chunks_exact(classes).enumerate() {
        let costs = &costs[i * (classes / W)..][..classes / W];
        for ((next, values), before) in next.chunks_exact_mut(W).zip(values.chunks_exact(W)).zip(costs) {
            for (next, value) in next.iter_mut().zip(values) {
                *next = (*next).min(before.saturating_add(cost(target, *value)));
            }
        }
    }
    next.iter().copied().fold(u16::MAX, u16::min)
}
