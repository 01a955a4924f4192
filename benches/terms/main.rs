//! What each term takes, a file a term: to encode, to be read from bytes and packed for products, and to multiply with.
//!
//! ```sh
//! cargo bench --features cli --bench terms [-- FILTER]
//! RBE_CPU=avx2 cargo bench --features cli --bench terms -- product
//! ```
//!
//! Criterion's throughput counts weights of a matrix of 1,024 by 1,024, on all cores. `rbe bench` compares products with Candle's.

mod basis;
mod planes;
mod sparse;
mod trellis;

use candle_core::{Device, Tensor};
use candle_rbe::{Encoder, EncoderConfig, Precision, RbeTensor, ops};
use criterion::{BatchSize, Criterion, Throughput};

const SIDE: usize = 1024;

/// Gaussian weights, as a trained projection's nearly are.
fn noise() -> Tensor {
    Tensor::randn(0f32, 0.02, (SIDE, SIDE), &Device::Cpu).expect("a matrix")
}

/// All that is measured of a term: `config` has it made of `weights`.
fn measure(criterion: &mut Criterion, name: &str, config: EncoderConfig, weights: &Tensor) {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements((SIDE * SIDE) as u64)).sample_size(20);
    let encoder = Encoder::new(config).expect("the configuration is one");
    let encode = || encoder.encode(weights).expect("the weights can be encoded");
    group.bench_function("encode", |bencher| bencher.iter(encode));
    let encoded = encode();
    let bytes = encoded.to_bytes().expect("a payload");
    let x = |tokens: usize| Tensor::randn(0f32, 1.0, (tokens, SIDE), &Device::Cpu).expect("a small tensor");
    let one = x(1);
    group.bench_function("read and pack", |bencher| {
        let first = |bytes: Vec<u8>| {
            let read = RbeTensor::from_bytes(&bytes).expect("a payload");
            ops::matmul(&one, &read, Precision::Int8).expect("shapes fit")
        };
        bencher.iter_batched(|| bytes.clone(), first, BatchSize::LargeInput);
    });
    for tokens in [1, 16, 128] {
        let x = x(tokens);
        for (precision, called) in [(Precision::Int8, "int8"), (Precision::Exact, "exact")] {
            let product = || ops::matmul(&x, &encoded, precision).expect("shapes fit");
            group.bench_function(format!("product of {tokens}, {called}"), |bencher| bencher.iter(product));
        }
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for benches in [basis::bench, sparse::bench, planes::bench, trellis::bench] {
        benches(&mut criterion);
    }
    criterion.final_summary();
}
