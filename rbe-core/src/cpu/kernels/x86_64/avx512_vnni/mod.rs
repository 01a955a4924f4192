//! AVX-512 with VNNI: Cascade Lake.

mod isa;
mod panels;
mod planes;
mod trellis;

use super::avx512_bw;
use crate::cpu::kernels::level::{
    ACTIVATIONS, ATTENTION, DECODING, FLOATS, LANES, LevelSpec, SPARSE, STRIPS, VITERBI,
};
use crate::cpu::kernels::table::{Kernels, Op, PanelCost};
use std::arch::is_x86_feature_detected as has;

const NAME: &str = "avx512-vnni";

pub(in crate::cpu::kernels) static LEVEL: LevelSpec = LevelSpec {
    name: NAME,
    below: Some(&avx512_bw::LEVEL),
    detect: || has!("avx512vnni"),
    kernels: &TABLE,
    // Only integer products are made of it.
    inherited: &[
        &["pair_digits", "panel_floats", "round_vector", "round_strip"],
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

pub(super) const TABLE: Kernels = Kernels {
    planes: Op::new(NAME, planes::product),
    trellis: Op::new(NAME, trellis::product),
    panel_integers: Op::new(NAME, Some(panels::integers)),
    panel_cost: Op::new(NAME, PanelCost { floats: 2.9, integers: 2.1, decoding: 120.0, long_codes: 1.0 }),
    ..avx512_bw::TABLE
};
