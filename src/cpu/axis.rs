//! Many vectors through one side's operator, sixteen block segments at a time.

use super::kernels::{EDGE, Kernels};
use super::pool::{Pool, Shared};
use super::transform::{FOUR, FourLanes, LANES, Lanes, supports};
use crate::codec::Transform;
use crate::codec::axis::Axis;
use std::cell::RefCell;

/// One thread's room for sixteen segments, by rows and by lanes.
struct Room {
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
    static ROOM: RefCell<Room> = RefCell::new(Room {
        rows: Box::new([[0.0; EDGE]; LANES]),
        by_lanes: ByLanes {
            sixteen: [vec![Lanes::ZERO; EDGE], vec![Lanes::ZERO; EDGE]],
            four: [vec![FourLanes::ZERO; EDGE], vec![FourLanes::ZERO; EDGE]],
        },
        scratch: Vec::new(),
    });
}

/// Which way through the operator.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Into the coefficient domain.
    Analyze,
    /// Back from it.
    Synthesize,
}

/// `x <- A x` for every vector; `take(vector, block, segment)` receives each block's coefficients, once, on
/// some thread.
pub(super) fn analyze(
    kernels: &Kernels,
    axis: &Axis,
    x: &[f32],
    pool: &dyn Pool,
    take: &(dyn Fn(usize, usize, &mut [f32]) + Sync),
) {
    run(kernels, axis, Way::Analyze, x, pool, take);
}

/// `y <- A' x` for every vector.
pub(super) fn synthesize(kernels: &Kernels, axis: &Axis, x: &[f32], y: &mut [f32], pool: &dyn Pool) {
    assert_eq!(x.len(), y.len());
    let (len, edge) = (axis.len(), axis.block());
    let shared = Shared::new(y);
    run(kernels, axis, Way::Synthesize, x, pool, &|vector, block, segment| {
        let start = vector * len + block * edge;
        // SAFETY: each vector's blocks are its own, and each is taken once.
        unsafe { shared.part(start..start + segment.len()) }.copy_from_slice(segment);
    });
}

fn run(
    kernels: &Kernels,
    axis: &Axis,
    way: Way,
    x: &[f32],
    pool: &dyn Pool,
    take: &(dyn Fn(usize, usize, &mut [f32]) + Sync),
) {
    let len = axis.len();
    let full = axis.block().min(len);
    let full_blocks = len / full;
    let vectors = x.len() / len;
    let in_lanes = axis.transform() == Transform::Dct && supports(full);
    // Segments of full length, sixteen a group; then the border segments, one by one.
    let segments = vectors * full_blocks;
    let place = |segment: usize| (segment / full_blocks, segment % full_blocks);
    let source =
        |(vector, block): (usize, usize), len_: usize| &x[vector * len + block * axis.block()..][..len_];
    let norm = 1.0 / (full as f32).sqrt();

    pool.run(segments.div_ceil(LANES), &|groups| {
        ROOM.with_borrow_mut(|Room { rows, by_lanes, scratch }| {
            scratch.resize(axis.scratch_len(), 0.0);
            for group in groups {
                let first = group * LANES;
                let count = LANES.min(segments - first);
                if !in_lanes {
                    for (lane, row) in rows[..count].iter_mut().enumerate() {
                        let at = place(first + lane);
                        let row = &mut row[..full];
                        row.copy_from_slice(source(at, full));
                        one(axis, way, at.1, row, scratch);
                        take(at.0, at.1, row);
                    }
                    continue;
                }
                for (lane, row) in rows[..count].iter_mut().enumerate() {
                    let at = place(first + lane);
                    let (row, source) = (&mut row[..full], source(at, full));
                    row.iter_mut().zip(source).for_each(|(row, x)| *row = x * norm);
                    if way == Way::Analyze {
                        axis.flip(at.1, row);
                    }
                }
                transform(kernels, way, rows, count, full, by_lanes);
                for (lane, row) in rows[..count].iter_mut().enumerate() {
                    let at = place(first + lane);
                    let row = &mut row[..full];
                    if way == Way::Synthesize {
                        axis.flip(at.1, row);
                    }
                    take(at.0, at.1, row);
                }
            }
        });
    });

    let border = len - full_blocks * full;
    if border > 0 {
        pool.run(vectors, &|range| {
            ROOM.with_borrow_mut(|Room { rows, scratch, .. }| {
                scratch.resize(axis.scratch_len(), 0.0);
                for vector in range {
                    let row = &mut rows[0][..border];
                    row.copy_from_slice(source((vector, full_blocks), border));
                    one(axis, way, full_blocks, row, scratch);
                    take(vector, full_blocks, row);
                }
            });
        });
    }
}

/// The first `count` rows' first `len` elements, side by side through the DCT.
fn transform(
    kernels: &Kernels,
    way: Way,
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
        match way {
            Way::Analyze => kernels.dct2_of_four(lanes, scratch),
            Way::Synthesize => kernels.dct3_of_four(lanes, scratch),
        }
        for (lane, row) in rows[..count].iter_mut().enumerate() {
            row.iter_mut().zip(&*lanes).for_each(|(row, lanes)| *row = lanes.0[lane]);
        }
    } else {
        let [lanes, scratch] = &mut by_lanes.sixteen;
        let lanes = &mut lanes[..len];
        kernels.rows_to_lanes(rows, lanes);
        match way {
            Way::Analyze => kernels.dct2(lanes, scratch),
            Way::Synthesize => kernels.dct3(lanes, scratch),
        }
        kernels.lanes_to_rows(lanes, rows);
    }
}

/// One segment by the codec's own plan, for transforms and lengths that have no lanes.
fn one(axis: &Axis, way: Way, block: usize, x: &mut [f32], scratch: &mut [f32]) {
    match way {
        Way::Analyze => axis.analyze_block(block, x, scratch),
        Way::Synthesize => axis.synthesize_block(block, x, scratch),
    }
}
