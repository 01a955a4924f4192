//! Products with panels: a strip in four registers, four vectors at a time.

use super::isa::Neon;
use crate::cpu::kernels::generic::panels::{add_floats, few_at_once};
use crate::cpu::layout::{Lanes, RowSums};
use std::ops::Range;

#[target_feature(enable = "neon")]
pub(super) fn floats(weights: &[Lanes], x: &[f32], sums: &mut [RowSums]) {
    let (isa, inputs) = (Neon::new(), weights.len());
    let x = |own: Range<usize>| &x[own.start * inputs..own.end * inputs];
    few_at_once!(4, sums, |own, sums| add_floats::<Neon, 4, 4>(isa, weights, x(own), sums), [1 2 3 4]);
}
