//! `rbe bench`: products on compressed weights beside Candle's own, in the same run.

use crate::layers::Activations;
use crate::print;
use anyhow::{Context, Result, ensure};
use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{DType, Device, Module, Tensor};
use candle_rbe::cpu::{level, levels};
use candle_rbe::{Budget, Encoder, EncoderConfig, Precision, Rate, RbeLinear, RbeTensor, TermChoice};
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::process::{Command, exit};
use std::time::{Duration, Instant};

/// Time products on compressed weights beside Candle's dense and quantised ones, in the same run
///
/// Without options everything is timed, which takes about ten minutes. At a lower level (RBE_CPU) Candle's kernels are held to AVX2.
#[derive(Args)]
pub(crate) struct Bench {
    /// Shape of the weight, OUTxIN; may be given several times
    #[arg(long = "shape", value_name = "OUTxIN", value_parser = shape,
          default_values = ["384x384", "768x768", "768x3072", "3072x768", "4096x4096", "4096x11008", "32000x768"])]
    shapes: Vec<(usize, usize)>,
    /// Tokens multiplied at once
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1,4,16,128,512")]
    tokens: Vec<usize>,
    /// Bit-planes of the planes term
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "2,3,4,5,8")]
    planes: Vec<u8>,
    /// Bits of the trellis term
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "2,3,4,5,8")]
    trellis: Vec<u8>,
    /// Coefficients per block of the sparse term, and the block's edge where it is not 64
    #[arg(long, value_name = "K[@EDGE],..", value_delimiter = ',', value_parser = coefficients, default_value = "16,64,200")]
    k: Vec<(usize, usize)>,
    /// Candle's types to time beside them: f32, f16, bf16, q2k, q3k, q4_0, q4k, q5k, q6k, q8_0
    #[arg(long, value_name = "TYPE,..", value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(PEERS.map(|(name, _)| name)),
          default_values = PEERS.map(|(name, _)| name), hide_possible_values = true, hide_default_value = true)]
    peers: Vec<String>,
    /// How activations are taken by planes and trellises
    #[arg(long, value_name = "PRECISION,..", value_delimiter = ',', default_value = "auto,exact")]
    activations: Vec<Activations>,
    /// Block edge of the planes and trellis terms
    #[arg(long, value_name = "N", default_value_t = 256)]
    block: usize,
    /// One JSON object per line
    #[arg(long)]
    json: bool,
}

fn shape(text: &str) -> Result<(usize, usize), String> {
    let parts = text.split_once('x').and_then(|(out, input)| Some((out.parse().ok()?, input.parse().ok()?)));
    parts.filter(|(out, input)| *out > 0 && *input > 0).ok_or_else(|| "OUTxIN, such as 4096x4096".to_owned())
}

fn coefficients(text: &str) -> Result<(usize, usize), String> {
    let (k, edge) = text.split_once('@').unwrap_or((text, "64"));
    let both = k.parse().ok().zip(edge.parse().ok());
    both.ok_or_else(|| "K or K@EDGE, such as 200 or 400@128".to_owned())
}

/// Bytes of weights that no cache holds: cold runs go round among copies of at least as many.
const BEYOND_CACHES: usize = 96 << 20;

/// A type of Candle's that products are compared with.
#[derive(Clone, Copy)]
enum Peer {
    Dense(DType),
    Quantised(GgmlDType),
}

const PEERS: [(&str, Peer); 10] = [
    ("f32", Peer::Dense(DType::F32)),
    ("f16", Peer::Dense(DType::F16)),
    ("bf16", Peer::Dense(DType::BF16)),
    ("q2k", Peer::Quantised(GgmlDType::Q2K)),
    ("q3k", Peer::Quantised(GgmlDType::Q3K)),
    ("q4_0", Peer::Quantised(GgmlDType::Q4_0)),
    ("q4k", Peer::Quantised(GgmlDType::Q4K)),
    ("q5k", Peer::Quantised(GgmlDType::Q5K)),
    ("q6k", Peer::Quantised(GgmlDType::Q6K)),
    ("q8_0", Peer::Quantised(GgmlDType::Q8_0)),
];

/// One measured product.
#[derive(Serialize)]
struct Row<'a> {
    out: usize,
    r#in: usize,
    tokens: usize,
    term: &'a str,
    bits: f64,
    precision: &'a str,
    cold: bool,
    us: f64,
    peers_us: &'a BTreeMap<&'static str, f64>,
    weight_gb_s: f64,
    read_gb_s: f64,
}

