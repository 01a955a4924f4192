//! Vectors through the operators of sides: sixteen segments of blocks side by side, or few of them each by itself.

use super::exec::Exec;
use super::kernels::{Kernels, supports};
use super::layout::{EDGE, LANES, Lanes, Strip};
use super::pool::Shared;
use crate::codec::axis::Axis;
use crate::codec::{Cut, Transform};
use std::cell::RefCell;
use std::ops::Range;

/// One thread's room for sixteen segments, by rows and by lanes, or for a strip of them.
struct Workspace {
    rows: Box<[[f32; EDGE]; LANES]>,
    lanes: [Vec<Lanes>; 2],
    strip: Box<Strip>,
    scratch: Vec<f32>,
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::new(Workspace {
        rows: Box::new([[0.0; EDGE]; LANES]),
        lanes: [vec![Lanes::ZERO; EDGE], vec![Lanes::ZERO; EDGE]],
        strip: Box::new(Strip::ZERO),
        scratch: Vec::new(),
    });
}

/// Segments up to which each by itself takes less time than all in lanes.
const FEW: usize = 8;

/// Receives a block of a vector: which vector, which block, and its elements.
pub(super) type Take<'a> = dyn Fn(usize, usize, &mut [f32]) + Sync + 'a;

/// The same of several sources, which comes first.
type TakeOf<'a> = dyn Fn(usize, usize, usize, &mut [f32]) + Sync + 'a;

/// Which way through the operator.
#[derive(Clone, Copy, PartialEq)]
enum Direction {
    /// Into the coefficient domain.
    Forward,
    /// Back from it.
    Inverse,
}

/// `x <- A x` for every vector; `take(vector, block, segment)` receives each block's coefficients, once, on
/// some thread.
pub(super) fn forward(exec: Exec, axis: &Axis, x: &[f32], take: &Take) {
    let source = Source { axis, values: Values::Given(x) };
    run(exec, Direction::Forward, &[Some(source)], &|_, vector, block, segment| {
        take(vector, block, segment);
    });
}

/// A way back, in place: the operator, and coefficients of some vectors.
pub(super) struct Back<'a> {
    pub axis: &'a Axis,
    pub y: &'a mut [f32],
}

/// The most ways that go together.
pub(super) const TOGETHER: usize = 8;

/// `y <- A' y` for every vector of each, of which there are at most [`TOGETHER`].
pub(super) fn inverse<'a>(exec: Exec, all: impl Iterator<Item = Back<'a>>) {
    let mut ys = [const { None }; TOGETHER];
    for (n, back) in all.enumerate() {
        assert!(n < TOGETHER);
        ys[n] = Some((back.axis, Shared::new(back.y)));
    }
    let ys = &ys;
    let sources =
        ys.each_ref().map(|way| way.as_ref().map(|(axis, y)| Source { axis, values: Values::InPlace(y) }));
    run(exec, Direction::Inverse, &sources, &|n, vector, block, segment| {
        if let Some((axis, y)) = &ys[n] {
            let start = vector * axis.len() + axis.cut().range(block).start;
            // SAFETY: each vector's blocks are its own, and each is read once and then written.
            unsafe { y.part(start..start + segment.len()) }.copy_from_slice(segment);
        }
    });
}

/// Vectors of an operator.
#[derive(Clone, Copy)]
struct Source<'a> {
    axis: &'a Axis,
    values: Values<'a>,
}

/// Where vectors are.
#[derive(Clone, Copy)]
enum Values<'a> {
    Given(&'a [f32]),
    /// Where what becomes of them will be.
    InPlace(&'a Shared<'a, f32>),
}

impl<'a> Source<'a> {
    fn batch(self) -> usize {
        let len = match self.values {
            Values::Given(x) => x.len(),
            Values::InPlace(y) => y.len(),
        };
        len / self.axis.len()
    }

    /// A vector's block, to be read before it is taken.
    fn segment(self, (vector, block): (usize, usize)) -> &'a [f32] {
        let Range { start, end } = self.axis.cut().range(block);
        let first = vector * self.axis.len();
        let range = first + start..first + end;
        match self.values {
            Values::Given(x) => &x[range],
            // SAFETY: each block is one segment of one group, which reads it and lets go of it before it is written.
            Values::InPlace(y) => unsafe { y.part(range) },
        }
    }
}

/// Blocks of one length, which lie in one another's lanes: `count` of them, from block `first` on.
#[derive(Clone, Copy)]
struct Alike {
    first: usize,
    count: usize,
    len: usize,
}

impl Alike {
    /// The whole blocks, then each of the shorter ones.
    fn all(cut: &Cut) -> impl Iterator<Item = Self> + '_ {
        let whole =
            (cut.whole_blocks() > 0).then_some(Self { first: 0, count: cut.whole_blocks(), len: cut.edge() });
        let short = (cut.whole_blocks()..cut.blocks()).map(|block| Self {
            first: block,
            count: 1,
            len: cut.range(block).len(),
        });
        whole.into_iter().chain(short)
    }

    /// Whether there are so few that each goes by itself; which several threads may share.
    fn are_few(self, batch: usize) -> bool {
        batch * self.count <= FEW
    }

    /// Segments that go together: in a strip, or in lanes.
    fn together(self, batch: usize) -> usize {
        if self.are_few(batch) { (EDGE / self.len).max(1) } else { LANES }
    }

    /// Groups that the segments of so many vectors make.
    fn groups(self, batch: usize) -> usize {
        (batch * self.count).div_ceil(self.together(batch))
    }

    /// The group's segments, each with its vector and block.
    fn segments(self, group: usize, batch: usize) -> impl Iterator<Item = (usize, usize)> + Clone {
        let together = self.together(batch);
        let end = ((group + 1) * together).min(batch * self.count);
        (group * together..end).map(move |n| (n / self.count, self.first + n % self.count))
    }
}

