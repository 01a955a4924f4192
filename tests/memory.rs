//! Compressing and decoding hold one matrix at a time, however many a model has; loading holds what products take; a warm product
//! allocates nothing.

use candle_core::{DType, Device, Tensor};
use candle_rbe::archive::{self, CompressOptions, DecodeOptions};
use candle_rbe::models::{CausalLm, Config, StreamedModel};
use candle_rbe::{Encoder, EncoderConfig, Linear, Precision, Rate, RbeLinear, TermChoice, linear_no_bias};
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, counting what is held and the most that ever was.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

/// All tests count what the whole process does.
static ALONE: Mutex<()> = Mutex::new(());

#[allow(unsafe_code)]
// SAFETY: every call is handed to the system's allocator unchanged; the counters are atomics beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(held, Ordering::Relaxed);
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps `alloc`'s contract, which is the system's own.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `pointer` came from `alloc` above, and so from the system, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most memory that `act` holds beyond what is held before it.
fn peak(act: impl FnOnce()) -> usize {
    let before = HELD.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    act();
    PEAK.load(Ordering::Relaxed) - before
}

#[test]
fn memory_does_not_grow_with_the_number_of_matrices() {
    const SIDE: usize = 256;
    let _alone = ALONE.lock();
    let room = tempfile::tempdir().unwrap();
    let weight = Tensor::randn(0f32, 0.02, (SIDE, SIDE), &Device::Cpu).unwrap();
    let config = EncoderConfig { term: TermChoice::Planes, block: Some(64), ..EncoderConfig::default() };
    let encoder = Encoder::new(config).unwrap();
    let mut watch = |_: archive::Progress<'_>| ControlFlow::Continue(());
    let mut measure = |matrices: usize| {
        let path = |name: &str| room.path().join(format!("{name}-{matrices}"));
        let tensors: HashMap<String, Tensor> =
            (0..matrices).map(|number| (format!("layers.{number}.weight"), weight.clone())).collect();
        candle_core::safetensors::save(&tensors, path("dense")).unwrap();
        drop(tensors);
        let compress = peak(|| {
            let options = CompressOptions::default();
            archive::compress(path("dense"), path("rbe"), &encoder, &options, &mut watch).unwrap();
        });
        let decode = peak(|| {
            archive::decode(path("rbe"), path("decoded"), &DecodeOptions::default(), &mut watch).unwrap();
        });
        println!("{matrices} matrices: {compress} bytes to compress, {decode} to decode");
        (compress, decode)
    };
    // The first run pays for thread pools and tables that stay.
    measure(3);
    let (few, many) = (measure(2), measure(48));
    let all = 48 * SIDE * SIDE * size_of::<f32>();
    for (what, few, many) in [("compress", few.0, many.0), ("decode", few.1, many.1)] {
        assert!(many < few + few / 4, "{what}: {few} bytes for 2 matrices, {many} for 48");
        assert!(many < all / 2, "{what}: {many} bytes held, the whole model has {all}");
    }
}

#[test]
fn a_warm_product_into_a_tensor_allocates_nothing_of_its_own() {
    let _alone = ALONE.lock();
    let weight = Tensor::randn(0f32, 0.02, (700, 600), &Device::Cpu).unwrap();
    let bias = Tensor::randn(0f32, 0.02, 700, &Device::Cpu).unwrap();
    for (term, rate) in [
        (TermChoice::Planes, Rate::BitsPerWeight(4.1)),
        (TermChoice::Trellis, Rate::BitsPerWeight(3.1)),
        (TermChoice::Sparse, Rate::Coefficients(400)),
    ] {
        let config = EncoderConfig { term, rate, block: Some(64), ..EncoderConfig::default() };
        let compressed = Encoder::new(config).unwrap().encode(&weight).unwrap();
        for precision in [Precision::Exact, Precision::Int16, Precision::Int8] {
            let layer = RbeLinear::new(compressed.clone(), Some(bias.clone())).with_precision(precision);
            for tokens in [1, 5, 40] {
                let x = Tensor::randn(0f32, 1.0, (tokens, 600), &Device::Cpu).unwrap();
                let y = Tensor::zeros((tokens, 700), DType::F32, &Device::Cpu).unwrap();
                let call = || {
                    let before = ALLOCATIONS.load(Ordering::Relaxed);
                    layer.forward_into(&x, &y).unwrap();
                    ALLOCATIONS.load(Ordering::Relaxed) - before
                };
                // Which thread takes which part differs, so each may still be warming up for some calls.
                let calls: Vec<usize> = (0..200).map(|_| call()).collect();
                // One is Candle's, which lists the output's strides before any operation in place. The harness allocates too when it says
                // that a test takes long, which is once.
                let few = calls[100..].split(|count| *count > 1).any(|calls| calls.len() >= 50);
                assert!(few, "{term:?} {precision:?} {tokens}: {calls:?}");
            }
        }
    }
}

/// Bytes of a file's maps that are in this process's memory.
#[cfg(target_os = "linux")]
fn mapped_in_memory(file: &std::path::Path) -> Option<usize> {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let name = file.canonicalize().unwrap().to_string_lossy().into_owned();
    let mut lines = maps.lines();
    let mut bytes = None;
    while let Some(line) = lines.next() {
        if line.ends_with(&name) {
            let resident = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
            let kilobytes: usize = resident.trim().strip_suffix(" kB").unwrap().parse().unwrap();
            bytes = Some(bytes.unwrap_or(0) + 1024 * kilobytes);
        }
    }
    bytes
}

