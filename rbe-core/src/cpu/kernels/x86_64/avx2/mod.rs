//! AVX2, FMA and F16C: Haswell, Zen.

mod attention;
mod codes;
mod dct;
mod dense;
pub(super) mod isa;
mod lanes;
pub(super) mod panels;
pub(super) mod planes;
mod sparse;
pub(super) mod trellis;
mod trellis_many;
mod viterbi;
mod viterbi_bytes;

use crate::cpu::kernels::level::LevelSpec;
use crate::cpu::kernels::scalar;
use crate::cpu::kernels::table::{Kernels, Op, PanelCost};
use std::arch::is_x86_feature_detected as has;

const NAME: &str = "avx2";

pub(in crate::cpu::kernels) static LEVEL: LevelSpec = LevelSpec {
    name: NAME,
    below: Some(&scalar::LEVEL),
    detect: || has!("avx2") && has!("fma") && has!("f16c") && has!("popcnt"),
    kernels: &TABLE,
    inherited: &[],
};

pub(super) const TABLE: Kernels = Kernels {
    planes: Op::new(NAME, planes::product),
    pair_digits: Op::new(NAME, Some(dense::pair_digits)),
    planes_transposed: Op::new(NAME, planes::transposed),
    trellis: Op::new(NAME, trellis::product),
    trellis_transposed: Op::new(NAME, trellis::transposed),
    trellis_codes: Op::new(NAME, trellis_many::group_codes),
    plane_codes: Op::new(NAME, codes::plane_codes),
    add_codes: Op::new(NAME, codes::add_codes),
    trellis_squares: Op::new(NAME, Some(trellis_many::squares)),
    panel_floats: Op::new(NAME, panels::floats),
    panel_integers: Op::new(NAME, Some(panels::integers)),
    round_vector: Op::new(NAME, panels::round_vector),
    round_strip: Op::new(NAME, panels::round_strip),
    panel_cost: Op::new(NAME, PanelCost { floats: 2.3, integers: 1.4, decoding: 75.0, long_codes: 2.0 }),
    sparse: Op::new(NAME, sparse::product),
    sparse_transposed: Op::new(NAME, sparse::transposed),
    spmm_min_batch: Op::new(NAME, 8),
    spmm: Op::new(NAME, sparse::spmm),
    sddmm: Op::new(NAME, sparse::sddmm),
    weigh: Op::new(NAME, dense::weigh),
    largest: Op::new(NAME, dense::largest),
    quantize_slice: Op::new(NAME, dense::quantize_slice),
    rows_to_lanes: Op::new(NAME, lanes::rows_to_lanes),
    lanes_to_rows: Op::new(NAME, lanes::lanes_to_rows),
    dct2: Op::new(NAME, dct::dct2),
    dct3: Op::new(NAME, dct::dct3),
    dct2_of_strip: Op::new(NAME, dct::dct2_of_strip),
    dct3_of_strip: Op::new(NAME, dct::dct3_of_strip),
    add_tiles: Op::new(NAME, dct::add_tiles),
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
};
