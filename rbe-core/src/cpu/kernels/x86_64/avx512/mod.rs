//! AVX-512 with VBMI, VBMI2, VNNI and GFNI: Ice Lake, Zen 4.

mod isa;
mod sparse;
mod trellis;

use super::avx512_vnni;
use crate::cpu::kernels::level::{ACTIVATIONS, ATTENTION, FLOATS, LANES, LevelSpec, PANELS, STRIPS};
use crate::cpu::kernels::table::{Kernels, Op};
use std::arch::is_x86_feature_detected as has;

const NAME: &str = "avx512";

pub(in crate::cpu::kernels) static LEVEL: LevelSpec = LevelSpec {
    name: NAME,
    below: Some(&avx512_vnni::LEVEL),
    detect: || has!("avx512vbmi") && has!("avx512vbmi2") && has!("gfni"),
    kernels: &TABLE,
    // What looks nothing up and multiplies no matrices of bits.
    inherited: &[
        &[
            "planes",
            "pair_digits",
            "planes_transposed",
            "plane_codes",
            "add_codes",
            "trellis_squares",
            "spmm",
            "sddmm",
            "viterbi",
            "viterbi_bytes",
        ],
        PANELS,
        ACTIVATIONS,
        LANES,
        FLOATS,
        ATTENTION,
        STRIPS,
    ],
};

pub(super) const TABLE: Kernels = Kernels {
    trellis: Op::new(NAME, trellis::product),
    trellis_transposed: Op::new(NAME, trellis::transposed),
    trellis_codes: Op::new(NAME, trellis::group_codes),
    sparse: Op::new(NAME, sparse::product),
    sparse_transposed: Op::new(NAME, sparse::transposed),
    spmm_min_batch: Op::new(NAME, 64),
    ..avx512_vnni::TABLE
};
