//! The step of Viterbi's search with costs in bytes: what [`viterbi`](super::viterbi) does, for large states in less time.
//!
//! A row's value has no more than 256 indices, so what each adds to a cost is found once a row. An index is linear in its state:
//! the states of a register, which differ in their lowest bits, have the indices `y ^ lane`, where `y` is the first's. So a
//! register of what they add is made for every `y`, and after that a register of states takes a load, a sum that saturates and
//! the lesser of two, nothing of its values.
//!
//! A cost of [`DEAD`] stays that: no path leads there, or one too costly to tell.

use super::viterbi::cost;
use crate::codec::term::trellis::Code;
use crate::cpu::kernels::isa::Isa;
use crate::cpu::layout::planes::Line;

/// The cost of a class that no path leads to.
pub(in crate::cpu) const DEAD: u8 = u8::MAX;
/// Bytes of costs that a step may read beyond the last class.
pub(in crate::cpu) const BYTE_OVERREAD: usize = 16;
/// Registers of next costs made at once.
const TILE: usize = 2;
/// The most lanes of a register.
const MOST_LANES: usize = 64;
/// Lanes that differ in the level alone, not in the offset of their index (as the codes have it).
const RUN: usize = 8;

/// A code's states in registers of one level.
#[derive(Clone, Debug)]
pub(in crate::cpu) struct StateBlocks {
    lanes: usize,
    /// The value of each index in the search's fixed point.
    values: Vec<i16>,
    /// Bits that a cost loses on its way into a byte.
    dropped: u32,
    /// The index of each lane's state beside the first's.
    lane_indices: [u8; MOST_LANES],
    /// The levels of them, XOR each level.
    patterns: [[u8; MOST_LANES]; 16],
    /// `lanes` times the index of the first state of each register, of those whose top bits are zero.
    firsts: Vec<u16>,
    /// `lanes` times what the top bits of a state add to it.
    tops: Vec<u16>,
}

impl StateBlocks {
    /// For registers of `lanes` states; values are shifted to the left by `shift`, and what they [`cost`] to the right by `dropped`.
    pub(in crate::cpu) fn new(code: Code, lanes: usize, shift: u32, dropped: u32) -> Self {
        let classes = 1usize << (code.state_bits() - code.bits());
        let index = |state: usize| code.index(state as u16);
        let lane_indices = std::array::from_fn(index);
        let values = (0..code.indices()).map(|index| i16::from(code.value_of_index(index as u8)) << shift);
        let scaled = |state: usize| u16::from(index(state)) * lanes as u16;
        assert!(lanes <= MOST_LANES && classes.is_multiple_of(TILE * lanes));
        assert!((0..RUN).all(|lane| index(lane) < 16));
        Self {
            lanes,
            values: values.collect(),
            dropped,
            lane_indices,
            patterns: std::array::from_fn(|level| lane_indices.map(|lane| lane & 15 ^ level as u8)),
            firsts: (0..classes).step_by(lanes).map(scaled).collect(),
            tops: (0..1 << code.bits()).map(|top| scaled(top * classes)).collect(),
        }
    }

    /// Lines of the table that a step makes.
    pub(in crate::cpu) fn table_lines(&self) -> usize {
        (self.values.len() * self.lanes).div_ceil(size_of::<Line>())
    }

    /// What each index adds to a cost, less the least of them.
    #[inline(always)]
    fn additions(&self, target: i16) -> [[u8; 16]; 16] {
        let (mut all, mut additions) = ([0; 256], [[DEAD; 16]; 16]);
        let all = &mut all[..self.values.len()];
        all.iter_mut().zip(&self.values).for_each(|(out, value)| *out = cost(target, *value));
        let least = all.iter().copied().fold(u16::MAX, u16::min);
        let half = 1 << self.dropped >> 1;
        for (out, cost) in additions.as_flattened_mut().iter_mut().zip(all) {
            *out = ((*cost - least + half) >> self.dropped).min(DEAD.into()) as u8;
        }
        additions
    }
}

