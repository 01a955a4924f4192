//! Attention of one position: the queries that share a key head, with a part of its keys.
//!
//! A group of at most [`Floats::ROWS`] queries goes through keys and values together. Scores are dot products with [`KEYS`] keys at a
//! time, a register of sums for each; mixtures are [`CHUNKS`] registers of columns, whose sums stay where they are from the first key
//! to the last.
//!
//! When a token is written keys and values are seldom in a cache, and these loops do not read them in the order of memory, by which a
//! processor knows what it is to read ahead. So the lines of keys and values are [looked at](Floats::look_at) in that order first.

use super::dense::halves;
use super::norm::exp_of;
use crate::cpu::kernels::isa::Isa;
use crate::cpu::layout::LANES;
use std::ops::Range;

/// Keys that are scored at once.
const KEYS: usize = 4;
/// Keys that all groups are scored with before the next are read.
const BLOCK: usize = 8 * KEYS;
/// Registers of columns that are mixed at once.
const CHUNKS: usize = 4;
/// Floats in a line of a cache.
pub(in crate::cpu::kernels) const LINE: usize = 16;

/// Registers of `N` floats.
pub(in crate::cpu::kernels) trait Floats<const N: usize>: Isa {
    /// Queries of a group, at most four: each takes [`KEYS`] or [`CHUNKS`] registers for its sums, and one for itself.
    const ROWS: usize;
    /// `N` floats.
    type Register: Copy;

    /// From memory.
    fn load(self, from: &[f32; N]) -> Self::Register;
    /// At most `N`, and zeros.
    fn load_part(self, from: &[f32]) -> Self::Register;
    /// To memory.
    fn store(self, x: Self::Register, to: &mut [f32; N]);
    /// One number everywhere.
    fn splat(self, x: f32) -> Self::Register;
    /// `a b + c`.
    fn add_product(self, a: Self::Register, b: Self::Register, c: Self::Register) -> Self::Register;
    /// The sum of each register.
    fn sums(self, x: [Self::Register; KEYS]) -> [f32; KEYS];
    /// Reads a line, that those behind it be read ahead; or does nothing.
    #[inline(always)]
    fn look_at(self, _line: &[f32; LINE]) {}
}

/// Calls `$f::<I, N, ROWS>` for the queries of a group.
macro_rules! with_rows {
    ($count:expr, $f:ident $args:tt) => {
        match $count {
            1 => $f::<I, N, 1> $args,
            2 => $f::<I, N, 2> $args,
            3 => $f::<I, N, 3> $args,
            4 if I::ROWS > 3 => $f::<I, N, 4> $args,
            other => unreachable!("{other} queries at once"),
        }
    };
}

/// What is attended to, and by what.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct KeyPart<'a> {
    /// Queries of one position, of heads that share a key head; not 0.
    pub rows: usize,
    /// Elements of a query, a key and a value; not 0.
    pub width: usize,
    /// The queries, and the elements from one to the next.
    pub q: &'a [f32],
    pub q_stride: usize,
    /// How many keys there are; not 0.
    pub keys: usize,
    /// The keys, and their values, one after another.
    pub k: &'a [f32],
    pub v: &'a [f32],
    /// Added to the scores of each key, or empty.
    pub bias: &'a [f32],
    /// What multiplies `q k'`.
    pub scale: f32,
}

impl KeyPart<'_> {
    /// Scores of a query: a whole number of lanes.
    pub(in crate::cpu) fn scores(&self) -> usize {
        self.keys.next_multiple_of(LANES)
    }

    #[inline(always)]
    fn query(&self, row: usize) -> &[f32] {
        &self.q[row * self.q_stride..][..self.width]
    }
}

/// What a part of the keys comes to.
pub(in crate::cpu) struct PartialMix<'a> {
    /// The largest score of each query that is a number, minus infinity where all keys are hidden.
    pub largest: &'a mut [f32],
    /// The sum of the exponentials of its scores less the largest.
    pub sums: &'a mut [f32],
    /// The values mixed by these, `rows x width`.
    pub mixed: &'a mut [f32],
}