#[test]
fn a_loaded_model_holds_what_products_take_and_its_payloads_stay_in_the_file() {
    const SIDE: usize = 512;
    const LAYERS: usize = 12;
    let _alone = ALONE.lock();
    let room = tempfile::tempdir().unwrap();
    let (dense, rbe) = (room.path().join("dense"), room.path().join("rbe"));
    let weight = Tensor::randn(0f32, 0.02, (SIDE, SIDE), &Device::Cpu).unwrap();
    let tensors: HashMap<String, Tensor> =
        (0..LAYERS).map(|number| (format!("{number}.weight"), weight.clone())).collect();
    candle_core::safetensors::save(&tensors, &dense).unwrap();
    drop(tensors);
    let config = EncoderConfig { block: Some(256), ..Rate::BitsPerWeight(4.1).into() };
    let (encoder, options) = (Encoder::new(config).unwrap(), CompressOptions::default());
    archive::compress(&dense, &rbe, &encoder, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    let load = || -> Vec<Linear> {
        let vb = archive::open(&rbe, DType::F32, &Device::Cpu).unwrap();
        (0..LAYERS).map(|number| linear_no_bias(SIDE, SIDE, vb.pp(number)).unwrap()).collect()
    };
    // The first pays for what the process keeps.
    drop(load());
    let before = HELD.load(Ordering::Relaxed);
    let mut layers = vec![];
    let most = peak(|| layers = load());
    let held = HELD.load(Ordering::Relaxed) - before;
    let weights = layers.iter().filter_map(|layer| layer.weight().rbe());
    let (packed, payloads) = weights.fold((0, 0), |(packed, payloads), tensor| {
        (packed + tensor.memory_in_bytes(), payloads + tensor.size_in_bytes())
    });
    let one = payloads / LAYERS;
    println!("{LAYERS} payloads of {payloads} bytes: {packed} packed, {held} held, {most} at most");
    // Beside the packed forms there are signs, names and the like; while one is read, the term as the codec has it.
    assert!(held < packed + one / 2, "{held} bytes held, {packed} packed");
    assert!(most < packed + 3 * one, "{most} bytes at most, {packed} packed");
    #[cfg(target_os = "linux")]
    {
        let resident = mapped_in_memory(&rbe).expect("the file is mapped");
        assert!(resident < one / 2, "{resident} of {payloads} bytes of payloads are in memory");
        let read: usize =
            layers.iter().map(|layer| layer.weight().rbe().unwrap().to_bytes().unwrap().len()).sum();
        assert_eq!(read, payloads);
        assert!(mapped_in_memory(&rbe).unwrap() < one / 2, "after they were read again");
        drop(layers);
        assert_eq!(mapped_in_memory(&rbe), None, "nobody has the map any more");
    }
}

#[test]
fn a_streamed_model_holds_one_layer_at_a_time() {
    // A layer of 4 MB, beside which what threads keep for themselves is little.
    const SIDE: usize = 384;
    let _alone = ALONE.lock();
    let room = tempfile::tempdir().unwrap();
    let measure = |layers: usize| {
        let config = format!(
            r#"{{"model_type": "llama", "hidden_size": {SIDE}, "intermediate_size": {SIDE}, "num_attention_heads": 2,
                "num_hidden_layers": {layers}, "rms_norm_eps": 1e-5, "vocab_size": 64, "tie_word_embeddings": true,
                "max_position_embeddings": 32}}"#
        );
        let config = Config::from_json(&config).unwrap();
        let weight = |rows: usize| Tensor::randn(0f32, 0.02, (rows, SIDE), &Device::Cpu).unwrap();
        let norm = Tensor::ones(SIDE, DType::F32, &Device::Cpu).unwrap();
        let mut tensors = HashMap::from([
            ("model.embed_tokens.weight".to_owned(), weight(64)),
            ("model.norm.weight".to_owned(), norm.clone()),
        ]);
        for layer in 0..layers {
            let name = |name: &str| format!("model.layers.{layer}.{name}.weight");
            for projection in ["q_proj", "k_proj", "v_proj", "o_proj"] {
                tensors.insert(name(&format!("self_attn.{projection}")), weight(SIDE));
            }
            for projection in ["gate_proj", "up_proj", "down_proj"] {
                tensors.insert(name(&format!("mlp.{projection}")), weight(SIDE));
            }
            for place in ["input_layernorm", "post_attention_layernorm"] {
                tensors.insert(name(place), norm.clone());
            }
        }
        let path = room.path().join(format!("{layers}"));
        candle_core::safetensors::save(&tensors, &path).unwrap();
        drop(tensors);
        let weights = archive::open(path, DType::F32, &Device::Cpu).unwrap();
        let model = StreamedModel::new(config, weights).unwrap();
        let ids = Tensor::zeros((1, 16), DType::U32, &Device::Cpu).unwrap();
        peak(|| drop(model.hidden_states(&ids, None).unwrap()))
    };
    measure(1);
    let (few, many) = (measure(2), measure(6));
    let layer = 7 * SIDE * SIDE * size_of::<f32>();
    println!("2 layers: {few} bytes, 6: {many}; one layer: {layer}");
    assert!(few > layer && many < few + layer, "{few} and {many}");
}
