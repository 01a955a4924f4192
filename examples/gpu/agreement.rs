//! Each operation, type and number of tokens on the card against the CPU, through the public interface.

use crate::{Check, Filter, Report, noise};
use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::Module;
use candle_rbe::nn::Weight;
use candle_rbe::{
    Embedding, Encoder, EncoderConfig, Precision, Rate, RbeLinear, RbeTensor, TermChoice, Transform, ops,
};

/// Errors that each type may make, relative to the largest root of a sum's squared terms; inputs are the same numbers on both sides.
const TYPES: [(DType, f64); 3] = [(DType::F32, 1e-5), (DType::F16, 8.0 / 2048.0), (DType::BF16, 8.0 / 256.0)];
const SHAPES: [(usize, usize); 4] = [(300, 259), (96, 512), (512, 768), (1, 300)];
/// Those of one kernel each, what lies between, and a panel's.
const TOKENS: [usize; 7] = [1, 2, 4, 7, 8, 9, 70];

/// Every term, with and without signs, in blocks of every edge.
fn encodings() -> Vec<EncoderConfig> {
    let mut all = Vec::new();
    for (n, block) in [32, 64, 128, 256].into_iter().enumerate() {
        let transform = [Transform::Dct, Transform::Dct, Transform::Haar, Transform::Daubechies4][n];
        let config = |term, rate, basis| EncoderConfig {
            term,
            rate,
            transform,
            block: Some(block),
            basis: Some(basis),
            signs: Some(!basis),
            ..EncoderConfig::default()
        };
        all.extend([2.1, 4.1, 8.3].map(|bits| config(TermChoice::Planes, Rate::BitsPerWeight(bits), false)));
        all.extend([2.1, 3.1, 4.1].map(|bits| config(TermChoice::Trellis, Rate::BitsPerWeight(bits), false)));
        all.push(config(TermChoice::Sparse, Rate::Coefficients(block * block / 12), true));
        all.push(config(TermChoice::Sparse, Rate::Coefficients(block * block / 3), true));
    }
    all
}

pub(crate) fn run(device: &Device, filter: &Filter, report: &mut Report) -> Result<()> {
    for (rows, cols) in SHAPES.into_iter().filter(|shape| filter.shape(*shape)) {
        let weight = noise::tensor((rows * cols) as u64, 0.05, (rows, cols), &Device::Cpu)?;
        for config in encodings() {
            let Ok(tensor) = Encoder::new(config.clone())?.encode(&weight) else { continue };
            let what = format!("{rows}x{cols} {}", tensor.summary());
            if !filter.form(&what) {
                continue;
            }
            for view in [tensor.clone(), tensor.t()?] {
                report
                    .attempt(&what, |report| operations(&what, &view, device, filter, &mut report.checks))?;
            }
            report.attempt(&what, |report| rows_of(&what, &tensor, device, &mut report.checks))?;
        }
    }
    report.attempt("refusals", |_| refusals(device))
}

