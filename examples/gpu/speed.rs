//! Products on the card beside Candle's own, in one run.
//!
//! Weights are random codes: how long a product takes does not depend on them. Each product runs over copies of its
//! matrix that together are four times the card's second cache, many in a row, which the host queues while the card is kept busy with
//! copies: between two of the card's own events lies what the card takes and not what the host does. The median of seven such rows is
//! taken, and beside it how long the host takes to queue one product. Bytes are the compressed ones, against a copy within the card's
//! memory (read and written counted).

use crate::{Filter, Report, noise};
use anyhow::Result;
use candle_core::cuda_backend::cudarc::driver::sys::{CUdevice_attribute as Attribute, CUevent_flags};
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
use std::time::Instant;

/// `(out, in)`.
const SHAPES: [(usize, usize); 5] = [(4096, 4096), (4096, 11008), (11008, 4096), (8192, 8192), (8192, 28672)];
const TOKENS: [usize; 8] = [1, 2, 4, 8, 16, 64, 512, 2048];
const ROWS_OF_RUNS: usize = 7;
const ROW_US: f64 = 2e3;
/// A card's queue holds about a thousand launches; the host waits where it is full.
const MOST_RUNS: usize = 200;
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
    /// Until the host has queued it.
    host_us: f64,
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

pub(crate) fn run(device: &Device, filter: &Filter, report: &mut Report) -> Result<()> {
    let cache = usize::try_from(
        device
            .as_cuda_device()?
            .cuda_stream()
            .context()
            .attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
    )?;
    let clock = Clock::new(device)?;
    report.speed = Some(Speed { copy_gb_s: clock.copy_gb_s(), rows: Vec::new() });
    for shape in SHAPES.into_iter().filter(|shape| filter.shape(*shape)) {
        for (name, make) in weights_of(cache).into_iter().filter(|(name, _)| filter.form(name)) {
            let (out, input) = shape;
            report.attempt(&format!("{name}, {out}x{input}"), |report| {
                let (weights, bytes, dtype) = make(shape, device)?;
                let Some(speed) = &mut report.speed else { return Ok(()) };
                for tokens in TOKENS.into_iter().filter(|tokens| filter.tokens(*tokens)) {
                    let x = noise::tensor(tokens as u64, 1.0, (tokens, input), device)?.to_dtype(dtype)?;
                    let (us, host_us) = clock.microseconds(weights.count(), |n| weights.product(n, &x))?;
                    let weight_gb_s = bytes as f64 / us / 1e3;
                    eprintln!(
                        "{out}x{input} {name} {tokens}: {us:.1} us, host {host_us:.1}, {weight_gb_s:.0} GB/s"
                    );
                    let weight = name.clone();
                    let row = Row {
                        out,
                        r#in: input,
                        tokens,
                        weight,
                        weight_bytes: bytes,
                        us,
                        host_us,
                        weight_gb_s,
                    };
                    speed.rows.push(row);
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// What makes copies of one weight, their bytes each and the type of its vectors.
type MakeCopies = Box<dyn Fn((usize, usize), &Device) -> Result<(Weights, usize, DType)>>;

/// Every weight, by its name.
fn weights_of(cache: usize) -> Vec<(String, MakeCopies)> {
    let mut all: Vec<(String, MakeCopies)> = Vec::new();
    for (name, make) in compressed() {
        let copies_of = move |(out, input), device: &Device| {
            let tensor = make(out, input)?;
            let bytes = tensor.plain_size_in_bytes();
            let layer = |_| Ok(RbeLinear::new(tensor.to_device(device)?, None));
            let layers = (0..copies(cache, bytes)).map(layer).collect::<Result<_>>()?;
            Ok((Weights::Layers(layers), bytes, DType::F16))
        };
        all.push((name, Box::new(copies_of)));
    }
    for dtype in [GgmlDType::Q4_0, GgmlDType::Q4K, GgmlDType::Q8_0, GgmlDType::Q2K] {
        let copies_of = move |shape, device: &Device| {
            let (weights, bytes) = quantized(dtype, shape, cache, device)?;
            Ok((weights, bytes, DType::F32))
        };
        all.push((format!("Candle {dtype:?}"), Box::new(copies_of)));
    }
    let dense = move |(out, input): (usize, usize), device: &Device| {
        let bytes = 2 * out * input;
        let one = Tensor::randn(0f32, 0.02, (out, input), device)?.to_dtype(DType::F16)?;
        let copies = (0..copies(cache, bytes)).map(|_| one.copy()).collect::<candle_core::Result<_>>()?;
        Ok((Weights::Dense(copies), bytes, DType::F16))
    };
    all.push(("Candle F16".to_owned(), Box::new(dense)));
    all
}

fn copies(cache: usize, bytes: usize) -> usize {
    (4 * cache).div_ceil(bytes).max(2)
}

/// The card's time, beside the host's.
pub(crate) struct Clock<'a> {
    device: &'a Device,
    /// What is copied to keep the card busy, and how long that takes.
    source: Tensor,
    copy_us: f64,
}

impl<'a> Clock<'a> {
    pub(crate) fn new(device: &'a Device) -> Result<Self> {
        let source = Tensor::zeros(COPIED_BYTES, DType::U8, device)?;
        let mut clock = Clock { device, source: source.clone(), copy_us: f64::INFINITY };
        (clock.copy_us, _) = clock.microseconds(1, |_| source.copy())?;
        Ok(clock)
    }

    /// Bytes read and written by a copy within the card's memory.
    pub(crate) fn copy_gb_s(&self) -> f64 {
        2.0 * COPIED_BYTES as f64 / self.copy_us / 1e3
    }

    /// The median time that the card takes for one of many runs in a row, and the host to queue it. `count` runs differ.
    fn microseconds(
        &self,
        count: usize,
        mut run: impl FnMut(usize) -> candle_core::Result<Tensor>,
    ) -> Result<(f64, f64)> {
        let stream = self.device.as_cuda_device()?.cuda_stream();
        let event = || stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        let mut row = |runs: usize, copies: usize| -> Result<(f64, f64)> {
            self.device.synchronize()?;
            (0..copies).try_for_each(|_| self.source.copy().map(drop))?;
            let (begin, start) = (event()?, Instant::now());
            (0..runs).try_for_each(|n| run(n).map(drop))?;
            let (queued, end) = (start.elapsed(), event()?);
            let us = f64::from(begin.elapsed_ms(&end)?) * 1e3;
            Ok((us / runs as f64, queued.as_secs_f64() * 1e6 / runs as f64))
        };
        let count = count.clamp(3, MOST_RUNS);
        row(count, 0)?; // loads kernels, fills the allocator's pool
        let (us, host_us) = row(count, 1)?;
        let runs = ((ROW_US / us).ceil() as usize).clamp(count, MOST_RUNS);
        let copies = 1 + (1.5 * runs as f64 * host_us / self.copy_us).ceil() as usize;
        let mut times = (0..ROWS_OF_RUNS).map(|_| row(runs, copies)).collect::<Result<Vec<_>>>()?;
        times.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        Ok(times[ROWS_OF_RUNS / 2])
    }
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
    Ok(RbeTensor::from_bytes(matrix.to_bytes(Orientation::Matrix))?)
}

/// Codes that are no pattern.
fn codes(count: usize, bits: u8, seed: usize) -> Vec<u8> {
    noise::bits(seed as u64).map(|word| (word >> 24) as u8 >> (8 - bits)).take(count).collect()
}

pub(crate) fn planes(out: usize, input: usize, bits: u8) -> Result<RbeTensor> {
    let layout = Layout::new(out, input, 256)?;
    let quantized = |seed: usize, len: usize| QuantizedBlock {
        planes: bits,
        scales: vec![f16::from_f32(0.01)],
        codes: codes(len, bits, seed),
    };
    let blocks: Vec<_> = layout.iter().map(|block| quantized(block.index, block.len())).collect();
    tensor(layout, Some(1), Term::Planes(Planes::pack(layout, ScaleGroup::Block, 1.0, &blocks)))
}

pub(crate) fn trellis(out: usize, input: usize, bits: u8) -> Result<RbeTensor> {
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

/// Candle's own types.
fn quantized(
    dtype: GgmlDType,
    (out, input): (usize, usize),
    cache: usize,
    device: &Device,
) -> Result<(Weights, usize)> {
    let bytes = quantized_bytes(dtype, (out, input))?;
    let one = || -> Result<QMatMul> {
        let storage = QStorage::from_data(Cow::Borrowed(&bytes), device, dtype)?;
        Ok(QMatMul::from_qtensor(QTensor::new(storage, (out, input))?)?)
    };
    let weights = (0..copies(cache, bytes.len())).map(|_| one()).collect::<Result<_>>()?;
    Ok((Weights::Quantized(weights), bytes.len()))
}

/// A few rows quantised and repeated.
pub(crate) fn quantized_bytes(dtype: GgmlDType, (out, input): (usize, usize)) -> Result<Vec<u8>> {
    const SAMPLE: usize = 32;
    let sample = noise::tensor(1, 0.02, (SAMPLE.min(out), input), &Device::Cpu)?;
    Ok(QTensor::quantize(&sample, dtype)?.data()?.repeat((out / SAMPLE).max(1)))
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
            let rows: Vec<_> = self.rows.iter().filter(|row| (row.out, row.r#in) == (out, input)).collect();
            for of_weight in rows.chunk_by(|a, b| a.weight == b.weight) {
                text += &format!("\n| {} |", of_weight[0].weight);
                for tokens in TOKENS {
                    text +=
                        &of_weight.iter().find(|row| row.tokens == tokens).map_or(" |".to_owned(), |row| {
                            let share = 100.0 * row.weight_gb_s / self.copy_gb_s;
                            format!(" {:.1} ({share:.0} %) |", row.us)
                        });
                }
            }
            text += "\n";
        }
        text
    }
}
