//! AVX-VNNI: Alder Lake and later, on whose desktops and laptops there is no AVX-512.
//!
//! Such processors have GFNI too, which is not asked for: a matrix product of bits makes no window and no look-up less, for a state's
//! bits lie in two bytes, and `level ^ mix` costs as much by look-up.

mod isa;
mod kernels;
mod multiply;

use super::avx2;
use crate::cpu::kernels::level::{
    ACTIVATIONS, ATTENTION, DECODING, FLOATS, LANES, LevelSpec, SPARSE, STRIPS, VITERBI,
};
use crate::cpu::kernels::table::{Kernels, Op, PanelCost, PanelIntegers, Planes, Trellis};
use std::arch::is_x86_feature_detected as has;

const INHERITED: &[&[&str]] = &[
    DECODING,
    VITERBI,
    &["panel_floats", "round_vector", "round_strip"],
    SPARSE,
    ACTIVATIONS,
    LANES,
    FLOATS,
    ATTENTION,
    STRIPS,
];

const fn table(name: &'static str, planes: Planes, trellis: Trellis, integers: PanelIntegers) -> Kernels {
    Kernels {
        planes: Op::new(name, planes),
        pair_digits: Op::new(name, None),
        trellis: Op::new(name, trellis),
        panel_integers: Op::new(name, Some(integers)),
        panel_cost: Op::new(name, PanelCost { floats: 2.9, integers: 1.4, decoding: 90.0, long_codes: 1.0 }),
        ..avx2::TABLE
    }
}

pub(in crate::cpu::kernels) static LEVEL: LevelSpec = LevelSpec {
    name: "avx-vnni",
    below: Some(&avx2::LEVEL),
    detect: || has!("avxvnni"),
    kernels: &table("avx-vnni", kernels::vex::planes, kernels::vex::trellis, kernels::vex::panel_integers),
    // Only integer products are made of it.
    inherited: INHERITED,
};

/// The same kernels with the same instruction as AVX-512 encodes it: processors that tests run on have that more often.
#[cfg(test)]
pub(in crate::cpu::kernels) static AS_AVX512_ENCODES_IT: LevelSpec = LevelSpec {
    name: "avx-vnni-evex",
    below: Some(&avx2::LEVEL),
    detect: || has!("avx512vnni") && has!("avx512vl"),
    kernels: &table(
        "avx-vnni-evex",
        kernels::evex::planes,
        kernels::evex::trellis,
        kernels::evex::panel_integers,
    ),
    inherited: INHERITED,
};
