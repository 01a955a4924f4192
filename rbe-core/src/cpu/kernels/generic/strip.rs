//! The DCT of few segments, each by itself, eight of its elements in a register.
//!
//! The recursion of [`dct`](super::dct) level by level: a strip of 256 elements is one block of 256, or several shorter ones, then
//! blocks half as long, and at last 32 of eight. These are transposed, so that eight of them lie in the lanes of registers, and go through
//! the transforms of eight elements; then the blocks are put together again. A register holds neighbours of one block on the way down
//! and up, so a segment alone has as full registers as many have. Each element goes through the same operations as in lanes: it has the same
//! bits.

use super::dct::{ROTATIONS, dct2_8, dct3_8, dct4_8};
use crate::cpu::kernels::isa::Isa;
use crate::cpu::layout::{EDGE, Element, Strip};
use std::f32::consts::SQRT_2;
use std::ops::{Add, Mul, Sub};
use std::sync::LazyLock;

/// Elements of a register, and of the shortest blocks.
pub(in crate::cpu::kernels) const OCTET: usize = 8;

/// Eight floats in registers.
pub(in crate::cpu::kernels) trait Octets: Isa {
    /// Eight floats.
    type Octet: Copy;

    /// From memory.
    fn load(self, from: &[f32; OCTET]) -> Self::Octet;
    /// To memory.
    fn store(self, x: Self::Octet, to: &mut [f32; OCTET]);
    /// One number everywhere.
    fn splat(self, x: f32) -> Self::Octet;
    /// Sums.
    fn add(self, a: Self::Octet, b: Self::Octet) -> Self::Octet;
    /// Differences.
    fn sub(self, a: Self::Octet, b: Self::Octet) -> Self::Octet;
    /// Products.
    fn mul(self, a: Self::Octet, b: Self::Octet) -> Self::Octet;
    /// The last first.
    fn reverse(self, x: Self::Octet) -> Self::Octet;
    /// `a_0 b_0 a_1 b_1 ..`.
    fn interleave(self, a: Self::Octet, b: Self::Octet) -> [Self::Octet; 2];
    /// [`interleave`](Self::interleave) undone: what lies at even places in both, and at odd ones.
    fn part(self, x: [Self::Octet; 2]) -> [Self::Octet; 2];
    /// Rows and columns exchanged.
    fn transpose(self, rows: [Self::Octet; OCTET]) -> [Self::Octet; OCTET];
    /// `a` where all bits of the mask are set, `b` where none is.
    fn select(self, mask: &[u32; OCTET], a: Self::Octet, b: Self::Octet) -> Self::Octet;
}

/// One element of each of eight blocks.
#[derive(Clone, Copy)]
struct Eight<I: Octets>(I, I::Octet);

impl<I: Octets> Element for Eight<I> {}

impl<I: Octets> Add for Eight<I> {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(self.0, self.0.add(self.1, other.1))
    }
}

impl<I: Octets> Sub for Eight<I> {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(self.0, self.0.sub(self.1, other.1))
    }
}

impl<I: Octets> Mul<f32> for Eight<I> {
    type Output = Self;
    #[inline(always)]
    fn mul(self, factor: f32) -> Self {
        Self(self.0, self.0.mul(self.1, self.0.splat(factor)))
    }
}

/// A transform: a block's.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// `T_II`.
    Two,
    /// Its transpose.
    Three,
    /// `T_IV`.
    Four,
}

impl Kind {
    /// The transforms of a block's halves.
    const fn halves(self) -> [Self; 2] {
        match self {
            Self::Two => [Self::Two, Self::Four],
            Self::Three => [Self::Three, Self::Four],
            Self::Four => [Self::Two, Self::Two],
        }
    }
}

/// The shortest and the longest segment, as powers of two.
const SHORTEST: u32 = 4;
const LONGEST: u32 = EDGE.ilog2();
const LENGTHS: usize = (LONGEST - SHORTEST + 1) as usize;
/// Blocks of eight in a strip.
const LEAVES: usize = EDGE / OCTET;

/// What becomes of every part of a strip of segments of one length.
struct Plan {
    /// For each level, the transform of each of its blocks; the first has whole segments.
    kinds: [[Kind; LEAVES]; LENGTHS + 1],
    /// For each eight of the shortest blocks, all bits set where the transform is the third, or the fourth.
    third: [[u32; OCTET]; LEAVES / OCTET],
    fourth: [[u32; OCTET]; LEAVES / OCTET],
}

