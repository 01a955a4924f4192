//! NEON with dot products of bytes, `dotprod`: Cortex-A55, A76, Neoverse, Apple M1.

mod isa;
mod planes;
mod trellis;

use super::neon;
use crate::cpu::kernels::level::{
    ACTIVATIONS, ATTENTION, DECODING, FLOATS, LANES, LevelSpec, SPARSE, STRIPS, VITERBI,
};
use crate::cpu::kernels::table::{Kernels, Op, PanelCost};
use std::arch::is_aarch64_feature_detected as has;

const NAME: &str = "neon-dot";

pub(in crate::cpu::kernels) static LEVEL: LevelSpec = LevelSpec {
    name: NAME,
    below: Some(&neon::LEVEL),
    detect: || has!("dotprod"),
    kernels: &TABLE,
    // Only integer products are made of dot products.
    inherited: &[
        &["pair_digits", "panel_floats", "panel_integers", "round_vector", "round_strip"],
        DECODING,
        VITERBI,
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
    panel_cost: Op::new(
        NAME,
        PanelCost { floats: 5.4, integers: f32::INFINITY, decoding: 140.0, long_codes: 1.0 },
    ),
    ..neon::TABLE
};
