//! Compressed matrices on `wasm32-unknown-unknown`: encoded, stored, read from memory and multiplied, without the feature `js`.

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_rbe::BlockSizeWeights;
use candle_rbe::archive::{self, SafetensorsWriter, Slot};
use candle_rbe::{
    DecodeMode, Encoder, EncoderConfig, Error, LayerConfig, Precision, Rate, RbeLinear, RbeTensor,
    TermChoice, linear, set_default_layer_config,
};
use std::collections::BTreeMap;
use std::io::Cursor;

#[link(wasm_import_module = "host")]
unsafe extern "C" {
    /// Shows a text.
    fn say(text: *const u8, bytes: usize);
}

fn tell(text: &str) {
    // SAFETY: the host reads the text before it returns.
    unsafe { say(text.as_ptr(), text.len()) }
}

/// What the host calls: the number of products checked. A failure is told and traps.
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub extern "C" fn run() -> usize {
    std::panic::set_hook(Box::new(|panic| tell(&panic.to_string())));
    let products = products().expect("products") + layers_from_memory().expect("layers from memory");
    what_is_not_there_says_so();
    products
}

/// Reproducible, roughly normal numbers.
fn matrix(rows: usize, cols: usize) -> Result<Tensor> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let values: Vec<f32> = (0..rows * cols).map(|_| uniform() + uniform() + uniform()).collect();
    Tensor::from_vec(values, (rows, cols), &Device::Cpu)
}

fn relative_error(y: &Tensor, expected: &Tensor) -> Result<f32> {
    let square = |t: Tensor| t.sqr()?.sum_all()?.to_scalar::<f32>();
    Ok((square((y - expected)?)? / square(expected.clone())?).sqrt())
}

fn encode(rate: Rate, term: TermChoice, weight: &Tensor) -> candle_rbe::Result<RbeTensor> {
    Encoder::new(EncoderConfig { term, ..EncoderConfig::from(rate) })?.encode(weight)
}

/// Every term, through its bytes, for one token and for many, against the decoded weight.
fn products() -> Result<usize> {
    let weight = matrix(80, 96)?;
    let mut products = 0;
    for (rate, term) in [
        (Rate::BitsPerWeight(4.3), TermChoice::Trellis),
        (Rate::BitsPerWeight(6.5), TermChoice::Trellis),
        (Rate::BitsPerWeight(4.3), TermChoice::Planes),
        (Rate::Coefficients(500), TermChoice::Sparse),
    ] {
        let bytes = encode(rate, term, &weight)?.to_bytes()?;
        let compressed = RbeTensor::from_bytes(&bytes)?;
        let decoded = compressed.dequantize()?;
        for mode in [DecodeMode::Direct, DecodeMode::Full { cache_bytes: 1 << 20 }] {
            let layer =
                RbeLinear::new(compressed.clone(), None).with_precision(Precision::Exact).with_mode(mode)?;
            for tokens in [1, 5, 16, 33] {
                let x = matrix(tokens, 96)?;
                let error = relative_error(&layer.forward(&x)?, &x.matmul(&decoded.t()?)?)?;
                assert!(error < 1e-5, "{rate} {term:?} {mode:?}, {tokens} tokens: {error}");
                products += 1;
            }
            assert_eq!((layer.counts().calls, layer.counts().nanoseconds), (4, 0), "there is no clock");
        }
        for (precision, bound) in [(Precision::Auto, 0.02), (Precision::Int8, 0.02), (Precision::Int16, 1e-3)]
        {
            let rough = RbeLinear::new(compressed.clone(), None).with_precision(precision);
            let x = matrix(5, 96)?;
            let error = relative_error(&rough.forward(&x)?, &x.matmul(&decoded.t()?)?)?;
            assert!(error < bound, "{rate} {term:?} {precision:?}: {error}");
            products += 1;
        }
    }
    Ok(products)
}

/// A safetensors file that never was one.
fn layers_from_memory() -> Result<usize> {
    let payload = encode(Rate::BitsPerWeight(4.3), TermChoice::Auto, &matrix(80, 96)?)?.to_bytes()?;
    let plan = vec![Slot::payload("up.weight")];
    let mut writer = SafetensorsWriter::new(Cursor::new(Vec::new()), "memory", plan, BTreeMap::new())?;
    writer.write(&[payload.len()], &payload)?;
    let file = writer.finish()?.into_inner();
    let vb = archive::open_bytes("memory", file, DType::F32, &Device::Cpu)?;
    set_default_layer_config(LayerConfig { precision: Precision::Exact, ..LayerConfig::default() });
    let layer = candle_rbe::linear_no_bias(96, 80, vb.pp("up"))?;
    assert!(layer.weight().rbe().is_some());
    let x = matrix(3, 96)?;
    let decoded = RbeTensor::from_bytes(&payload)?.dequantize()?;
    assert!(relative_error(&layer.forward(&x)?, &x.matmul(&decoded.t()?)?)? < 1e-5);
    assert!(linear(96, 80, vb.pp("up")).is_err(), "there is no bias");
    Ok(1)
}

fn what_is_not_there_says_so() {
    let error = archive::Archive::open("model.safetensors").expect_err("there are no files").to_string();
    assert!(error.starts_with("model.safetensors: ") && error.contains("not supported"), "{error}");
    let encoder = Encoder::new(EncoderConfig::default()).expect("the default");
    let samples = [(&[1.0, 2.0][..], 1, 2)];
    let error =
        encoder.optimize_block_size(&samples, BlockSizeWeights::default()).expect_err("there is no clock");
    assert!(matches!(error, Error::Codec(candle_rbe::CodecError::Unsupported { .. })), "{error}");
}