/// A row to be searched.
#[derive(Clone, Copy, Debug)]
pub(in crate::cpu) struct ByteRow<'a> {
    pub blocks: &'a StateBlocks,
    pub target: i16,
    /// The costs of all classes before it and [`BYTE_OVERREAD`] more bytes.
    pub before: &'a [u8],
    /// What is taken off of the costs after it; no living one is less.
    pub excess: u8,
}

impl ByteRow<'_> {
    /// What every step relies on.
    #[inline(always)]
    fn check(&self, lanes: usize, successors: usize, table: &[Line], next: &[u8]) {
        let StateBlocks { firsts, tops, .. } = self.blocks;
        assert!(self.blocks.lanes == lanes && tops.len() == successors);
        assert!(next.len() == firsts.len() * lanes && next.len().is_multiple_of(TILE * lanes));
        assert!(self.before.len() >= next.len() + BYTE_OVERREAD && table.len() >= self.blocks.table_lines());
    }
}

/// Costs in the bytes of a register.
pub(in crate::cpu) trait ByteLanes: Isa {
    /// States in a register, at most [`MOST_LANES`].
    const LANES: usize;
    /// A register.
    type Register: Copy;

    /// A byte in every lane.
    fn splat(self, byte: u8) -> Self::Register;
    /// A register's bytes.
    ///
    /// # Safety
    /// They can be read.
    unsafe fn load(self, bytes: *const u8) -> Self::Register;
    /// Writes a register's bytes.
    ///
    /// # Safety
    /// They can be written.
    unsafe fn store(self, register: Self::Register, bytes: *mut u8);
    /// What [`spread`](Self::spread) repeats costs by.
    fn repeat<const W: usize>(self) -> Self::Register;
    /// The costs from `costs` on, each in `W` lanes.
    ///
    /// # Safety
    /// Sixteen bytes can be read, and a `W`-th of a register's.
    unsafe fn spread<const W: usize>(self, costs: *const u8, repeat: Self::Register) -> Self::Register;
    /// Sixteen bytes for each sixteen lanes: `of` of their number.
    fn rows<'a>(self, of: impl Fn(usize) -> &'a [u8; 16]) -> Self::Register;
    /// The byte of its sixteen that `places` says in each lane.
    fn pick(self, rows: Self::Register, places: Self::Register) -> Self::Register;
    /// Eight lanes of `even`, the next eight of `odd`, and so on.
    fn join(self, even: Self::Register, odd: Self::Register) -> Self::Register;
    /// Sums that saturate.
    fn add(self, a: Self::Register, b: Self::Register) -> Self::Register;
    /// The smaller in every lane.
    fn min(self, a: Self::Register, b: Self::Register) -> Self::Register;
    /// What is not [`DEAD`] less `excess`, which it is not below.
    fn take_off(self, costs: Self::Register, excess: Self::Register) -> Self::Register;
    /// The smallest byte of all lanes.
    fn least(self, register: Self::Register) -> u8;
}

/// The costs of all classes after a row to `next`; the least of them comes back. `table` is scratch.
#[inline(always)]
pub(in crate::cpu) fn step<I: ByteLanes, const W: usize>(
    isa: I,
    row: ByteRow,
    table: &mut [Line],
    next: &mut [u8],
) -> u8 {
    row.check(I::LANES, W, table, next);
    tabulate(isa, row.blocks, &row.blocks.additions(row.target), table);
    merge::<I, W>(isa, row, table, next)
}

/// Makes a register of what its states add for each index of the first.
#[inline(always)]
fn tabulate<I: ByteLanes>(isa: I, blocks: &StateBlocks, additions: &[[u8; 16]; 16], table: &mut [Line]) {
    let offset = |lane: usize| usize::from(blocks.lane_indices[lane] >> 4);
    let mut table = Line::bytes_mut(table).chunks_exact_mut(I::LANES);
    for n in 0..blocks.values.len() / 16 {
        let even = isa.rows(|part| &additions[n ^ offset(16 * part)]);
        let odd = isa.rows(|part| &additions[n ^ offset(16 * part + RUN)]);
        for (places, out) in blocks.patterns.iter().zip(table.by_ref()) {
            // SAFETY: the patterns have the most lanes that there are.
            let places = unsafe { isa.load(places.as_ptr()) };
            let mut added = isa.pick(even, places);
            if offset(RUN) != 0 {
                added = isa.join(added, isa.pick(odd, places));
            }
            // SAFETY: a register's bytes.
            unsafe { isa.store(added, out.as_mut_ptr()) };
        }
    }
}

