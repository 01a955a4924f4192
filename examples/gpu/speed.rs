//! Products on the card beside Candle's own, in one run.
//!
//! Weights are random codes: how long a product takes does not depend on them. Each product runs over copies of its
//! matrix that together are twice the card's second cache, many in a row before the host waits; the median of seven such
//! rows is taken. Bytes are the compressed ones, against a copy within the card's memory (read and written counted).

use anyhow::{Context, Result};
use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute as Attribute;
use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{DType, Device, Module, Tensor};
use candle_rbe::codec::matrix::Orientation;
use candle_rbe::codec::term::planes::{QuantizedBlock, ScaleGroup};
use candle_rbe::codec::term::sparse::{Entry, Format};
use candle_rbe::codec::term::trellis::{QuantizedGroup, scale_groups};
use candle_rbe::codec::term::{Planes, Sparse, Term, Trellis};
use candle_rbe::codec::{Layout, Matrix};
use candle_rbe::{RbeLinear, RbeTensor, Transform};
use half::f16;
use serde::Serialize;
use std::borrow::Cow;
use std::time::{Duration, Instant};

/// `(out, in)`.
const SHAPES: [(usize, usize); 5] = [(4096, 4096), (4096, 11008), (11008, 4096), (8192, 8192), (8192, 28672)];
const TOKENS: [usize; 8] = [1, 2, 4, 8, 16, 64, 512, 2048];
const ROWS_OF_RUNS: usize = 7;
const ROW: Duration = Duration::from_millis(20);
const COPIED_BYTES: usize = 1 << 30;

/// One measured product.
#[derive(Serialize)]
pub(crate) struct Row {
    out: usize,
    r#in: usize,
    tokens: usize,
    weight: String,
    weight_bytes: usize,
    us: f64,
    weight_gb_s: f64,
}

#[derive(Serialize)]
pub(crate) struct Speed {
    copy_gb_s: f64,
    rows: Vec<Row>,
}

/// What is multiplied with.
enum Weights {
    Layers(Vec<RbeLinear>),
    Quantized(Vec<QMatMul>),
    Dense(Vec<Tensor>),
}

impl Weights {
    fn count(&self) -> usize {
        match self {
            Weights::Layers(layers) => layers.len(),
            Weights::Quantized(weights) => weights.len(),
            Weights::Dense(weights) => weights.len(),
        }
    }

    fn product(&self, n: usize, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Weights::Layers(layers) => layers[n % layers.len()].forward(x),
            Weights::Quantized(weights) => weights[n % weights.len()].forward(x),
            Weights::Dense(weights) => x.matmul(&weights[n % weights.len()].t()?),
        }
    }
}

pub(crate) fn run(device: &Device) -> Result<Speed> {
    let cache = usize::try_from(
        device
            .as_cuda_device()?
            .cuda_stream()
            .context()
            .attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
    )?;
    let source = Tensor::zeros(COPIED_BYTES, DType::U8, device)?;
    let us = microseconds(device, 1, |_| source.copy())?;
    let mut speed = Speed { copy_gb_s: 2.0 * COPIED_BYTES as f64 / us / 1e3, rows: Vec::new() };
    drop(source);
    for (out, input) in SHAPES {
        for (name, make) in compressed() {
            let tensor = make(out, input)?;
            let bytes = tensor.plain_size_in_bytes();
            let copies = copies(cache, bytes);
            let layers = (0..copies).map(|_| Ok(RbeLinear::new(tensor.to_device(device)?, None)));
            let weights = Weights::Layers(layers.collect::<Result<_>>()?);
            measure(device, (out, input), &name, bytes, &weights, DType::F16, &mut speed.rows)?;
        }
        for dtype in [GgmlDType::Q4_0, GgmlDType::Q4K, GgmlDType::Q8_0, GgmlDType::Q2K] {
            let (weights, bytes) = quantized(dtype, (out, input), cache, device)?;
            let name = format!("Candle {dtype:?}");
            measure(device, (out, input), &name, bytes, &weights, DType::F32, &mut speed.rows)?;
        }
        let bytes = 2 * out * input;
        let dense = || Ok(Tensor::randn(0f32, 0.02, (out, input), device)?.to_dtype(DType::F16)?);
        let weights = Weights::Dense((0..copies(cache, bytes)).map(|_| dense()).collect::<Result<_>>()?);
        measure(device, (out, input), "Candle F16", bytes, &weights, DType::F16, &mut speed.rows)?;
    }
    Ok(speed)
}

fn copies(cache: usize, bytes: usize) -> usize {
    (2 * cache).div_ceil(bytes).max(2)
}

