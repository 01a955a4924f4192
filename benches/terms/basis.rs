//! The basis term, with the sparse one that takes what it leaves: on a smooth matrix.

use super::SIDE;
use candle_core::{Device, Tensor};
use candle_rbe::{EncoderConfig, Rate, TermChoice};
use criterion::Criterion;

pub(crate) fn bench(criterion: &mut Criterion) {
    let smooth =
        |n: usize| (5.0 * (n / SIDE) as f32 / SIDE as f32 + 3.0 * (n % SIDE) as f32 / SIDE as f32).sin();
    let values: Vec<f32> = (0..SIDE * SIDE).map(smooth).collect();
    let weights = Tensor::from_vec(values, (SIDE, SIDE), &Device::Cpu).expect("a matrix");
    let config = EncoderConfig {
        term: TermChoice::Sparse,
        rate: Rate::Coefficients(20),
        block: Some(64),
        basis: Some(true),
        ..EncoderConfig::default()
    };
    super::measure(criterion, "basis and sparse", config, &weights);
}
