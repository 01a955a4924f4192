//! Products with panels: four floats at a time, as many processors have in a register.

use super::isa::Scalar;
use crate::cpu::kernels::generic::panels::{add_floats, few_at_once};
use crate::cpu::layout::{Lanes, RowSums};
use std::ops::Range;

pub(super) fn floats(weights: &[Lanes], x: &[f32], sums: &mut [RowSums]) {
    let inputs = weights.len();
    let x = |own: Range<usize>| &x[own.start * inputs..own.end * inputs];
    few_at_once!(2, sums, |own, sums| add_floats::<Scalar, 4, 4>(Scalar, weights, x(own), sums), [1 2]);
}
