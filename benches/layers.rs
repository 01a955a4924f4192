//! What each layer of a compressed transformer takes, element by element or token by token, with Criterion's statistics.
//!
//! ```sh
//! cargo bench --features cli --bench layers [-- FILTER]
//! ```
//!
//! Layers have the width of GPT-2's (768), one token, weights at four bits, activations as one byte where a name says `int8`.
//! Criterion's throughput counts elements of the weight where weights are generated or multiplied, and tokens elsewhere;
//! `docs/speed.md` has the results in its units. `rbe bench` compares products with Candle's.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::Module;
use candle_rbe::nn::{Activation, AttentionPass, Projections};
use candle_rbe::{
    Budget, Embedding, Encoder, EncoderConfig, Linear, Precision, Rate, RbeAttention, RbeLayerNorm,
    RbeLinear, RbeMlp, RbeTensor, TermChoice,
};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};

const WIDTH: usize = 768;
const HEADS: usize = 12;
const TOKENS: usize = 64;
const TERMS: [(&str, TermChoice, Rate); 3] = [
    ("trellis", TermChoice::Trellis, Rate::BitsPerWeight(4.02)),
    ("planes", TermChoice::Planes, Rate::BitsPerWeight(4.02)),
    ("sparse", TermChoice::Sparse, Rate::Coefficients(800)),
];

fn encode((_, term, rate): (&str, TermChoice, Rate), out_features: usize, in_features: usize) -> RbeTensor {
    let config = EncoderConfig {
        term,
        rate,
        block: Some(256),
        budget: Budget::Memory,
        signs: Some(true),
        ..EncoderConfig::default()
    };
    let weight = Tensor::randn(0f32, 0.02, (out_features, in_features), &Device::Cpu);
    let encoder = Encoder::new(config).expect("the configuration is one");
    encoder.encode(&weight.expect("a matrix")).expect("a random matrix can be encoded")
}

/// Layers from one encoder, as in a model.
fn layer(
    term: (&str, TermChoice, Rate),
    out_features: usize,
    in_features: usize,
    precision: Precision,
) -> Linear {
    RbeLinear::new(encode(term, out_features, in_features), None).with_precision(precision).into()
}

/// One benchmark whose call cannot fail.
fn bench(group: &mut BenchmarkGroup<WallTime>, name: &str, mut call: impl FnMut() -> Result<Tensor>) {
    group.bench_function(name, |bencher| bencher.iter(|| call().expect("shapes fit")));
}

/// Names with the precision of activations, for terms that take them in digits.
fn precisions(term: &'static str) -> Vec<(String, Precision)> {
    let default = (term.to_owned(), Precision::Auto);
    if term == "sparse" { vec![default] } else { vec![default, (format!("{term} exact"), Precision::Exact)] }
}

fn input(tokens: usize, width: usize) -> Tensor {
    Tensor::randn(0f32, 1.0, (1, tokens, width), &Device::Cpu).expect("a small tensor")
}

/// All weights of a matrix decoded, per element.
fn generation(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("weights generated");
    group.throughput(Throughput::Elements((WIDTH * WIDTH) as u64));
    for term in TERMS {
        let weight = encode(term, WIDTH, WIDTH);
        bench(&mut group, term.0, || Ok(weight.dequantize()?));
    }
}

/// A product with one token, per element of the weight, and as it is.
fn linear(criterion: &mut Criterion) {
    for width in [384, WIDTH] {
        let mut group = criterion.benchmark_group(format!("linear {width}x{width}"));
        group.throughput(Throughput::Elements((width * width) as u64));
        let x = input(1, width);
        for term in TERMS {
            for (name, precision) in precisions(term.0) {
                let layer = layer(term, width, width, precision);
                bench(&mut group, &name, || layer.forward(&x));
            }
        }
    }
}

/// Rows of a table, per token.
fn embedding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("embedding");
    group.throughput(Throughput::Elements(TOKENS as u64));
    let ids: Vec<u32> = (0..TOKENS as u32).map(|n| n * 61 % 4096).collect();
    let ids = Tensor::new(ids, &Device::Cpu).expect("a small tensor");
    for term in TERMS {
        let table = Embedding::new(encode(term, 4096, WIDTH), WIDTH);
        bench(&mut group, term.0, || table.forward(&ids));
    }
}

/// A layer norm, per token.
fn layer_norm(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("layer norm");
    let weight = Tensor::ones(WIDTH, DType::F32, &Device::Cpu).expect("a small tensor");
    let norm = RbeLayerNorm::new(weight.clone(), weight, 1e-5);
    for tokens in [1, TOKENS] {
        group.throughput(Throughput::Elements(tokens as u64));
        let x = input(tokens, WIDTH);
        bench(&mut group, &format!("{tokens} tokens"), || norm.forward(&x));
    }
}

/// The four projections of an attention layer and what is between them, one token.
fn attention(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("attention");
    group.throughput(Throughput::Elements(1));
    let x = input(1, WIDTH);
    for term in TERMS {
        for (name, precision) in precisions(term.0) {
            let layer = || layer(term, WIDTH, WIDTH, precision);
            let projections = Projections::Separate { q: layer(), k: layer(), v: layer() };
            let attention = RbeAttention::new(projections, layer(), HEADS, HEADS, 0.125);
            bench(&mut group, &name, || attention.forward(&x, 0, &mut AttentionPass::causal(1, None)));
        }
    }
}

/// A feed-forward layer, 768-3072-768, one token.
fn feed_forward(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("feed-forward");
    group.throughput(Throughput::Elements(1));
    let x = input(1, WIDTH);
    for term in TERMS {
        for (name, precision) in precisions(term.0) {
            let up = layer(term, 4 * WIDTH, WIDTH, precision);
            let mlp = RbeMlp::new(up, layer(term, WIDTH, 4 * WIDTH, precision), Activation::GeluTanh);
            bench(&mut group, &name, || mlp.forward(&x));
        }
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for benches in [generation, linear, embedding, layer_norm, attention, feed_forward] {
        benches(&mut criterion);
    }
    criterion.final_summary();
}
