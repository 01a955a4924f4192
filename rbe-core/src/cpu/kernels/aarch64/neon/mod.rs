//! NEON as every AArch64 processor has it: Cortex-A53, A72.

mod attention;
mod dct;
pub(super) mod isa;
pub(super) mod lanes;
mod panels;
pub(super) mod planes;
mod sparse;
pub(super) mod trellis;
pub(super) mod unpack;
mod viterbi;
mod viterbi_bytes;

use crate::cpu::kernels::level::{ACTIVATIONS, FLOATS, LevelSpec};
use crate::cpu::kernels::scalar;
use crate::cpu::kernels::table::{Kernels, Op, PanelCost};
use std::arch::is_aarch64_feature_detected as has;

const NAME: &str = "neon";

pub(in crate::cpu::kernels) static LEVEL: LevelSpec = LevelSpec {
    name: NAME,
    below: Some(&scalar::LEVEL),
    detect: || has!("neon"),
    kernels: &TABLE,
    // Plain Rust is compiled for NEON too, and none of these multiplies and adds in one.
    inherited: &[
        &["pair_digits", "panel_integers", "round_vector", "round_strip", "plane_codes", "add_codes"],
        ACTIVATIONS,
        FLOATS,
    ],
};

pub(super) const TABLE: Kernels = Kernels {
    planes: Op::new(NAME, planes::product),
    planes_transposed: Op::new(NAME, planes::transposed),
    trellis: Op::new(NAME, trellis::product),
    trellis_transposed: Op::new(NAME, trellis::transposed),
    trellis_codes: Op::new(NAME, trellis::group_codes),
    trellis_squares: Op::new(NAME, None),
    panel_floats: Op::new(NAME, panels::floats),
    panel_cost: Op::new(
        NAME,
        PanelCost { floats: 2.7, integers: f32::INFINITY, decoding: 70.0, long_codes: 1.0 },
    ),
    sparse: Op::new(NAME, sparse::product),
    sparse_transposed: Op::new(NAME, sparse::transposed),
    spmm_min_batch: Op::new(NAME, 8),
    spmm: Op::new(NAME, sparse::spmm),
    sddmm: Op::new(NAME, sparse::sddmm),
    rows_to_lanes: Op::new(NAME, lanes::rows_to_lanes),
    lanes_to_rows: Op::new(NAME, lanes::lanes_to_rows),
    dct2_of_strip: Op::new(NAME, dct::dct2_of_strip),
    dct3_of_strip: Op::new(NAME, dct::dct3_of_strip),
    add_tiles: Op::new(NAME, dct::add_tiles),
    attend: Op::new(NAME, attention::attend),
    viterbi: Op::new(NAME, [viterbi::step::<2>, viterbi::step::<4>, viterbi::step::<8>, viterbi::step::<16>]),
    viterbi_bytes: Op::new(
        NAME,
        (
            16,
            [
                viterbi_bytes::step::<2>,
                viterbi_bytes::step::<4>,
                viterbi_bytes::step::<8>,
                viterbi_bytes::step::<16>,
            ],
        ),
    ),
    ..scalar::TABLE
};