impl Plan {
    const fn new(root: Kind, segment: usize) -> Self {
        let mut kinds = [[root; LEAVES]; LENGTHS + 1];
        let (mut level, mut len) = (0, segment);
        while len > OCTET {
            let mut block = 0;
            while block < EDGE / len {
                let [first, second] = kinds[level][block].halves();
                kinds[level + 1][2 * block] = first;
                kinds[level + 1][2 * block + 1] = second;
                block += 1;
            }
            (level, len) = (level + 1, len / 2);
        }
        let (mut third, mut fourth) = ([[0; OCTET]; LEAVES / OCTET], [[0; OCTET]; LEAVES / OCTET]);
        let mut block = 0;
        while block < LEAVES {
            match kinds[level][block] {
                Kind::Two => {}
                Kind::Three => third[block / OCTET][block % OCTET] = u32::MAX,
                Kind::Four => fourth[block / OCTET][block % OCTET] = u32::MAX,
            }
            block += 1;
        }
        Self { kinds, third, fourth }
    }

    const fn of_all_lengths(root: Kind) -> [Self; LENGTHS] {
        let mut plans = [const { Self::new(Kind::Two, OCTET) }; LENGTHS];
        let mut n = 0;
        while n < LENGTHS {
            plans[n] = Self::new(root, 1 << (SHORTEST + n as u32));
            n += 1;
        }
        plans
    }
}

static FORWARD: [Plan; LENGTHS] = Plan::of_all_lengths(Kind::Two);
static INVERSE: [Plan; LENGTHS] = Plan::of_all_lengths(Kind::Three);

/// The rotations of `T_IV(2h)` from `h` on, each of its four numbers by itself.
static BY_NUMBER: LazyLock<[[f32; EDGE / 2]; 4]> =
    LazyLock::new(|| std::array::from_fn(|n| std::array::from_fn(|k| ROTATIONS[k][n])));

/// `x <- T_II x` for `count` segments of `len` elements, 16 to 256 and a power of two.
#[inline(always)]
pub(in crate::cpu::kernels) fn dct2<I: Octets>(isa: I, strip: &mut Strip, len: usize, count: usize) {
    transform(isa, &FORWARD, strip, len, count);
}

/// `x <- T_II' x`, likewise.
#[inline(always)]
pub(in crate::cpu::kernels) fn dct3<I: Octets>(isa: I, strip: &mut Strip, len: usize, count: usize) {
    transform(isa, &INVERSE, strip, len, count);
}

#[inline(always)]
fn transform<I: Octets>(isa: I, plans: &[Plan; LENGTHS], strip: &mut Strip, len: usize, count: usize) {
    let plan = &plans[(len.ilog2() - SHORTEST) as usize];
    let rotations = &*BY_NUMBER;
    let (levels, used) = ((len / OCTET).ilog2() as usize, len * count);
    let (mut x, mut y) = (&mut strip.elements[..], &mut strip.scratch[..]);
    for level in 0..levels {
        let half = len >> (level + 1);
        for (block, kind) in plan.kinds[level][..used / (2 * half)].iter().enumerate() {
            let at = 2 * half * block;
            down(isa, *kind, half, &x[at..], &mut y[at..], rotations);
        }
        std::mem::swap(&mut x, &mut y);
    }
    let squares = x[..used.next_multiple_of(OCTET * OCTET)].as_chunks_mut().0;
    for (blocks, (third, fourth)) in squares.iter_mut().zip(plan.third.iter().zip(&plan.fourth)) {
        leaves(isa, blocks, third, fourth);
    }
    for level in (0..levels).rev() {
        let half = len >> (level + 1);
        for (block, kind) in plan.kinds[level][..used / (2 * half)].iter().enumerate() {
            let at = 2 * half * block;
            up(isa, *kind, half, &x[at..], &mut y[at..]);
        }
        std::mem::swap(&mut x, &mut y);
    }
}

/// As octets.
#[inline(always)]
fn octets(x: &[f32]) -> &[[f32; OCTET]] {
    x.as_chunks().0
}

/// As octets, to be written.
#[inline(always)]
fn octets_mut(x: &mut [f32]) -> &mut [[f32; OCTET]] {
    x.as_chunks_mut().0
}

