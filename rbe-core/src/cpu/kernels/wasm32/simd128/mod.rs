//! Registers of 128 bits: what engines have had since 2021, for modules that are built with `-C target-feature=+simd128`.

mod isa;
mod multiply;
mod planes;
mod trellis;

use crate::cpu::kernels::level::LevelSpec;
use crate::cpu::kernels::scalar;
use crate::cpu::kernels::table::{Kernels, Op};

const NAME: &str = "simd128";

pub(in crate::cpu::kernels) static LEVEL: LevelSpec = LevelSpec {
    name: NAME,
    below: Some(&scalar::LEVEL),
    detect: || true,
    kernels: &TABLE,
    // Plain Rust is compiled for these registers too.
    inherited: &[
        "planes_transposed",
        "dense_digits",
        "sparse",
        "sparse_transposed",
        "spmm_min_batch",
        "spmm",
        "sddmm",
        "largest",
        "quantize_slice",
        "rows_to_lanes",
        "lanes_to_rows",
        "dct2",
        "dct3",
        "dct2_of_four",
        "dct3_of_four",
        "norm",
        "norm_gradient",
        "exp",
        "dot",
        "viterbi",
    ],
};

const TABLE: Kernels = Kernels {
    planes: Op::new(NAME, planes::product),
    trellis: Op::new(NAME, trellis::product),
    trellis_transposed: Op::new(NAME, trellis::transposed),
    trellis_rows: Op::new(NAME, trellis::rows),
    ..scalar::TABLE
};
