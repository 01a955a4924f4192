//! Registers of 128 bits: what engines have had since 2021, for modules that are built with `-C target-feature=+simd128`.

mod isa;
mod multiply;
mod planes;
mod trellis;

use crate::cpu::kernels::level::{ACTIVATIONS, ATTENTION, FLOATS, LANES, LevelSpec, PANELS, SPARSE, STRIPS};
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
        &["pair_digits", "planes_transposed", "plane_codes", "add_codes", "viterbi", "viterbi_bytes"],
        PANELS,
        SPARSE,
        ACTIVATIONS,
        LANES,
        FLOATS,
        ATTENTION,
        STRIPS,
    ],
};

const TABLE: Kernels = Kernels {
    planes: Op::new(NAME, planes::product),
    trellis: Op::new(NAME, trellis::product),
    trellis_transposed: Op::new(NAME, trellis::transposed),
    trellis_codes: Op::new(NAME, trellis::group_codes),
    trellis_squares: Op::new(NAME, None),
    ..scalar::TABLE
};
