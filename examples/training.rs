//! What a training step of one layer costs: Candle's dense layer beside the compressed ones, in one process.
//!
//! ```sh
//! cargo run --release --features cli --example training -- [OUT IN TOKENS]
//! ```
//!
//! A step is a forward, the loss `sum(y^2)`, and a backward with the gradient of the input. `ms` is the median of nine steps
//! taken in turn; `peak` is the heap that a step takes beyond what the layer and its input hold. The dense layer trains its
//! weight; `frozen` layers pass the gradient on.

use anyhow::Result;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Module, VarBuilder, VarMap};
use candle_rbe::{
    AdapterConfig, Encoder, EncoderConfig, Linear, Rate, RbeLinear, SpectralAdapter, TermChoice,
    TrainableLinear,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

/// The system's allocator, counting.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[allow(unsafe_code)]
// SAFETY: every call is the system allocator's own; the counters do not touch the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(HELD.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the pointer came from `alloc` above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> Result<()> {
    let sizes: Vec<usize> = std::env::args().skip(1).map(|size| size.parse()).collect::<Result<_, _>>()?;
    let [out, input, tokens] = sizes[..].try_into().unwrap_or([1024, 1024, 512]);
    let device = Device::Cpu;
    let weight = Tensor::randn(0f32, 0.02, (out, input), &device)?;
    let x = Var::randn(0f32, 1.0, (tokens, input), &device)?;
    let compressed = |term, bits: f64| {
        let config = EncoderConfig { term, block: Some(256), ..Rate::BitsPerWeight(bits).into() };
        Ok::<_, anyhow::Error>(RbeLinear::new(Encoder::new(config)?.encode(&weight)?, None))
    };
    let (trellis, planes) = (compressed(TermChoice::Trellis, 4.02)?, compressed(TermChoice::Planes, 4.02)?);
    let variables = VarMap::new();
    let vb = |name: &str| VarBuilder::from_varmap(&variables, DType::F32, &device).pp(name);
    let adapter =
        |base: Linear, count, name| SpectralAdapter::new(base, AdapterConfig::random(count, 1), vb(name));
    let dense = Var::from_tensor(&weight)?;
    let frozen = Linear::new(weight.clone(), None);
    let layers: Vec<(&str, Linear)> = vec![
        ("dense", Linear::new(dense.as_tensor().clone(), None)),
        ("dense, frozen", frozen.clone()),
        ("trellis, frozen", trellis.clone().into()),
        ("planes, frozen", planes.clone().into()),
        ("trellis, its scales", TrainableLinear::new(trellis.clone(), vb("trellis"))?.into()),
        ("planes, their scales", TrainableLinear::new(planes.clone(), vb("planes"))?.into()),
        ("dense, frozen, adapter of 1000", adapter(frozen, 1000, "a")?.into()),
        ("trellis, frozen, adapter of 1000", adapter(trellis.clone().into(), 1000, "b")?.into()),
        ("trellis, frozen, adapter of 16000", adapter(trellis.into(), 16000, "c")?.into()),
    ];
    let mut results = vec![(vec![], 0); layers.len()];
    for _ in 0..9 {
        for ((_, layer), (times, peak)) in layers.iter().zip(&mut results) {
            let held = HELD.load(Relaxed);
            PEAK.store(held, Relaxed);
            let start = Instant::now();
            let gradients = layer.forward(&x)?.sqr()?.sum_all()?.backward()?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
            assert!(gradients.get(&x).is_some());
            drop(gradients);
            *peak = PEAK.load(Relaxed) - held;
        }
    }
    println!("{out}x{input}, {tokens} tokens\n{:<36} {:>8} {:>6} {:>9}", "layer", "ms", "ratio", "peak MB");
    let median = |times: &[f64]| {
        let mut times = times.to_vec();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let first = median(&results[0].0);
    for ((name, _), (times, peak)) in layers.iter().zip(&results) {
        let ms = median(times);
        println!("{name:<36} {ms:>8.2} {:>6.2} {:>9.2}", ms / first, *peak as f64 / 1e6);
    }
    Ok(())
}