/// A block to the two whose transforms make its own.
#[inline(always)]
fn down<I: Octets>(
    isa: I,
    kind: Kind,
    half: usize,
    x: &[f32],
    y: &mut [f32],
    rotations: &[[f32; EDGE / 2]; 4],
) {
    let (low, high) = x[..2 * half].split_at(half);
    let (first, second) = y[..2 * half].split_at_mut(half);
    let halves = octets_mut(first).iter_mut().zip(octets_mut(second));
    // Each octet beside that which mirrors it at the block's middle.
    let mirrored = octets(low).iter().zip(octets(high).iter().rev());
    match kind {
        Kind::Two => {
            for ((first, second), (low, high)) in halves.zip(mirrored) {
                let (low, high) = (isa.load(low), isa.reverse(isa.load(high)));
                isa.store(isa.add(low, high), first);
                isa.store(isa.sub(low, high), second);
            }
        }
        Kind::Three => {
            for ((first, second), pair) in halves.zip(x[..2 * half].as_chunks::<{ 2 * OCTET }>().0) {
                let [a, b] = octets(pair) else { unreachable!("two octets") };
                let [a, b] = isa.part([isa.load(a), isa.load(b)]);
                isa.store(a, first);
                isa.store(b, second);
            }
        }
        Kind::Four => {
            let [c, s, sc, ss] = rotations;
            let c_and_s = octets(&c[half..2 * half]).iter().zip(octets(&s[half..2 * half]));
            let signed = octets(&sc[half..2 * half]).iter().zip(octets(&ss[half..2 * half]));
            let turned = halves.zip(mirrored).zip(c_and_s.zip(signed));
            for (((first, second), (low, high)), ((c, s), (sc, ss))) in turned {
                let (low, high) = (isa.load(low), isa.reverse(isa.load(high)));
                let (c, s, sc, ss) = (isa.load(c), isa.load(s), isa.load(sc), isa.load(ss));
                isa.store(isa.add(isa.mul(low, c), isa.mul(high, s)), first);
                isa.store(isa.sub(isa.mul(high, sc), isa.mul(low, ss)), second);
            }
        }
    }
}

/// A block from the two that it was taken to. An element beyond the block is read, and comes to nothing.
#[inline(always)]
fn up<I: Octets>(isa: I, kind: Kind, half: usize, x: &[f32], y: &mut [f32]) {
    let (first, second) = (&x[..half], &x[half..2 * half]);
    let y = &mut y[..2 * half];
    match kind {
        Kind::Two => {
            let pairs = y.as_chunks_mut::<{ 2 * OCTET }>().0;
            for (pair, (first, second)) in pairs.iter_mut().zip(octets(first).iter().zip(octets(second))) {
                store_pair(isa, isa.interleave(isa.load(first), isa.load(second)), pair);
            }
        }
        Kind::Three => {
            let (low, high) = y.split_at_mut(half);
            let mirrored = octets_mut(low).iter_mut().zip(octets_mut(high).iter_mut().rev());
            for ((low, high), (first, second)) in mirrored.zip(octets(first).iter().zip(octets(second))) {
                let (first, second) = (isa.load(first), isa.load(second));
                isa.store(isa.add(first, second), low);
                isa.store(isa.reverse(isa.sub(first, second)), high);
            }
        }
        Kind::Four => {
            // P_m + Q_{h-m} and P_{m+1} - Q_{h-m-1}; the first and the last element are others.
            let (begin, end) = (first[0] * SQRT_2, second[0] * -SQRT_2);
            let even = octets(first).iter().zip(octets(&x[half + 1..2 * half + 1]).iter().rev());
            let odd = octets(&x[1..half + 1]).iter().zip(octets(second).iter().rev());
            let pairs = y.as_chunks_mut::<{ 2 * OCTET }>().0;
            for (pair, ((p, q), (p_next, q_next))) in pairs.iter_mut().zip(even.zip(odd)) {
                let even = isa.add(isa.load(p), isa.reverse(isa.load(q)));
                let odd = isa.sub(isa.load(p_next), isa.reverse(isa.load(q_next)));
                store_pair(isa, isa.interleave(even, odd), pair);
            }
            (y[0], y[2 * half - 1]) = (begin, end);
        }
    }
}

/// Two octets, one after the other.
#[inline(always)]
fn store_pair<I: Octets>(isa: I, [a, b]: [I::Octet; 2], pair: &mut [f32; 2 * OCTET]) {
    let [first, second] = octets_mut(pair) else { unreachable!("two octets") };
    isa.store(a, first);
    isa.store(b, second);
}

/// Eight blocks of eight elements through their transforms.
#[inline(always)]
fn leaves<I: Octets>(isa: I, blocks: &mut [f32; OCTET * OCTET], third: &[u32; OCTET], fourth: &[u32; OCTET]) {
    let mut rows = [isa.splat(0.0); OCTET];
    for (row, block) in rows.iter_mut().zip(octets(blocks)) {
        *row = isa.load(block);
    }
    let mut x = [Eight(isa, isa.splat(0.0)); OCTET];
    for (x, column) in x.iter_mut().zip(isa.transpose(rows)) {
        x.1 = column;
    }
    let mut y = dct2_8(x);
    for (y, other) in y.iter_mut().zip(dct4_8(x)) {
        y.1 = isa.select(fourth, other.1, y.1);
    }
    if third.iter().any(|mask| *mask != 0) {
        for (y, other) in y.iter_mut().zip(dct3_8(x)) {
            y.1 = isa.select(third, other.1, y.1);
        }
    }
    for (row, y) in rows.iter_mut().zip(y) {
        *row = y.1;
    }
    for (block, row) in octets_mut(blocks).iter_mut().zip(isa.transpose(rows)) {
        isa.store(row, block);
    }
}
