//! Vectors through the operators of sides, up to sixteen segments of blocks at a time.

use super::exec::Exec;
use super::kernels::{Kernels, supports};
use super::layout::{EDGE, FOUR, FourLanes, LANES, Lanes};
use super::pool::Shared;
use crate::codec::axis::Axis;
use crate::codec::{Cut, Transform};
use std::cell::RefCell;

/// One thread's room for sixteen segments, by rows and by lanes.
struct Workspace {
    rows: Box<[[f32; EDGE]; LANES]>,
    by_lanes: ByLanes,
    scratch: Vec<f32>,
}

/// Segments side by side, and scratch.
struct ByLanes {
    sixteen: [Vec<Lanes>; 2],
    four: [Vec<FourLanes>; 2],
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::new(Workspace {
        rows: Box::new([[0.0; EDGE]; LANES]),
        by_lanes: ByLanes {
            sixteen: [vec![Lanes::ZERO; EDGE], vec![Lanes::ZERO; EDGE]],
            four: [vec![FourLanes::ZERO; EDGE], vec![FourLanes::ZERO; EDGE]],
        },
        scratch: Vec::new(),
    });
}

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
    run(exec, Direction::Forward, &[Some(Source { axis, x })], &|_, vector, block, segment| {
        take(vector, block, segment);
    });
}

/// A way back: the operator, coefficients of some vectors, and where these go.
pub(super) struct Back<'a> {
    pub axis: &'a Axis,
    pub x: &'a [f32],
    pub y: &'a mut [f32],
}

/// The most ways that go together.
pub(super) const TOGETHER: usize = 8;

/// `y <- A' x` for every vector of each, of which there are at most [`TOGETHER`].
pub(super) fn inverse<'a>(exec: Exec, all: impl Iterator<Item = Back<'a>>) {
    let mut sources = [None; TOGETHER];
    let mut outputs = [const { None }; TOGETHER];
    for (n, Back { axis, x, y }) in all.enumerate() {
        assert!(x.len() == y.len() && n < TOGETHER);
        (sources[n], outputs[n]) = (Some(Source { axis, x }), Some(Shared::new(y)));
    }
    run(exec, Direction::Inverse, &sources, &|n, vector, block, segment| {
        if let (Some(Source { axis, .. }), Some(y)) = (&sources[n], &outputs[n]) {
            let start = vector * axis.len() + axis.cut().range(block).start;
            // SAFETY: each vector's blocks are its own, and each is taken once.
            unsafe { y.part(start..start + segment.len()) }.copy_from_slice(segment);
        }
    });
}

/// Vectors of an operator.
#[derive(Clone, Copy)]
struct Source<'a> {
    axis: &'a Axis,
    x: &'a [f32],
}

impl<'a> Source<'a> {
    fn batch(self) -> usize {
        self.x.len() / self.axis.len()
    }

    /// A vector's block.
    fn segment(self, (vector, block): (usize, usize)) -> &'a [f32] {
        &self.x[vector * self.axis.len()..][self.axis.cut().range(block)]
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

    /// Segments that go side by side: sixteen, or four where that makes few groups, which several threads may share.
    fn lanes(self, batch: usize) -> usize {
        if batch * self.count <= 2 * FOUR { FOUR } else { LANES }
    }

    /// Groups that the segments of so many vectors make.
    fn groups(self, batch: usize) -> usize {
        (batch * self.count).div_ceil(self.lanes(batch))
    }

    /// The group's segments, each with its vector and block.
    fn segments(self, group: usize, batch: usize) -> impl Iterator<Item = (usize, usize)> + Clone {
        let lanes = self.lanes(batch);
        let end = ((group + 1) * lanes).min(batch * self.count);
        (group * lanes..end).map(move |n| (n / self.count, self.first + n % self.count))
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
                    let segments = alike.segments(group - before, source.batch());
                    transform_segments(
                        exec.kernels,
                        direction,
                        source,
                        (alike.len, segments.clone()),
                        workspace,
                    );
                    for ((vector, block), row) in segments.zip(workspace.rows.iter_mut()) {
                        take(n, vector, block, &mut row[..alike.len]);
                    }
                }
                before += groups;
            }
        });
    });
}

/// Takes segments of one length, a group's, through the operator into the workspace's rows.
fn transform_segments(
    kernels: &Kernels,
    direction: Direction,
    source: Source,
    (len, segments): (usize, impl Iterator<Item = (usize, usize)> + Clone),
    Workspace { rows, by_lanes, scratch }: &mut Workspace,
) {
    let axis = source.axis;
    scratch.resize(axis.scratch_len(), 0.0);
    let in_lanes = axis.transform() == Transform::Dct && supports(len);
    let mut count = 0;
    for (at, row) in segments.clone().zip(rows.iter_mut()) {
        let (row, values) = (&mut row[..len], source.segment(at));
        if in_lanes {
            begin(axis, direction, at.1, values, row);
        } else {
            row.copy_from_slice(values);
            one(axis, direction, at.1, row, scratch);
        }
        count += 1;
    }
    if in_lanes {
        transform(kernels, direction, rows, count, len, by_lanes);
        if direction == Direction::Inverse {
            for ((_, block), row) in segments.zip(rows.iter_mut()) {
                axis.weigh(block, &mut row[..len]);
            }
        }
    }
}

/// A segment on its direction into lanes: with the transform's norm and, where they come first, its signs and scales.
fn begin(axis: &Axis, direction: Direction, block: usize, source: &[f32], row: &mut [f32]) {
    let norm = 1.0 / (row.len() as f32).sqrt();
    row.iter_mut().zip(source).for_each(|(row, x)| *row = x * norm);
    if direction == Direction::Forward {
        axis.weigh(block, row);
    }
}

/// The first `count` rows' first `len` elements, side by side through the DCT.
fn transform(
    kernels: &Kernels,
    direction: Direction,
    rows: &mut [[f32; EDGE]; LANES],
    count: usize,
    len: usize,
    by_lanes: &mut ByLanes,
) {
    if count <= FOUR {
        let [lanes, scratch] = &mut by_lanes.four;
        let lanes = &mut lanes[..len];
        for (n, lanes) in lanes.iter_mut().enumerate() {
            *lanes = FourLanes(std::array::from_fn(|lane| rows[lane][n]));
        }
        match direction {
            Direction::Forward => kernels.dct2_of_four(lanes, scratch),
            Direction::Inverse => kernels.dct3_of_four(lanes, scratch),
        }
        for (lane, row) in rows[..count].iter_mut().enumerate() {
            row.iter_mut().zip(&*lanes).for_each(|(row, lanes)| *row = lanes.0[lane]);
        }
    } else {
        let [lanes, scratch] = &mut by_lanes.sixteen;
        let lanes = &mut lanes[..len];
        kernels.rows_to_lanes(rows, lanes);
        match direction {
            Direction::Forward => kernels.dct2(lanes, scratch),
            Direction::Inverse => kernels.dct3(lanes, scratch),
        }
        kernels.lanes_to_rows(lanes, rows);
    }
}

/// One segment by the codec's own plan, for transforms and lengths that have no lanes.
fn one(axis: &Axis, direction: Direction, block: usize, x: &mut [f32], scratch: &mut [f32]) {
    match direction {
        Direction::Forward => axis.forward_block(block, x, scratch),
        Direction::Inverse => axis.inverse_block(block, x, scratch),
    }
}