/// The least sum over the classes that lead to each.
#[inline(always)]
fn merge<I: ByteLanes, const W: usize>(isa: I, row: ByteRow, table: &[Line], next: &mut [u8]) -> u8 {
    let ByteRow { blocks, before, excess, .. } = row;
    let (classes, table) = (next.len(), Line::bytes(table).as_ptr());
    let repeat = isa.repeat::<W>();
    let mut least = isa.splat(DEAD);
    let next = next.chunks_exact_mut(TILE * I::LANES).zip(blocks.firsts.chunks_exact(TILE));
    for (n, (next, firsts)) in next.enumerate() {
        let mut best = [isa.splat(DEAD); TILE];
        for (i, top) in blocks.tops[..W].iter().enumerate() {
            for (m, (best, first)) in best.iter_mut().zip(firsts).enumerate() {
                let state = i * classes + (n * TILE + m) * I::LANES;
                // SAFETY: `state` and a register more is at most `W classes`, and `before` is longer than `classes` by sixteen. Both indices are
                // of the code's, whose number is a power of two, so that their XOR is too, and the table has a register for each.
                let (before, added) = unsafe {
                    let added = isa.load(table.add(usize::from(first ^ top)));
                    (isa.spread::<W>(before.as_ptr().add(state / W), repeat), added)
                };
                *best = isa.min(*best, isa.add(before, added));
            }
        }
        for (next, best) in next.chunks_exact_mut(I::LANES).zip(best) {
            let best = if excess > 0 { isa.take_off(best, isa.splat(excess)) } else { best };
            // SAFETY: `next` is a register's.
            unsafe { isa.store(best, next.as_mut_ptr()) };
            least = isa.min(least, best);
        }
    }
    isa.least(least)
}

/// States that the portable step takes at once.
pub(in crate::cpu) const PLAIN_LANES: usize = 16;

/// [`step`] in plain Rust.
pub(in crate::cpu) fn plain_step<const W: usize>(row: ByteRow, table: &mut [Line], next: &mut [u8]) -> u8 {
    row.check(PLAIN_LANES, W, table, next);
    let ByteRow { blocks, before, excess, .. } = row;
    let additions = blocks.additions(row.target);
    let additions = additions.as_flattened();
    let (table, _) = Line::bytes_mut(table).as_chunks_mut::<PLAIN_LANES>();
    for (first, out) in table.iter_mut().take(blocks.values.len()).enumerate() {
        for (out, lane) in out.iter_mut().zip(&blocks.lane_indices) {
            *out = additions[first ^ usize::from(*lane)];
        }
    }
    let (classes, mut least) = (next.len(), DEAD);
    for (n, (next, first)) in next.as_chunks_mut::<PLAIN_LANES>().0.iter_mut().zip(&blocks.firsts).enumerate()
    {
        *next = [DEAD; PLAIN_LANES];
        for (i, top) in blocks.tops.iter().enumerate() {
            let added = &table[usize::from(first ^ top) / PLAIN_LANES];
            let before = &before[(i * classes + n * PLAIN_LANES) / W..][..PLAIN_LANES / W];
            for ((next, added), before) in next.chunks_exact_mut(W).zip(added.chunks_exact(W)).zip(before) {
                for (next, added) in next.iter_mut().zip(added) {
                    *next = (*next).min(before.saturating_add(*added));
                }
            }
        }
        for cost in next {
            *cost = if *cost == DEAD { DEAD } else { *cost - excess };
            least = least.min(*cost);
        }
    }
    least
}