/// What holds Candle's kernels for `q4k`, `q6k` and `q8_0` to AVX2: else they are those of the best level that the processor has,
/// whatever `RBE_CPU` says. It is read once.
const HOLD_CANDLE_TO_AVX2: (&str, &str) = ("MISTRALRS_FORCE_AVX2", "1");

impl Bench {
    pub(crate) fn run(&self) -> Result<()> {
        let is_lower = levels().last().is_some_and(|best| best.name() != level().name());
        let (variable, value) = HOLD_CANDLE_TO_AVX2;
        let is_held = std::env::var(variable).as_deref() == Ok(value);
        if cfg!(target_arch = "x86_64") && is_lower && !is_held {
            // Set for a process of its own: nothing may change the variables of one that has threads.
            let arguments = std::env::args_os().skip(1);
            let again =
                Command::new(std::env::current_exe()?).args(arguments).env(variable, value).status()?;
            exit(again.code().unwrap_or(1));
        }
        let read_gb_s = read_bandwidth();
        let candle = if is_held { ", Candle's for AVX2" } else { "" };
        let note = format!(
            "{} threads, RBE kernels for {}{candle}, memory read at {read_gb_s:.1} GB/s",
            candle_core::utils::get_num_threads(),
            level().name()
        );
        print::note(&note);
        for &(out, input) in &self.shapes {
            let weight = Tensor::randn(0f32, 0.02, (out, input), &Device::Cpu)?;
            let ours = self.compressed(&weight)?;
            for &tokens in &self.tokens {
                let x = Tensor::randn(0f32, 1.0, (tokens, input), &Device::Cpu)?;
                for cold in [true, false] {
                    let peers = self.peers_us(&weight, &x, cold)?;
                    let mut table = print::Table::new(&[0]);
                    for (term, compressed) in &ours {
                        // A sparse term takes its input as it is.
                        let exact = [Activations::Exact];
                        let all = if term.starts_with("sparse") { &exact[..] } else { &self.activations[..] };
                        for activations in all {
                            let us = ours_us(compressed, &x, activations.precision(), cold)?;
                            let bytes = compressed.plain_size_in_bytes() as f64;
                            let row = Row {
                                out,
                                r#in: input,
                                tokens,
                                term,
                                bits: 8.0 * bytes / weight.elem_count() as f64,
                                precision: activations.name(),
                                cold,
                                us,
                                peers_us: &peers,
                                weight_gb_s: bytes / us / 1e3,
                                read_gb_s,
                            };
                            if self.json {
                                print::line(&serde_json::to_string(&row)?)?;
                            } else {
                                let part = format!("{:.0} %", 100.0 * row.weight_gb_s / read_gb_s);
                                table.row([
                                    format!("{term} {}", activations.name()),
                                    format!("{:.2} bits", row.bits),
                                    format!("{us:.1} us"),
                                    part,
                                ]);
                            }
                        }
                    }
                    if !self.json {
                        let state = if cold { "cold" } else { "warm" };
                        print::line(&format!("\n{out}x{input}, {tokens} tokens, {state} weights\n{table}"))?;
                        let peers: Vec<_> =
                            peers.iter().map(|(name, us)| format!("{name} {us:.1}")).collect();
                        print::line(&format!("Candle, us: {}", peers.join(", ")))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Microseconds of Candle's types asked for, on the same weight and input.
    fn peers_us(&self, weight: &Tensor, x: &Tensor, cold: bool) -> Result<BTreeMap<&'static str, f64>> {
        let mut peers = BTreeMap::new();
        for (name, peer) in PEERS.into_iter().filter(|(name, _)| self.peers.iter().any(|peer| peer == name)) {
            if let Some(us) = peer.us(weight, x, cold).context(name)? {
                peers.insert(name, us);
            }
        }
        Ok(peers)
    }

    /// The terms asked for, by name.
    fn compressed(&self, weight: &Tensor) -> Result<Vec<(String, RbeTensor)>> {
        let every = |term, bits: u8| EncoderConfig {
            term,
            budget: Budget::Memory,
            block: Some(self.block),
            basis: Some(false),
            ..Rate::BitsPerWeight(f64::from(bits) + 0.02).into()
        };
        let planes = self.planes.iter().map(|&n| (format!("planes {n}"), every(TermChoice::Planes, n)));
        let trellis = self.trellis.iter().map(|&n| (format!("trellis {n}"), every(TermChoice::Trellis, n)));
        let sparse = self.k.iter().map(|&(k, edge)| {
            let config = EncoderConfig {
                block: Some(edge),
                signs: Some(false),
                basis: Some(false),
                ..Rate::Coefficients(k).into()
            };
            (if edge == 64 { format!("sparse {k}") } else { format!("sparse {k}@{edge}") }, config)
        });
        let encode = |(name, config)| Ok((name, Encoder::new(config)?.encode(weight)?));
        planes.chain(trellis).chain(sparse).map(encode).collect()
    }
}

/// Copies to go round among: one when warm.
fn copies(bytes: usize, cold: bool) -> usize {
    if cold { BEYOND_CACHES.div_ceil(bytes).max(2) } else { 1 }
}

fn ours_us(weight: &RbeTensor, x: &Tensor, precision: Precision, cold: bool) -> Result<f64> {
    let dense = candle_nn::Linear::new(weight.dequantize()?, None).forward(x)?;
    let payload = weight.to_plain_bytes()?;
    let layers = (0..copies(weight.memory_in_bytes(), cold))
        .map(|_| Ok(RbeLinear::new(RbeTensor::from_bytes(&payload)?, None).with_precision(precision)))
        .collect::<Result<Vec<_>>>()?;
    let difference = (layers[0].forward(x)? - &dense)?.sqr()?.sum_all()?.to_scalar::<f32>()?;
    let error = (difference / dense.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt();
    let bound = match precision {
        Precision::Exact => 1e-5,
        Precision::Int16 => 1e-3,
        Precision::Auto | Precision::Int8 => 0.02,
    };
    ensure!(error <= bound, "the product is wrong: relative error {error}; nothing was timed");
    time(&layers, |layer| layer.forward(x))
}

impl Peer {
    /// Microseconds of a product; `None` where the type cannot hold the weight.
    fn us(self, weight: &Tensor, x: &Tensor, cold: bool) -> Result<Option<f64>> {
        match self {
            Peer::Dense(dtype) => {
                let layers = (0..copies(weight.elem_count() * dtype.size_in_bytes(), cold))
                    .map(|_| Ok(candle_nn::Linear::new(weight.to_dtype(dtype)?.copy()?, None)))
                    .collect::<Result<Vec<_>>>()?;
                let x = x.to_dtype(dtype)?;
                time(&layers, |layer| layer.forward(&x)).map(Some)
            }
            Peer::Quantised(dtype) if !weight.dim(1)?.is_multiple_of(dtype.block_size()) => Ok(None),
            Peer::Quantised(dtype) => {
                let bytes = QTensor::quantize(weight, dtype)?.data()?.into_owned();
                let layer = |_| {
                    let storage = QStorage::from_data(bytes.clone().into(), &Device::Cpu, dtype)?;
                    Ok(QMatMul::from_qtensor(QTensor::new(storage, weight.shape())?)?)
                };
                let layers = (0..copies(bytes.len(), cold)).map(layer).collect::<Result<Vec<_>>>()?;
                time(&layers, |layer| layer.forward(x)).map(Some)
            }
        }
    }
}

/// Microseconds of one call: the fastest of nine series, each of several milliseconds and all layers in turn. What else the machine
/// does only adds to a series.
fn time<T>(layers: &[T], mut call: impl FnMut(&T) -> candle_core::Result<Tensor>) -> Result<f64> {
    let mut turn = layers.iter().cycle();
    let mut series = |calls: u32| -> Result<Duration> {
        let start = Instant::now();
        for layer in turn.by_ref().take(calls as usize) {
            black_box(call(layer)?);
        }
        Ok(start.elapsed())
    };
    let once = series(layers.len().max(3) as u32)? / layers.len().max(3) as u32;
    let calls = (Duration::from_millis(8).as_nanos() / once.as_nanos().max(1)).clamp(1, 10_000) as u32;
    let mut micros = f64::INFINITY;
    for _ in 0..9 {
        micros = micros.min(series(calls)?.as_secs_f64() * 1e6 / f64::from(calls));
    }
    Ok(micros)
}

/// Bytes per second, in GB, that all threads together read from memory.
fn read_bandwidth() -> f64 {
    let memory = vec![1u64; BEYOND_CACHES / 2];
    let pool = candle_core::utils::barrier_pool();
    let best = (0..8)
        .map(|_| {
            let start = Instant::now();
            pool.execute_chunked(memory.len() / 4096, |chunks| {
                let part = &memory[chunks.start * 4096..chunks.end * 4096];
                let (lanes, _) = part.as_chunks::<32>();
                let mut sums = [0u64; 32];
                for chunk in lanes {
                    sums.iter_mut().zip(chunk).for_each(|(sum, value)| *sum |= value);
                }
                black_box(sums);
            });
            start.elapsed()
        })
        .min()
        .unwrap_or_default();
    size_of_val(&memory[..]) as f64 / best.as_secs_f64() / 1e9
}
