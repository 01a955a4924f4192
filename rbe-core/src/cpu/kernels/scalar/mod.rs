//! Plain Rust: what every processor runs, and what the other levels are compared with.

mod attention;
mod dct;
mod isa;
mod panels;
mod planes;
mod trellis;

use super::generic::{
    activations, codes, dense, lanes, norm, panels as generic_panels, sparse, viterbi::plain_step,
    viterbi_bytes,
};
use super::level::LevelSpec;
use super::table::{Kernels, Op, PanelCost};
use isa::Scalar;

const NAME: &str = "scalar";

pub(super) static LEVEL: LevelSpec =
    LevelSpec { name: NAME, below: None, detect: || true, kernels: &TABLE, inherited: &[] };

pub(super) const TABLE: Kernels = Kernels {
    planes: Op::new(NAME, planes::product),
    pair_digits: Op::new(NAME, None),
    planes_transposed: Op::new(NAME, planes::transposed),
    trellis: Op::new(NAME, trellis::product),
    trellis_transposed: Op::new(NAME, trellis::transposed),
    trellis_codes: Op::new(NAME, trellis::group_codes),
    plane_codes: Op::new(NAME, codes::plane_codes),
    add_codes: Op::new(NAME, codes::add_codes),
    trellis_squares: Op::new(NAME, None),
    panel_floats: Op::new(NAME, panels::floats),
    panel_integers: Op::new(NAME, None),
    round_vector: Op::new(NAME, generic_panels::round_vector),
    round_strip: Op::new(NAME, generic_panels::round_strip),
    panel_cost: Op::new(
        NAME,
        PanelCost { floats: 2.7, integers: f32::INFINITY, decoding: 70.0, long_codes: 1.0 },
    ),
    sparse: Op::new(NAME, sparse::product::<Scalar, false>),
    sparse_transposed: Op::new(NAME, sparse::product::<Scalar, true>),
    spmm_min_batch: Op::new(NAME, 8),
    spmm: Op::new(NAME, sparse::spmm::<Scalar>),
    sddmm: Op::new(NAME, sparse::sddmm::<Scalar>),
    weigh: Op::new(NAME, dense::weigh),
    largest: Op::new(NAME, activations::largest),
    quantize_slice: Op::new(NAME, activations::quantize_slice),
    rows_to_lanes: Op::new(NAME, lanes::rows_to_lanes),
    lanes_to_rows: Op::new(NAME, lanes::lanes_to_rows),
    dct2: Op::new(NAME, dct::dct2),
    dct3: Op::new(NAME, dct::dct3),
    dct2_of_strip: Op::new(NAME, dct::dct2_of_strip),
    dct3_of_strip: Op::new(NAME, dct::dct3_of_strip),
    add_tiles: Op::new(NAME, dct::add_tiles),
    norm: Op::new(NAME, norm::norm),
    norm_gradient: Op::new(NAME, norm::norm_gradient),
    exp: Op::new(NAME, norm::exp),
    silu_mul: Op::new(NAME, norm::silu_mul),
    dot: Op::new(NAME, dense::dot),
    attend: Op::new(NAME, attention::attend),
    viterbi: Op::new(NAME, [plain_step::<2>, plain_step::<4>, plain_step::<8>, plain_step::<16>]),
    viterbi_bytes: Op::new(
        NAME,
        (
            viterbi_bytes::PLAIN_LANES,
            [
                viterbi_bytes::plain_step::<2>,
                viterbi_bytes::plain_step::<4>,
                viterbi_bytes::plain_step::<8>,
                viterbi_bytes::plain_step::<16>,
            ],
        ),
    ),
};
