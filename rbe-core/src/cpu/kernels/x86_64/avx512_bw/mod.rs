//! AVX-512 F, BW, DQ and VL: Skylake-X.

mod attention;
mod dct;
pub(super) mod decode;
mod dense;
pub(super) mod isa;
mod lanes;
pub(super) mod multiply;
pub(super) mod panels;
pub(super) mod planes;
mod sparse;
pub(super) mod trellis;
mod viterbi;
mod viterbi_bytes;

use super::avx2;
use crate::cpu::kernels::level::{LevelSpec, STRIPS};
use crate::cpu::kernels::table::{Kernels, Op};
use std::arch::is_x86_feature_detected as has;

const NAME: &str = "avx512-bw";

pub(in crate::cpu::kernels) static LEVEL: LevelSpec = LevelSpec {
    name: NAME,
    below: Some(&avx2::LEVEL),
    detect: || has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl"),
    kernels: &TABLE,
    // Entries are put into lanes by instructions that come with VBMI2; segments alone have half of such a register.
    inherited: &[
        &[
            "trellis_squares",
            "plane_codes",
            "add_codes",
            "panel_cost",
            "sparse",
            "sparse_transposed",
            "spmm_min_batch",
        ],
        STRIPS,
    ],
};

pub(super) const TABLE: Kernels = Kernels {
    planes: Op::new(NAME, planes::product),
    pair_digits: Op::new(NAME, None),
    planes_transposed: Op::new(NAME, planes::transposed),
    trellis: Op::new(NAME, trellis::product),
    trellis_transposed: Op::new(NAME, trellis::transposed),
    trellis_codes: Op::new(NAME, trellis::group_codes),
    panel_floats: Op::new(NAME, panels::floats),
    panel_integers: Op::new(NAME, Some(panels::integers)),
    round_vector: Op::new(NAME, panels::round_vector),
    round_strip: Op::new(NAME, panels::round_strip),
    spmm: Op::new(NAME, sparse::spmm),
    sddmm: Op::new(NAME, sparse::sddmm),
    weigh: Op::new(NAME, dense::weigh),
    largest: Op::new(NAME, dense::largest),
    quantize_slice: Op::new(NAME, dense::quantize_slice),
    rows_to_lanes: Op::new(NAME, lanes::rows_to_lanes),
    lanes_to_rows: Op::new(NAME, lanes::lanes_to_rows),
    dct2: Op::new(NAME, dct::dct2),
    dct3: Op::new(NAME, dct::dct3),
    norm: Op::new(NAME, dense::norm),
    norm_gradient: Op::new(NAME, dense::norm_gradient),
    exp: Op::new(NAME, dense::exp),
    silu_mul: Op::new(NAME, dense::silu_mul),
    dot: Op::new(NAME, dense::dot),
    attend: Op::new(NAME, attention::attend),
    viterbi: Op::new(NAME, [viterbi::step::<2>, viterbi::step::<4>, viterbi::step::<8>, viterbi::step::<16>]),
    viterbi_bytes: Op::new(
        NAME,
        (
            32,
            [
                viterbi_bytes::step::<2>,
                viterbi_bytes::step::<4>,
                viterbi_bytes::step::<8>,
                viterbi_bytes::step::<16>,
            ],
        ),
    ),
    ..avx2::TABLE
};