/// Takes the vectors of all sources through their operators; `take(source, vector, block, segment)` receives what becomes of them.
fn run(exec: Exec, direction: Direction, sources: &[Option<Source>], take: &TakeOf) {
    let alike = || {
        sources.iter().flatten().enumerate().flat_map(|(n, source)| {
            Alike::all(source.axis.cut()).map(move |alike| (n, *source, alike, alike.groups(source.batch())))
        })
    };
    exec.pool.run(alike().map(|(.., groups)| groups).sum(), &|range| {
        WORKSPACE.with_borrow_mut(|workspace| {
            let mut before = 0;
            for (n, source, alike, groups) in alike() {
                let own = range.start.max(before)..range.end.min(before + groups);
                for group in own {
                    let segments = Segments {
                        source,
                        len: alike.len,
                        places: alike.segments(group - before, source.batch()),
                    };
                    let take = |(vector, block): (usize, usize), segment: &mut [f32]| {
                        take(n, vector, block, segment)
                    };
                    if !segments.have_kernels() {
                        segments.one_by_one(direction, workspace, take);
                    } else if alike.are_few(source.batch()) {
                        segments.in_a_strip(exec.kernels, direction, &mut workspace.strip, take);
                    } else {
                        segments.in_lanes(exec.kernels, direction, workspace, take);
                    }
                }
                before += groups;
            }
        });
    });
}

/// A group of a source's segments of one length, at their vectors and blocks.
struct Segments<'a, P> {
    source: Source<'a>,
    len: usize,
    places: P,
}

impl<P: Iterator<Item = (usize, usize)> + Clone> Segments<'_, P> {
    /// Whether there are kernels for the transform and this length.
    fn have_kernels(&self) -> bool {
        self.source.axis.transform() == Transform::Dct && supports(self.len)
    }

    /// By the codec's own plan.
    fn one_by_one(
        self,
        direction: Direction,
        Workspace { rows, scratch, .. }: &mut Workspace,
        take: impl Fn((usize, usize), &mut [f32]),
    ) {
        let axis = self.source.axis;
        scratch.resize(axis.scratch_len(), 0.0);
        let x = &mut rows[0][..self.len];
        for place in self.places {
            x.copy_from_slice(self.source.segment(place));
            match direction {
                Direction::Forward => axis.forward_block(place.1, x, scratch),
                Direction::Inverse => axis.inverse_block(place.1, x, scratch),
            }
            take(place, x);
        }
    }

    /// Each by itself.
    fn in_a_strip(
        self,
        kernels: &Kernels,
        direction: Direction,
        strip: &mut Strip,
        take: impl Fn((usize, usize), &mut [f32]),
    ) {
        let (axis, len) = (self.source.axis, self.len);
        let mut count = 0;
        for (place, x) in self.places.clone().zip(strip.elements.chunks_exact_mut(len)) {
            begin(kernels, axis, direction, place.1, self.source.segment(place), x);
            count += 1;
        }
        match direction {
            Direction::Forward => kernels.dct2_of_strip(strip, len, count),
            Direction::Inverse => kernels.dct3_of_strip(strip, len, count),
        }
        for (place, x) in self.places.zip(strip.elements.chunks_exact_mut(len)) {
            end(kernels, axis, direction, place.1, x);
            take(place, x);
        }
    }

    /// Side by side.
    fn in_lanes(
        self,
        kernels: &Kernels,
        direction: Direction,
        Workspace { rows, lanes: [lanes, scratch], .. }: &mut Workspace,
        take: impl Fn((usize, usize), &mut [f32]),
    ) {
        let axis = self.source.axis;
        for (place, row) in self.places.clone().zip(rows.iter_mut()) {
            begin(kernels, axis, direction, place.1, self.source.segment(place), &mut row[..self.len]);
        }
        let lanes = &mut lanes[..self.len];
        kernels.rows_to_lanes(rows, lanes);
        match direction {
            Direction::Forward => kernels.dct2(lanes, scratch),
            Direction::Inverse => kernels.dct3(lanes, scratch),
        }
        kernels.lanes_to_rows(lanes, rows);
        for (place, row) in self.places.zip(rows.iter_mut()) {
            let x = &mut row[..self.len];
            end(kernels, axis, direction, place.1, x);
            take(place, x);
        }
    }
}

/// A segment on its way into a kernel: with the transform's norm and, where they come first, its signs and scales.
fn begin(kernels: &Kernels, axis: &Axis, direction: Direction, block: usize, source: &[f32], x: &mut [f32]) {
    let norm = 1.0 / (x.len() as f32).sqrt();
    if let Some(weights) = axis.signed_scales(block).filter(|_| direction == Direction::Forward) {
        x.copy_from_slice(source);
        kernels.weigh(x, norm, weights);
        return;
    }
    x.iter_mut().zip(source).for_each(|(x, source)| *x = source * norm);
    if direction == Direction::Forward {
        axis.weigh(block, x);
    }
}

/// And out of it: with its signs and scales, where they come last.
fn end(kernels: &Kernels, axis: &Axis, direction: Direction, block: usize, x: &mut [f32]) {
    if direction == Direction::Forward {
        return;
    }
    match axis.signed_scales(block) {
        Some(weights) => kernels.weigh(x, 1.0, weights),
        None => axis.weigh(block, x),
    }
}