fn operations(
    what: &str,
    tensor: &RbeTensor,
    device: &Device,
    filter: &Filter,
    checks: &mut Vec<Check>,
) -> Result<()> {
    let on_card = tensor.to_device(device)?;
    let dense = tensor.dequantize()?;
    let size = Check::size(&dense)?;
    checks.push(Check::new(format!("{what}, dequantize"), &on_card.dequantize()?, &dense, size, 1e-5)?);
    let (_, inputs) = tensor.shape().dims2()?;
    let tokens = TOKENS.into_iter().filter(|tokens| filter.tokens(*tokens));
    for (tokens, (dtype, bound)) in tokens.flat_map(|tokens| TYPES.map(|t| (tokens, t))) {
        let x = noise::tensor(tokens as u64, 1.0, (tokens, inputs), &Device::Cpu)?.to_dtype(dtype)?;
        let rounded = x.to_dtype(DType::F32)?;
        let exact = rounded.matmul(&dense.t()?)?;
        let size = Check::size(&rounded.sqr()?.matmul(&dense.t()?.sqr()?)?)?.sqrt();
        let layer = RbeLinear::new(on_card.clone(), None);
        let y = layer.forward(&x.to_device(device)?)?;
        ensure!(y.dtype() == dtype, "{what}: {:?} for {dtype:?}", y.dtype());
        let name = format!("{what}, {tokens} tokens, {dtype:?}, transposed {}", tensor.is_transposed());
        checks.push(Check::new(name, &y, &exact, size, bound)?);
        // The same input with other strides.
        let strided = x.t()?.contiguous()?.to_device(device)?.t()?;
        let again = layer.forward(&strided)?;
        checks.push(Check::new(format!("{what}, strides"), &again, &y, size, 0.0)?);
    }
    let x = noise::tensor(3, 1.0, (3, inputs), &Device::Cpu)?;
    let gradient = |tensor: &RbeTensor, device: &Device| -> Result<Tensor> {
        let x = Var::from_tensor(&x.to_device(device)?)?;
        let y = ops::matmul(x.as_tensor(), tensor, Precision::Exact)?;
        let grads = y.sin()?.sum_all()?.backward()?;
        grads.get(&x).cloned().ok_or_else(|| anyhow::anyhow!("no gradient"))
    };
    let (ours, exact) = (gradient(&on_card, device)?, gradient(tensor, &Device::Cpu)?);
    checks.push(Check::new(format!("{what}, gradient"), &ours, &exact, Check::size(&exact)?, 1e-4)?);
    Ok(())
}

fn rows_of(what: &str, tensor: &RbeTensor, device: &Device, checks: &mut Vec<Check>) -> Result<()> {
    let (rows, width) = tensor.shape().dims2()?;
    let last = u32::try_from(rows - 1)?;
    let ids = Tensor::new(&[[0, last, last / 2], [last / 3, 0, last]], &Device::Cpu)?;
    let exact = Embedding::new(tensor.clone(), width).forward(&ids)?;
    let on_card = tensor.to_device(device)?;
    for (dtype, bound) in TYPES {
        for ids in [ids.clone(), ids.to_dtype(DType::I64)?, ids.t()?] {
            let exact = if ids.dims() == [3, 2] { exact.transpose(0, 1)? } else { exact.clone() };
            let ours = Embedding::new(Weight::compressed(on_card.clone(), dtype), width)
                .forward(&ids.to_device(device)?)?;
            ensure!(ours.dims() == exact.dims(), "{what}: {:?}", ours.dims());
            let name = format!("{what}, rows in {dtype:?}");
            checks.push(Check::new(name, &ours, &exact, Check::size(&exact)?, bound)?);
        }
    }
    Ok(())
}

/// What cannot be done is said.
fn refusals(device: &Device) -> Result<()> {
    let weight = noise::tensor(1, 0.05, (70, 90), &Device::Cpu)?;
    let tensor = Encoder::new(EncoderConfig::default())?.encode(&weight)?;
    let on_card = tensor.to_device(device)?;
    let x = Tensor::ones((2, 90), DType::F32, &Device::Cpu)?;
    for (result, words) in [
        (ops::matmul(&x, &on_card, Precision::Exact), "the input is on Cpu"),
        (ops::matmul(&x.to_device(device)?, &tensor, Precision::Exact), "the compressed tensor on Cpu"),
        (ops::matmul(&x.to_device(device)?.to_dtype(DType::F64)?, &on_card, Precision::Exact), "not F64"),
        (ops::matmul(&x.to_device(device)?.narrow(1, 0, 89)?, &on_card, Precision::Exact), "[2, 89]"),
    ] {
        let error = result.err().map(|error| error.to_string()).unwrap_or_default();
        ensure!(error.contains(words), "{error:?} does not say {words:?}");
    }
    Ok(())
}