/// Attends to a part of the keys; `scores` is scratch for the [scores](KeyPart::scores) of each query.
#[inline(always)]
pub(in crate::cpu) fn attend<I: Floats<N>, const N: usize>(
    isa: I,
    part: KeyPart,
    scores: &mut [f32],
    out: PartialMix,
) {
    let (keys, stride) = (part.keys, part.scores());
    let groups = Groups::new(part.rows, I::ROWS);
    for first in (0..keys).step_by(BLOCK) {
        for (row, count) in groups {
            with_rows!(count, score(isa, &part, row, first..keys.min(first + BLOCK), scores));
        }
    }
    for (scores, largest) in scores.chunks_exact_mut(stride).zip(&mut *out.largest) {
        *largest = scale(&part, scores);
    }
    for ((scores, largest), sum) in scores.chunks_exact_mut(stride).zip(&*out.largest).zip(out.sums) {
        *sum = exponentials::<I>(scores, *largest);
    }
    let strips = part.width / (CHUNKS * N) * CHUNKS * N;
    for col in (0..strips).step_by(CHUNKS * N) {
        for (row, count) in groups {
            with_rows!(count, mix(isa, &part, (row, col), scores, out.mixed));
        }
    }
    for col in (strips..part.width).step_by(N) {
        for (row, count) in groups {
            with_rows!(count, mix_chunk(isa, &part, (row, col), scores, out.mixed));
        }
    }
}

/// Each group's first query, and how many it has: as few groups as can be, as even as can be.
#[derive(Clone, Copy)]
struct Groups {
    row: usize,
    rows: usize,
    /// Queries of a group, and how many of the groups that are left have one more.
    count: usize,
    more: usize,
}

impl Groups {
    #[inline(always)]
    fn new(rows: usize, most: usize) -> Self {
        let groups = rows.div_ceil(most);
        Self { row: 0, rows, count: rows / groups, more: rows % groups }
    }
}

impl Iterator for Groups {
    type Item = (usize, usize);

    #[inline(always)]
    fn next(&mut self) -> Option<(usize, usize)> {
        if self.row == self.rows {
            return None;
        }
        let group = (self.row, self.count + usize::from(self.more > 0));
        self.row += group.1;
        self.more = self.more.saturating_sub(1);
        Some(group)
    }
}

/// Looks at lines one after another, but for a few of the last.
#[inline(always)]
fn look_at<I: Floats<N>, const N: usize>(isa: I, x: &[f32]) {
    /// Lines of a turn.
    const TURN: usize = 4;
    for lines in x.as_chunks::<LINE>().0.as_chunks::<TURN>().0 {
        for line in lines {
            isa.look_at(line);
        }
    }
}

/// The dot products of queries from `row` on with some keys. Where fewer are left than are scored at once, the first of them takes the
/// place of others.
#[inline(always)]
fn score<I: Floats<N>, const N: usize, const ROWS: usize>(
    isa: I,
    part: &KeyPart,
    row: usize,
    keys: Range<usize>,
    scores: &mut [f32],
) {
    let (width, whole, stride) = (part.width, part.width / N, part.scores() / KEYS);
    let scores = &mut scores.as_chunks_mut::<KEYS>().0[row * stride..][..ROWS * stride];
    let q: [&[f32]; ROWS] = std::array::from_fn(|n| part.query(row + n));
    let q_whole: [&[[f32; N]]; ROWS] = std::array::from_fn(|n| &q[n].as_chunks().0[..whole]);
    for first in keys.step_by(KEYS) {
        let tile = &part.k[first * width..(first + KEYS).min(part.keys) * width];
        let k: [&[f32]; KEYS] =
            std::array::from_fn(|n| tile.get(n * width..(n + 1) * width).unwrap_or(&tile[..width]));
        let k_whole: [&[[f32; N]]; KEYS] = std::array::from_fn(|n| &k[n].as_chunks().0[..whole]);
        if row == 0 {
            look_at(isa, tile);
        }
        let mut sums = [[isa.splat(0.0); KEYS]; ROWS];
        for chunk in 0..whole {
            let mut queries = [isa.splat(0.0); ROWS];
            for row in 0..ROWS {
                queries[row] = isa.load(&q_whole[row][chunk]);
            }
            for n in 0..KEYS {
                let key = isa.load(&k_whole[n][chunk]);
                for row in 0..ROWS {
                    sums[row][n] = isa.add_product(queries[row], key, sums[row][n]);
                }
            }
        }
        if whole * N < width {
            for n in 0..KEYS {
                let key = isa.load_part(&k[n][whole * N..]);
                for row in 0..ROWS {
                    sums[row][n] = isa.add_product(isa.load_part(&q[row][whole * N..]), key, sums[row][n]);
                }
            }
        }
        for row in 0..ROWS {
            scores[row * stride + first / KEYS] = isa.sums(sums[row]);
        }
    }
}

