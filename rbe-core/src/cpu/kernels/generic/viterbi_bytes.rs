//! The step of Viterbi's search with costs in bytes: what [`viterbi`](super::viterbi) does, for large states in less time.
//!
//! A row's value has no more than 256 indices, so what each adds to a cost is found once a row. An index is linear in its state.
//! Indices have **places** that are linear in them too, so that states whose classes before the row are `c ^ lane` have the places
//! `p ^ lane`. A register of what is added to neighbouring classes is made for every `p`, and after that a register of sums takes a
//! load, a sum that saturates and the lesser of two, nothing of its values.
//!
//! A register holds classes before the row that lie side by side; each has `W` successors, side by side as well:
//!
//! ```text
//!     next[W c + b] = min over i < W of  costs[i classes / W + c] + added,    b < W
//! ```
//!
//! So a register is added to `W` registers of the table, one for each `b`, and the least sums of all `b` are shuffled into one another
//! at the end. (Costs repeated `W` times before the sum, as small states have it, take a shuffle for each sum instead of one for each
//! of the bits.)
//!
//! A cost of [`DEAD`] stays that: no path leads there, or one too costly to tell.

use super::viterbi::cost;
use crate::codec::term::trellis::Code;
use crate::cpu::kernels::isa::Isa;
use crate::cpu::layout::planes::Line;

/// The cost of a class that no path leads to.
pub(in crate::cpu) const DEAD: u8 = u8::MAX;
/// Successors of which the least sums are kept in registers at once.
const AT_ONCE: usize = 8;
/// Lanes of a register's parts, within which bytes are shuffled.
const PART: usize = 16;
/// The most lanes of a register.
const MOST_LANES: usize = 2 * PART;

/// The place of each index, for codes of one, two, three and four bits.
static PLACES: [[u8; 256]; 4] = [places(1), places(2), places(3), places(4)];

/// Places by index. The bits of a state above its row's own give a place's bits, the lowest first, those that depend on the ones before left
/// out.
const fn places(bits: usize) -> [u8; 256] {
    const STATE_BITS: usize = 12;
    let code = Code::of_bits(bits);
    // Those that have places, in the order of these.
    let (mut indices, mut count) = ([0; 256], 1);
    let (mut places, mut n) = ([0; 256], 0);
    while n < STATE_BITS {
        let index = code.index(1 << ((bits + n) % STATE_BITS));
        if index != 0 && places[index as usize] == 0 {
            let mut place = 0;
            while place < count {
                indices[count + place] = indices[place] ^ index;
                places[indices[count + place] as usize] = (count + place) as u8;
                place += 1;
            }
            count *= 2;
        }
        n += 1;
    }
    assert!(count == code.indices());
    places
}

/// What a row's own bits add to a state's place, a row having `W.ilog2()`.
const fn own<const W: usize>() -> [u8; W] {
    let bits = W.ilog2() as usize;
    let (mut own, mut n) = ([0; W], 0);
    while n < W {
        own[n] = PLACES[bits - 1][Code::of_bits(bits).index(n as u16) as usize];
        n += 1;
    }
    own
}

/// The lanes of a part, each XOR their row's number.
static TURNS: [[u8; MOST_LANES]; PART] = {
    let (mut turns, mut n) = ([[0; MOST_LANES]; PART], 0);
    while n < PART * MOST_LANES {
        turns[n / MOST_LANES][n % MOST_LANES] = ((n / MOST_LANES) ^ (n % PART)) as u8;
        n += 1;
    }
    turns
};

/// A code's states in registers of one level.
#[derive(Clone, Debug)]
pub(in crate::cpu) struct StateBlocks {
    lanes: usize,
    /// The value of the index at each place, in the search's fixed point.
    values: Vec<i16>,
    /// Bits that a cost loses on its way into a byte.
    dropped: u32,
    /// `lanes` times the place of the first state that follows each register of classes with zero top bits.
    firsts: Vec<u16>,
    /// `lanes` times what the top bits of a state add to it.
    tops: Vec<u16>,
}

impl StateBlocks {
    /// For registers of `lanes` classes; values are shifted to the left by `shift`, and what they [`cost`] to the right by `dropped`.
    pub(in crate::cpu) fn new(code: Code, lanes: usize, shift: u32, dropped: u32) -> Self {
        let (bits, state_bits) = (code.bits(), code.state_bits());
        let classes = 1usize << (state_bits - bits);
        let places = &PLACES[usize::from(bits) - 1];
        let place = |state: usize| places[usize::from(code.index(state as u16))];
        assert!(lanes <= MOST_LANES && (classes >> bits).is_multiple_of(lanes));
        assert!((0..lanes).all(|lane| usize::from(place(lane << bits)) == lane));
        let mut values = vec![0; code.indices()];
        for (index, place) in (0..code.indices()).zip(places) {
            values[usize::from(*place)] = i16::from(code.value_of_index(index as u8)) << shift;
        }
        let scaled = |state: usize| u16::from(place(state)) * lanes as u16;
        Self {
            lanes,
            values,
            dropped,
            firsts: (0..classes).step_by(lanes << bits).map(scaled).collect(),
            tops: (0..1 << bits).map(|top| scaled(top * classes)).collect(),
        }
    }

