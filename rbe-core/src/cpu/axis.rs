//! Many vectors through one side's operator, sixteen segments of blocks at a time.

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
    run(exec, axis, Direction::Forward, x, take);
}

/// `y <- A' x` for every vector.
pub(super) fn inverse(exec: Exec, axis: &Axis, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    let (len, cut) = (axis.len(), axis.cut());
    let shared = Shared::new(y);
    run(exec, axis, Direction::Inverse, x, &|vector, block, segment| {
        let start = vector * len + cut.range(block).start;
        // SAFETY: each vector's blocks are its own, and each is taken once.
        unsafe { shared.part(start..start + segment.len()) }.copy_from_slice(segment);
    });
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

    /// Groups of sixteen that the segments of so many vectors fill.
    fn groups(self, batch: usize) -> usize {
        (batch * self.count).div_ceil(LANES)
    }

    /// The group's segments, each with its vector and block.
    fn segments(self, group: usize, batch: usize) -> impl Iterator<Item = (usize, usize)> + Clone {
        let end = ((group + 1) * LANES).min(batch * self.count);
        (group * LANES..end).map(move |n| (n / self.count, self.first + n % self.count))
    }
}

fn run(exec: Exec, axis: &Axis, direction: Direction, x: &[f32], take: &Take) {
    let (len, cut) = (axis.len(), axis.cut());
    let batch = x.len() / len;
    let source = |(vector, block): (usize, usize)| &x[vector * len..][cut.range(block)];
    let groups = Alike::all(cut).map(|alike| alike.groups(batch)).sum();

    exec.pool.run(groups, &|range| {
        WORKSPACE.with_borrow_mut(|Workspace { rows, by_lanes, scratch }| {
            scratch.resize(axis.scratch_len(), 0.0);
            let mut before = 0;
            for alike in Alike::all(cut) {
                let groups = alike.groups(batch);
                let own = range.start.max(before)..range.end.min(before + groups);
                for group in own {
                    let segments = alike.segments(group - before, batch);
                    let in_lanes = axis.transform() == Transform::Dct && supports(alike.len);
                    let mut count = 0;
                    for (at, row) in segments.clone().zip(rows.iter_mut()) {
                        let (row, source) = (&mut row[..alike.len], source(at));
                        if in_lanes {
                            begin(axis, direction, at.1, source, row);
                        } else {
                            row.copy_from_slice(source);
                            one(axis, direction, at.1, row, scratch);
                        }
                        count += 1;
                    }
                    if in_lanes {
                        transform(exec.kernels, direction, rows, count, alike.len, by_lanes);
                    }
                    for (at, row) in segments.zip(rows.iter_mut()) {
                        let row = &mut row[..alike.len];
                        if in_lanes && direction == Direction::Inverse {
                            axis.weigh(at.1, row);
                        }
                        take(at.0, at.1, row);
                    }
                }
                before += groups;
            }
        });
    });
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
