//! What layers cost, in time and memory, beside Candle's own on the same inputs in one process.
//!
//! ```sh
//! cargo run --release --features cli --example layers_cost -- [training] [attention] [layers]
//! ```
//!
//! The first row of each table is Candle's. `ms` is the median of [`ROUNDS`] calls, taken in turn with those of the other rows;
//! `ratio` is to the first row; `peak MB` is the heap that a call takes beyond what its layers and inputs hold. A training step is a
//! forward, the loss `sum(y^2)` and a backward with the gradient of the input.

use anyhow::{Result, ensure};
use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::{Module, VarBuilder, VarMap};
use candle_rbe::nn::{Activation, AttentionPass, Projections};
use candle_rbe::ops::{self, AttentionMask};
use candle_rbe::{
    AdapterConfig, Encoder, EncoderConfig, Linear, Rate, RbeAttention, RbeLayerNorm, RbeLinear, RbeMlp,
    RbeRmsNorm, SpectralAdapter, TermChoice, TrainableLinear,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

const CPU: Device = Device::Cpu;
const ROUNDS: usize = 9;

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

type Call<'a> = (&'a str, Box<dyn Fn() -> candle_core::Result<Tensor> + 'a>);

/// Measures the calls in turn and prints a table.
fn table(title: &str, calls: &[Call]) -> Result<()> {
    println!("\n{title}\n{:<44} {:>9} {:>6} {:>9}", "", "ms", "ratio", "peak MB");
    let mut results = vec![(vec![], 0); calls.len()];
    for _ in 0..ROUNDS {
        for ((_, call), (times, peak)) in calls.iter().zip(&mut results) {
            let held = HELD.load(Relaxed);
            PEAK.store(held, Relaxed);
            let start = Instant::now();
            let result = call()?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
            drop(result);
            *peak = PEAK.load(Relaxed) - held;
        }
    }
    let mut first = None;
    for ((name, _), (times, peak)) in calls.iter().zip(&mut results) {
        times.sort_by(f64::total_cmp);
        let ms = times[ROUNDS / 2];
        let first = *first.get_or_insert(ms);
        println!("{name:<44} {ms:>9.3} {:>6.2} {:>9.2}", ms / first, *peak as f64 / 1e6);
    }
    Ok(())
}

/// Refuses to time what does not compute the same.
fn expect_same(ours: &Tensor, theirs: &Tensor) -> Result<()> {
    let size = |x: &Tensor| x.sqr()?.sum_all()?.to_scalar::<f32>();
    let error = (size(&(ours - theirs)?)? / size(theirs)?).sqrt();
    ensure!(error < 1e-4, "the results differ by {error}; nothing was timed");
    Ok(())
}

fn main() -> Result<()> {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let is_asked = |name: &str| asked.is_empty() || asked.iter().any(|asked| asked == name);
    if is_asked("training") {
        training()?;
    }
    if is_asked("attention") {
        attention()?;
    }
    if is_asked("layers") {
        norms()?;
        feed_forward()?;
        attention_layer()?;
    }
    Ok(())
}

/// The gradient of `sum(y^2)` in `x`.
fn step(x: &Tensor, y: Tensor) -> candle_core::Result<Tensor> {
    let gradients = y.sqr()?.sum_all()?.backward()?;
    Ok(gradients.get(x).expect("a gradient of the input").clone())
}

fn compress(weight: &Tensor, term: TermChoice, bits: f64) -> Result<RbeLinear> {
    let config = EncoderConfig { term, block: Some(256), ..Rate::BitsPerWeight(bits).into() };
    Ok(RbeLinear::new(Encoder::new(config)?.encode(weight)?, None))
}

fn training() -> Result<()> {
    let (out, input, tokens) = (1024, 1024, 512);
    let weight = Tensor::randn(0f32, 0.02, (out, input), &CPU)?;
    let x = Var::randn(0f32, 1.0, (tokens, input), &CPU)?;
    let (trellis, planes) =
        (compress(&weight, TermChoice::Trellis, 4.02)?, compress(&weight, TermChoice::Planes, 4.02)?);
    let variables = VarMap::new();
    let vb = |name: &str| VarBuilder::from_varmap(&variables, DType::F32, &CPU).pp(name);
    let adapter =
        |base: Linear, count, name| SpectralAdapter::new(base, AdapterConfig::random(count, 1), vb(name));
    let scratch = |share, name| TrainableLinear::from_scratch(input, out, out * input / share, 1, vb(name));
    let dense = Var::from_tensor(&weight)?;
    let frozen = Linear::new(weight.clone(), None);
    let layers: Vec<(&str, Linear)> = vec![
        ("dense", Linear::new(dense.as_tensor().clone(), None)),
        ("dense, frozen", frozen.clone()),
        ("sparse 8:1", scratch(8, "sparse8")?.into()),
        ("sparse 32:1", scratch(32, "sparse32")?.into()),
        ("trellis, frozen", trellis.clone().into()),
        ("planes, frozen", planes.clone().into()),
        ("trellis, its scales", TrainableLinear::new(trellis.clone(), vb("trellis"))?.into()),
        ("planes, their scales", TrainableLinear::new(planes.clone(), vb("planes"))?.into()),
        ("dense, frozen, adapter of 1000", adapter(frozen, 1000, "a")?.into()),
        ("trellis, frozen, adapter of 1000", adapter(trellis.clone().into(), 1000, "b")?.into()),
        ("trellis, frozen, adapter of 16000", adapter(trellis.into(), 16000, "c")?.into()),
    ];
    let calls: Vec<Call> = layers
        .iter()
        .map(|(name, layer)| -> Call { (name, Box::new(|| step(&x, layer.forward(&x)?))) })
        .collect();
    table(&format!("training step of a layer {out}x{input}, {tokens} tokens, 4 bits"), &calls)
}

/// Causal attention as Candle's models compose it; `softmax` is the fused one, or the one with a gradient.
fn composed(
    [q, k, v]: [&Tensor; 3],
    mask: &Tensor,
    softmax: fn(&Tensor) -> candle_core::Result<Tensor>,
) -> candle_core::Result<Tensor> {
    let width = q.dim(D::Minus1)? as f64;
    let scores = (q.matmul(&k.t()?)? / width.sqrt())?.broadcast_add(mask)?;
    softmax(&scores)?.matmul(v)?.transpose(1, 2)?.flatten_from(2)
}

fn softmax_with_gradient(x: &Tensor) -> candle_core::Result<Tensor> {
    candle_nn::ops::softmax(x, D::Minus1)
}

fn causal_mask(seq: usize) -> candle_core::Result<Tensor> {
    let row = |i| (0..seq).map(move |j| if j > i { f32::NEG_INFINITY } else { 0.0 });
    Tensor::from_vec((0..seq).flat_map(row).collect(), (seq, seq), &CPU)
}

fn attention() -> Result<()> {
    let (heads, width) = (4, 64);
    for seq in [1024, 8192] {
        let random = || Var::randn(0f32, 1.0, (1, heads, seq, width), &CPU);
        let vars = [random()?, random()?, random()?];
        let [q, k, v] = &vars;
        let frozen = vars.each_ref().map(|var| var.as_tensor().detach());
        let mask = causal_mask(seq)?;
        let ours = |[q, k, v]: [&Tensor; 3]| {
            ops::attention(q, k, v, 1.0 / (width as f64).sqrt(), &AttentionMask::Causal)
        };
        let frozen = frozen.each_ref();
        expect_same(&ours(frozen)?, &composed(frozen, &mask, candle_nn::ops::softmax_last_dim)?)?;
        let calls: [Call; 2] = [
            ("softmax(q k') v", Box::new(|| composed(frozen, &mask, candle_nn::ops::softmax_last_dim))),
            ("ops::attention", Box::new(|| ours(frozen))),
        ];
        table(&format!("causal attention, {heads} heads of {width}, {seq} positions"), &calls)?;
        // Candle's backward at 8,192 positions holds eight matrices of a gigabyte.
        if seq > 2048 {
            let calls: [Call; 1] = [("ops::attention", Box::new(|| step(q, ours([q, k, v])?)))];
            table(&format!("the same with its gradients, {seq} positions, without a peer"), &calls)?;
        } else {
            let calls: [Call; 2] = [
                ("softmax(q k') v", Box::new(|| step(q, composed([q, k, v], &mask, softmax_with_gradient)?))),
                ("ops::attention", Box::new(|| step(q, ours([q, k, v])?))),
            ];
            table(&format!("the same with its gradients, {seq} positions"), &calls)?;
        }
    }
    Ok(())
}

fn norms() -> Result<()> {
    let (tokens, size) = (512, 1024);
    let x = Var::randn(0f32, 1.0, (tokens, size), &CPU)?;
    let frozen = x.as_tensor().detach();
    let (weight, bias) = (Tensor::randn(1f32, 0.1, size, &CPU)?, Tensor::randn(0f32, 0.1, size, &CPU)?);
    let rms = candle_nn::RmsNorm::new(weight.clone(), 1e-5);
    let our_rms = RbeRmsNorm::new(weight.clone(), 1e-5);
    let layer = candle_nn::LayerNorm::new(weight.clone(), bias.clone(), 1e-5);
    let our_layer = RbeLayerNorm::new(weight.clone(), bias.clone(), 1e-5);
    expect_same(&our_rms.forward(&frozen)?, &rms.forward(&frozen)?)?;
    expect_same(&our_layer.forward(&frozen)?, &layer.forward(&frozen)?)?;
    for tokens in [1, tokens] {
        let x = frozen.narrow(0, 0, tokens)?;
        let calls: [Call; 2] = [
            ("candle_nn::RmsNorm", Box::new(|| rms.forward(&x))),
            ("RbeRmsNorm", Box::new(|| our_rms.forward(&x))),
        ];
        table(&format!("root-mean-square norm of {size}, {tokens} tokens"), &calls)?;
        let calls: [Call; 2] = [
            ("candle_nn::LayerNorm", Box::new(|| layer.forward(&x))),
            ("RbeLayerNorm", Box::new(|| our_layer.forward(&x))),
        ];
        table(&format!("layer norm of {size}, {tokens} tokens"), &calls)?;
    }
    let slow = |x: &Tensor| candle_nn::ops::layer_norm_slow(x, &weight, &bias, 1e-5);
    let calls: [Call; 2] = [
        ("candle_nn::RmsNorm::forward_diff", Box::new(|| step(&x, rms.forward_diff(&x)?))),
        ("RbeRmsNorm", Box::new(|| step(&x, our_rms.forward(&x)?))),
    ];
    table(&format!("the first with its gradient, {tokens} tokens"), &calls)?;
    let calls: [Call; 2] = [
        ("candle_nn::ops::layer_norm_slow", Box::new(|| step(&x, slow(&x)?))),
        ("RbeLayerNorm", Box::new(|| step(&x, our_layer.forward(&x)?))),
    ];
    table(&format!("the second with its gradient, {tokens} tokens"), &calls)
}

/// Weights `(out, in)`, and layers of them: dense, in a trellis and in planes of 4 bits.
fn variants(shapes: &[(usize, usize)]) -> Result<(Vec<candle_nn::Linear>, [Vec<Linear>; 3])> {
    let (mut candle, mut ours) = (vec![], [vec![], vec![], vec![]]);
    for shape in shapes {
        let weight = Tensor::randn(0f32, 0.02, *shape, &CPU)?;
        ours[0].push(Linear::new(weight.clone(), None));
        ours[1].push(compress(&weight, TermChoice::Trellis, 4.02)?.into());
        ours[2].push(compress(&weight, TermChoice::Planes, 4.02)?.into());
        candle.push(candle_nn::Linear::new(weight, None));
    }
    Ok((candle, ours))
}

const OURS: [&str; 3] = ["dense", "trellis, 4 bits", "planes, 4 bits"];

fn feed_forward() -> Result<()> {
    let (hidden, inner) = (768, 2048);
    let (candle, ours) = variants(&[(inner, hidden), (inner, hidden), (hidden, inner)])?;
    let theirs = |x: &Tensor| candle[2].forward(&(candle[0].forward(x)?.silu()? * candle[1].forward(x)?)?);
    let layers: Vec<RbeMlp> = ours
        .map(|linears| {
            let [gate, up, down] = <[Linear; 3]>::try_from(linears).expect("three layers");
            RbeMlp::gated(gate, up, down, Activation::Silu)
        })
        .into();
    for tokens in [1, 128] {
        let x = Tensor::randn(0f32, 1.0, (tokens, hidden), &CPU)?;
        expect_same(&layers[0].forward(&x)?, &theirs(&x)?)?;
        let mut calls: Vec<Call> = vec![("Candle", Box::new(|| theirs(&x)))];
        for (name, layer) in OURS.iter().zip(&layers) {
            calls.push((name, Box::new(|| layer.forward(&x))));
        }
        table(&format!("gated feed-forward {hidden}-{inner}-{hidden}, {tokens} tokens"), &calls)?;
    }
    Ok(())
}

fn attention_layer() -> Result<()> {
    let (hidden, heads, seq) = (768, 12, 512);
    let (candle, ours) = variants(&[(hidden, hidden); 4])?;
    let mask = causal_mask(seq)?;
    let theirs = |x: &Tensor| {
        let split = |linear: &candle_nn::Linear| {
            linear.forward(x)?.reshape((1, seq, heads, hidden / heads))?.transpose(1, 2)?.contiguous()
        };
        let (q, k, v) = (split(&candle[0])?, split(&candle[1])?, split(&candle[2])?);
        candle[3].forward(&composed([&q, &k, &v], &mask, candle_nn::ops::softmax_last_dim)?)
    };
    let layers: Vec<RbeAttention> = ours
        .map(|linears| {
            let [q, k, v, out] = <[Linear; 4]>::try_from(linears).expect("four layers");
            let scale = 1.0 / ((hidden / heads) as f64).sqrt();
            RbeAttention::new(Projections::Separate { q, k, v }, out, heads, heads, scale)
        })
        .into();
    let x = Tensor::randn(0f32, 1.0, (1, seq, hidden), &CPU)?;
    let forward = |layer: &RbeAttention| layer.forward(&x, 0, &mut AttentionPass::causal(seq, None));
    expect_same(&forward(&layers[0])?, &theirs(&x)?)?;
    let mut calls: Vec<Call> = vec![("Candle", Box::new(|| theirs(&x)))];
    for (name, layer) in OURS.iter().zip(&layers) {
        calls.push((name, Box::new(move || forward(layer))));
    }
    table(&format!("causal attention layer of {hidden}, {heads} heads, {seq} tokens"), &calls)
}