fn measure(
    device: &Device,
    (out, input): (usize, usize),
    name: &str,
    bytes: usize,
    weights: &Weights,
    dtype: DType,
    rows: &mut Vec<Row>,
) -> Result<()> {
    for tokens in TOKENS {
        let x = Tensor::randn(0f32, 1.0, (tokens, input), device)?.to_dtype(dtype)?;
        let us = microseconds(device, weights.count(), |n| weights.product(n, &x))
            .with_context(|| format!("{name}, {out}x{input}, {tokens} tokens"))?;
        let weight_gb_s = bytes as f64 / us / 1e3;
        let weight = name.to_owned();
        eprintln!("{out}x{input} {weight} {tokens}: {us:.1} us, {weight_gb_s:.0} GB/s");
        rows.push(Row { out, r#in: input, tokens, weight, weight_bytes: bytes, us, weight_gb_s });
    }
    Ok(())
}

/// The median time of one of many runs in a row.
fn microseconds(
    device: &Device,
    count: usize,
    mut run: impl FnMut(usize) -> candle_core::Result<Tensor>,
) -> Result<f64> {
    let mut row = |runs: usize| -> Result<Duration> {
        device.synchronize()?;
        let start = Instant::now();
        (0..runs).try_for_each(|n| run(n).map(drop))?;
        device.synchronize()?;
        Ok(start.elapsed())
    };
    row(count.max(3))?; // loads kernels, fills the allocator's pool
    let first = row(count.max(3))?.as_secs_f64() / count.max(3) as f64;
    let runs = ((ROW.as_secs_f64() / first).ceil() as usize).clamp(count, 2000);
    let mut times = (0..ROWS_OF_RUNS).map(|_| row(runs)).collect::<Result<Vec<_>>>()?;
    times.sort();
    Ok(times[ROWS_OF_RUNS / 2].as_secs_f64() * 1e6 / runs as f64)
}

type Make = Box<dyn Fn(usize, usize) -> Result<RbeTensor>>;

/// Every compressed form, by its name.
fn compressed() -> Vec<(String, Make)> {
    let mut all: Vec<(String, Make)> = Vec::new();
    for bits in [2, 3, 4, 8] {
        all.push((format!("planes {bits}"), Box::new(move |out, input| planes(out, input, bits))));
    }
    for bits in [2, 3, 4] {
        all.push((format!("trellis {bits}"), Box::new(move |out, input| trellis(out, input, bits))));
    }
    for k in [16, 64, 200] {
        all.push((format!("sparse K {k}"), Box::new(move |out, input| sparse(out, input, k))));
    }
    all
}

fn tensor(layout: Layout, seed: Option<u64>, term: Term) -> Result<RbeTensor> {
    let matrix = Matrix::new(layout, Transform::Dct, seed, vec![term], 0.5);
    Ok(RbeTensor::from_bytes(&matrix.to_bytes(Orientation::Matrix))?)
}

/// Codes that are no pattern.
fn codes(count: usize, bits: u8, seed: usize) -> Vec<u8> {
    let mut state = seed as u64 * 2 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8 >> (8 - bits)
    };
    (0..count).map(|_| next()).collect()
}

fn planes(out: usize, input: usize, bits: u8) -> Result<RbeTensor> {
    let layout = Layout::new(out, input, 256)?;
    let quantized = |seed: usize, len: usize| QuantizedBlock {
        planes: bits,
        scales: vec![f16::from_f32(0.01)],
        codes: codes(len, bits, seed),
    };
    let blocks: Vec<_> = layout.iter().map(|block| quantized(block.index, block.len())).collect();
    tensor(layout, Some(1), Term::Planes(Planes::pack(layout, ScaleGroup::Block, 1.0, &blocks)))
}

fn trellis(out: usize, input: usize, bits: u8) -> Result<RbeTensor> {
    let layout = Layout::new(out, input, 256)?;
    let quantized = |seed: usize, len: usize| QuantizedGroup {
        bits,
        scale: f16::from_f32(0.001),
        codes: codes(len, bits, seed),
    };
    let all: Vec<_> =
        scale_groups(layout).map(|scale_group| quantized(scale_group.index, scale_group.len())).collect();
    tensor(layout, Some(1), Term::Trellis(Trellis::pack(layout, 12, 1.0, &all)))
}

/// `k` coefficients in each block of 64.
fn sparse(out: usize, input: usize, k: usize) -> Result<RbeTensor> {
    let layout = Layout::new(out, input, 64)?;
    let blocks: Vec<Vec<Entry>> = layout
        .iter()
        .map(|block| {
            let jitter = codes(k, 4, block.index);
            let step = block.len() / k;
            let place = |n: usize| n * step + usize::from(jitter[n]) % step;
            let entry = |at: usize| Entry {
                row: (at / block.width) as u8,
                col: (at % block.width) as u8,
                value: 0.1,
            };
            (0..k).map(|n| entry(place(n))).collect()
        })
        .collect();
    tensor(layout, None, Term::Sparse(Sparse::pack(layout, Format::Word32, &blocks)?))
}

/// Candle's own types: a few rows quantised and repeated.
fn quantized(
    dtype: GgmlDType,
    (out, input): (usize, usize),
    cache: usize,
    device: &Device,
) -> Result<(Weights, usize)> {
    const SAMPLE: usize = 32;
    let sample = Tensor::randn(0f32, 0.02, (SAMPLE, input), &Device::Cpu)?;
    let bytes = QTensor::quantize(&sample, dtype)?.data()?.repeat(out / SAMPLE);
    let one = || -> Result<QMatMul> {
        let storage = QStorage::from_data(Cow::Borrowed(&bytes), device, dtype)?;
        Ok(QMatMul::from_qtensor(QTensor::new(storage, (out, input))?)?)
    };
    let weights = (0..copies(cache, bytes.len())).map(|_| one()).collect::<Result<_>>()?;
    Ok((Weights::Quantized(weights), bytes.len()))
}

impl Speed {
    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("\nA copy within the card's memory: {:.0} GB/s.\n", self.copy_gb_s);
        for (out, input) in SHAPES {
            text += &format!(
                "\n## {out}x{input}: microseconds (share of the copy's bytes per second)\n\n| weight |"
            );
            TOKENS.iter().for_each(|tokens| text += &format!(" {tokens} |"));
            text += &format!("\n|---|{}", "---|".repeat(TOKENS.len()));
            let rows = self.rows.iter().filter(|row| (row.out, row.r#in) == (out, input));
            for row in rows {
                if row.tokens == TOKENS[0] {
                    text += &format!("\n| {} |", row.weight);
                }
                let share = 100.0 * row.weight_gb_s / self.copy_gb_s;
                text += &format!(" {:.1} ({share:.0} %) |", row.us);
            }
            text += "\n";
        }
        text
    }
}