    /// Lines of the table that a step makes.
    pub(in crate::cpu) fn table_lines(&self) -> usize {
        (self.values.len() * self.lanes).div_ceil(size_of::<Line>())
    }

    /// What the index at each place adds to a cost, less the least of them.
    #[inline(always)]
    fn additions(&self, target: i16) -> [u8; 256] {
        let (mut all, mut additions) = ([0; 256], [DEAD; 256]);
        let all = &mut all[..self.values.len()];
        all.iter_mut().zip(&self.values).for_each(|(out, value)| *out = cost(target, *value));
        let least = all.iter().copied().fold(u16::MAX, u16::min);
        let half = 1 << self.dropped >> 1;
        for (out, cost) in additions.iter_mut().zip(all) {
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
    /// The costs of all classes before it.
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
        assert!(next.len() == firsts.len() * lanes * successors);
        assert!(self.before.len() >= next.len() && table.len() >= self.blocks.table_lines());
    }
}

/// Costs in the bytes of a register.
pub(in crate::cpu) trait ByteLanes: Isa {
    /// Classes in a register, at most [`MOST_LANES`]: parts of sixteen.
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
    /// The parts, each in the place of its number XOR `by`.
    fn swap_parts(self, register: Self::Register, by: usize) -> Self::Register;
    /// The byte of its part that `places` says in each lane.
    fn pick(self, register: Self::Register, places: Self::Register) -> Self::Register;
    /// Sums that saturate.
    fn add(self, a: Self::Register, b: Self::Register) -> Self::Register;
    /// The smaller in every lane.
    fn min(self, a: Self::Register, b: Self::Register) -> Self::Register;
    /// What is not [`DEAD`] less `excess`, which it is not below.
    fn take_off(self, costs: Self::Register, excess: Self::Register) -> Self::Register;
    /// Lanes of `a` and `b` in turn: those of the lower halves of all parts, and of the upper halves.
    fn zip(self, a: Self::Register, b: Self::Register) -> [Self::Register; 2];
    /// The first parts of all registers one after another, then the second.
    fn by_parts<const W: usize>(self, registers: [Self::Register; W]) -> [Self::Register; W];
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

/// Makes a register of what is added to its lanes for each place of the first. Those of places that differ in the bits of a lane hold the
/// same bytes, in another order.
#[inline(always)]
fn tabulate<I: ByteLanes>(isa: I, blocks: &StateBlocks, additions: &[u8; 256], table: &mut [Line]) {
    let turned = Line::bytes_mut(table).chunks_exact_mut(PART * I::LANES);
    for (n, out) in turned.take(blocks.values.len() / PART).enumerate() {
        let (first, part) = (n * PART / I::LANES * I::LANES, n % (I::LANES / PART));
        for (turn, places) in TURNS.iter().enumerate() {
            // SAFETY: `first` and a register's bytes are within the additions, since the values are whole registers; a turn has the most lanes
            // that there are, and `out` has room for sixteen registers.
            unsafe {
                let additions = isa.swap_parts(isa.load(additions.as_ptr().add(first)), part);
                let turned = isa.pick(additions, isa.load(places.as_ptr()));
                isa.store(turned, out.as_mut_ptr().add(turn * I::LANES));
            }
        }
    }
}

/// The least sum over the classes that lead to each.
#[inline(always)]
fn merge<I: ByteLanes, const W: usize>(isa: I, row: ByteRow, table: &[Line], next: &mut [u8]) -> u8 {
    let ByteRow { blocks, before, excess, .. } = row;
    let table = Line::bytes(table).as_ptr();
    let tops = std::array::from_fn(|i| usize::from(blocks.tops[i]));
    let mut least = isa.splat(DEAD);
    for (n, first) in blocks.firsts.iter().enumerate() {
        // SAFETY: by `check` there are costs of `W` times as many classes as have registers in `firsts`, and as many next ones. Places are of the
        // code's indices, whose number is a power of two, so that their XOR is too, and the table has a register for each.
        unsafe {
            let classes = before.as_ptr().add(n * I::LANES);
            let followed = blocks.firsts.len() * I::LANES;
            let mut best = least_sums::<I, W>(isa, [classes, table], followed, &tops, usize::from(*first));
            for best in &mut best {
                if excess > 0 {
                    *best = isa.take_off(*best, isa.splat(excess));
                }
                least = isa.min(least, *best);
            }
            let sorted = isa.by_parts(interleave(isa, best));
            let next = next.as_mut_ptr().add(n * W * I::LANES);
            for (n, sorted) in sorted.into_iter().enumerate() {
                isa.store(sorted, next.add(n * I::LANES));
            }
        }
    }
    isa.least(least)
}

/// The least sums for the successors of a register of classes: `costs` are those with zero top bits, and `followed` after them the next. The
/// lowest of their successors has the place `first` in `table`.
///
/// # Safety
/// There are as many costs, and registers in the table for all places.
#[inline(always)]
unsafe fn least_sums<I: ByteLanes, const W: usize>(
    isa: I,
    [costs, table]: [*const u8; 2],
    followed: usize,
    tops: &[usize; W],
    first: usize,
) -> [I::Register; W] {
    let own = const { own::<W>() };
    let mut all = [isa.splat(DEAD); W];
    // So many at once as leave registers for what is added.
    for from in [0, AT_ONCE] {
        if from >= W {
            break;
        }
        let mut best = [isa.splat(DEAD); AT_ONCE];
        for (i, top) in tops.iter().enumerate() {
            // SAFETY: by the caller.
            let before = unsafe { isa.load(costs.add(i * followed)) };
            let first = first ^ top ^ (usize::from(own[from]) * I::LANES);
            for (best, own) in best.iter_mut().zip(own) {
                // SAFETY: by the caller.
                let added = unsafe { isa.load(table.add(first ^ (usize::from(own) * I::LANES))) };
                *best = isa.min(*best, isa.add(before, added));
            }
        }
        for (all, best) in all[from..].iter_mut().zip(best) {
            *all = best;
        }
    }
    all
}

/// Within each part: the first lanes of all registers, in their order, then the second, and so on, from one register to the next.
#[inline(always)]
fn interleave<I: ByteLanes, const W: usize>(isa: I, registers: [I::Register; W]) -> [I::Register; W] {
    // Once for each bit, written out so that registers stay such.
    let mut registers = shuffle(isa, registers);
    if W > 2 {
        registers = shuffle(isa, registers);
    }
    if W > 4 {
        registers = shuffle(isa, registers);
    }
    if W > 8 {
        registers = shuffle(isa, registers);
    }
    registers
}

/// The lower half of the registers zipped with the upper.
#[inline(always)]
fn shuffle<I: ByteLanes, const W: usize>(isa: I, registers: [I::Register; W]) -> [I::Register; W] {
    let mut shuffled = registers;
    for n in 0..W / 2 {
        [shuffled[2 * n], shuffled[2 * n + 1]] = isa.zip(registers[n], registers[n + W / 2]);
    }
    shuffled
}

/// Classes that the portable step takes at once.
pub(in crate::cpu) const PLAIN_LANES: usize = PART;

/// [`step`] in plain Rust.
pub(in crate::cpu) fn plain_step<const W: usize>(row: ByteRow, table: &mut [Line], next: &mut [u8]) -> u8 {
    row.check(PLAIN_LANES, W, table, next);
    let ByteRow { blocks, before, excess, .. } = row;
    let additions = blocks.additions(row.target);
    let (table, _) = Line::bytes_mut(table).as_chunks_mut::<PLAIN_LANES>();
    for (first, out) in table.iter_mut().take(blocks.values.len()).enumerate() {
        *out = std::array::from_fn(|lane| additions[first ^ lane]);
    }
    let (followed, mut least) = (next.len() / W, DEAD);
    for (n, (next, first)) in next.chunks_exact_mut(W * PLAIN_LANES).zip(&blocks.firsts).enumerate() {
        let mut best = [[DEAD; PLAIN_LANES]; W];
        for (i, top) in blocks.tops.iter().enumerate() {
            let before = &before[i * followed + n * PLAIN_LANES..][..PLAIN_LANES];
            for (best, own) in best.iter_mut().zip(const { own::<W>() }) {
                let added = &table[(usize::from(first ^ top) / PLAIN_LANES) ^ usize::from(own)];
                for ((best, added), before) in best.iter_mut().zip(added).zip(before) {
                    *best = (*best).min(before.saturating_add(*added));
                }
            }
        }
        for (lane, next) in next.chunks_exact_mut(W).enumerate() {
            for (next, best) in next.iter_mut().zip(&best) {
                *next = if best[lane] == DEAD { DEAD } else { best[lane] - excess };
                least = least.min(*next);
            }
        }
    }
    least
}
