//! Plain Rust: what every processor runs, and what the other levels are compared with.

mod planes;
mod trellis;

use super::LevelSpec;
use super::generic::dct::Recursive;
use super::generic::{
    activations, dct, lanes, norm, planes as generic_planes, sparse, trellis as generic_trellis, viterbi,
};
use super::isa::Isa;
use super::table::{Kernels, Op};
use crate::cpu::layout::Element;

const NAME: &str = "scalar";

pub(super) static LEVEL: LevelSpec =
    LevelSpec { name: NAME, below: None, detect: || true, kernels: &TABLE, inherited: &[] };

pub(super) const TABLE: Kernels = Kernels {
    planes: Op::new(NAME, |tiles, i, row_tile, x, sums| {
        generic_planes::product(Scalar, tiles, i, row_tile, x, sums);
    }),
    planes_transposed: Op::new(NAME, generic_planes::transposed::<Scalar>),
    trellis: Op::new(NAME, |term, i, blocks, x, sums| {
        generic_trellis::product(Scalar, term, i, blocks, x, sums)
    }),
    trellis_transposed: Op::new(NAME, |term, block, g, acc| {
        generic_trellis::transposed(Scalar, term, block, g, acc);
    }),
    trellis_rows: Op::new(NAME, |strip, rows| generic_trellis::rows(Scalar, strip, rows)),
    sparse: Op::new(NAME, sparse::product::<Scalar, false>),
    sparse_transposed: Op::new(NAME, sparse::product::<Scalar, true>),
    spmm_min_batch: Op::new(NAME, 8),
    spmm: Op::new(NAME, sparse::spmm::<Scalar>),
    sddmm: Op::new(NAME, sparse::sddmm::<Scalar>),
    largest: Op::new(NAME, activations::largest),
    take_digit: Op::new(NAME, activations::take_digit),
    rows_to_lanes: Op::new(NAME, lanes::rows_to_lanes),
    lanes_to_rows: Op::new(NAME, lanes::lanes_to_rows),
    dct2: Op::new(NAME, |x, scratch| Scalar.dct2(x, scratch)),
    dct3: Op::new(NAME, |x, scratch| Scalar.dct3(x, scratch)),
    dct2_of_four: Op::new(NAME, |x, scratch| Scalar.dct2(x, scratch)),
    dct3_of_four: Op::new(NAME, |x, scratch| Scalar.dct3(x, scratch)),
    norm: Op::new(NAME, norm::norm),
    norm_gradient: Op::new(NAME, norm::norm_gradient),
    exp: Op::new(NAME, norm::exp),
    viterbi: Op::new(
        NAME,
        [
            viterbi::plain_step::<2>,
            viterbi::plain_step::<4>,
            viterbi::plain_step::<8>,
            viterbi::plain_step::<16>,
        ],
    ),
};

/// The instructions that the compiler uses for the target.
#[derive(Clone, Copy)]
struct Scalar;

impl Isa for Scalar {
    const FMA: bool = false;
}

impl Recursive for Scalar {
    fn dct2<L: Element>(self, x: &mut [L], scratch: &mut [L]) {
        dct::dct2(self, x, scratch);
    }

    fn dct3<L: Element>(self, x: &mut [L], scratch: &mut [L]) {
        dct::dct3(self, x, scratch);
    }

    fn dct4<L: Element>(self, x: &mut [L], scratch: &mut [L]) {
        dct::dct4(self, x, scratch);
    }
}