/// Makes scores of a query's dot products, and minus infinity behind the last key; returns the largest that is a number.
#[inline(always)]
fn scale(part: &KeyPart, scores: &mut [f32]) -> f32 {
    for scores in scores.as_chunks_mut::<LANES>().0 {
        scores.iter_mut().for_each(|score| *score *= part.scale);
    }
    scores.iter_mut().zip(part.bias).for_each(|(score, bias)| *score += bias);
    let scores = scores.as_chunks_mut::<LANES>().0;
    if let Some((last, before)) = scores.split_last_mut() {
        let count = part.keys - before.len() * LANES;
        for (lane, score) in last.iter_mut().enumerate() {
            *score = if lane < count { *score } else { f32::NEG_INFINITY };
        }
    }
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut largest = [f32::NEG_INFINITY; LANES];
    for scores in scores {
        for lane in 0..LANES {
            largest[lane] = larger(scores[lane], largest[lane]);
        }
    }
    halves(largest, larger)
}

/// Makes exponentials of scores less the largest; returns their sum.
#[inline(always)]
fn exponentials<I: Isa>(scores: &mut [f32], largest: f32) -> f32 {
    // Where all keys are hidden each exponential is to be 0, and what is not a number to stay so.
    let shift = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
    let mut sums = [0.0; LANES];
    for scores in scores.as_chunks_mut::<LANES>().0 {
        for lane in 0..LANES {
            scores[lane] = exp_of::<I>(scores[lane] - shift);
            sums[lane] += scores[lane];
        }
    }
    halves(sums, |a, b| a + b)
}

/// The values' columns of [`CHUNKS`] registers, mixed by the weights of queries; `at` is the first query and the first column.
#[inline(always)]
fn mix<I: Floats<N>, const N: usize, const ROWS: usize>(
    isa: I,
    part: &KeyPart,
    at: (usize, usize),
    weights: &[f32],
    mixed: &mut [f32],
) {
    if at == (0, 0) {
        mix_strip::<I, N, ROWS, true>(isa, part, at, weights, mixed);
    } else {
        mix_strip::<I, N, ROWS, false>(isa, part, at, weights, mixed);
    }
}

/// [`mix`], which is the `FIRST` to read the values or not.
#[inline(always)]
fn mix_strip<I: Floats<N>, const N: usize, const ROWS: usize, const FIRST: bool>(
    isa: I,
    part: &KeyPart,
    at: (usize, usize),
    weights: &[f32],
    mixed: &mut [f32],
) {
    let ((row, col), stride) = (at, part.scores());
    let weights: [&[f32]; ROWS] = std::array::from_fn(|n| &weights[(row + n) * stride..][..part.keys]);
    let mut sums = [[isa.splat(0.0); CHUNKS]; ROWS];
    for (key, v) in part.v.chunks_exact(part.width).take(part.keys).enumerate() {
        if FIRST {
            look_at(isa, v);
        }
        let v = v[col..][..CHUNKS * N].as_chunks::<N>().0;
        let mut weight = [isa.splat(0.0); ROWS];
        for row in 0..ROWS {
            weight[row] = isa.splat(weights[row][key]);
        }
        for n in 0..CHUNKS {
            let v = isa.load(&v[n]);
            for row in 0..ROWS {
                sums[row][n] = isa.add_product(weight[row], v, sums[row][n]);
            }
        }
    }
    for n in 0..ROWS {
        let mixed = &mut mixed[(row + n) * part.width + col..][..CHUNKS * N];
        for (sum, mixed) in sums[n].into_iter().zip(mixed.as_chunks_mut::<N>().0) {
            isa.store(sum, mixed);
        }
    }
}

/// [`mix`] of one register's columns or fewer.
#[inline(always)]
fn mix_chunk<I: Floats<N>, const N: usize, const ROWS: usize>(
    isa: I,
    part: &KeyPart,
    at: (usize, usize),
    weights: &[f32],
    mixed: &mut [f32],
) {
    let ((row, col), stride) = (at, part.scores());
    let cols = N.min(part.width - col);
    let weights: [&[f32]; ROWS] = std::array::from_fn(|n| &weights[(row + n) * stride..][..part.keys]);
    let mut sums = [isa.splat(0.0); ROWS];
    for (key, v) in part.v.chunks_exact(part.width).take(part.keys).enumerate() {
        let v = isa.load_part(&v[col..][..cols]);
        for row in 0..ROWS {
            sums[row] = isa.add_product(isa.splat(weights[row][key]), v, sums[row]);
        }
    }
    for n in 0..ROWS {
        let mut columns = [0.0; N];
        isa.store(sums[n], &mut columns);
        mixed[(row + n) * part.width + col..][..cols].copy_from_slice(&columns[..cols]);
    }
}
