//! Small models of candle-transformers, compressed: swapped by one line a file they run on the payloads, and their outputs are
//! those of the same files unchanged, on the decoded weights.
//! CI runs this at the best CPU level alone: what the level changes, `tests/layers.rs` compares.

use anyhow::{ensure, Context, Result};
use candle::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use candle_rbe::archive::{self, CompressOptions};
use candle_rbe::nn::{decoded_weights, reset_decoded_weights};
use candle_rbe::{set_default_layer_config, Encoder, EncoderConfig, LayerConfig, Precision, Rate};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};

mod theirs {
    use candle_transformers::models;
    include!("runs.rs");
}

mod ours {
    use swap::models;
    include!("runs.rs");
}

/// Parts of the names of weights that the models which have them use as tensors, or ask for by name.
const DECODED: [(&str, &[&str]); 2] = [
    // It has a `Linear` of its own, and its head is a product with the table.
    ("t5", &["SelfAttention", "EncDecAttention", "DenseReluDense", "decoder.embed_tokens"]),
    // Its head is a product with the table.
    ("whisper", &["decoder.embed_tokens"]),
];

/// Makes every tensor that a model asks for, and remembers it.
#[derive(Clone, Default)]
struct Random(Arc<Mutex<HashMap<String, Tensor>>>);

impl SimpleBackend for Random {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle::Result<Tensor> {
        let mut made = self.0.lock().expect("no model panics");
        if let Some(tensor) = made.get(name) {
            return Ok(tensor.clone());
        }
        let inputs: usize = shape.dims().iter().skip(1).product();
        let (mean, deviation) = match (shape.rank(), name.ends_with("bias")) {
            (0 | 1, true) => (0.0, 0.1),
            (0 | 1, false) => (1.0, 0.1),
            _ => (0.0, 1.0 / (inputs as f64).sqrt()),
        };
        let tensor =
            (Tensor::randn(0f32, 1.0, shape, device)? * deviation)?.affine(1.0, mean)?.to_dtype(dtype)?;
        made.insert(name.to_owned(), tensor.clone());
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle::Result<Tensor> {
        candle::bail!("{name} without a shape")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.lock().expect("no model panics").contains_key(name)
    }
}

/// `|a - b| / |b|`
fn relative_error(a: &Tensor, b: &Tensor) -> candle::Result<f64> {
    let norm = |x: &Tensor| x.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>();
    Ok((norm(&(a - b)?)? / norm(b)?).sqrt())
}

fn compress(dense: &Path, compressed: &Path) -> Result<usize> {
    let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(4.5)))?;
    let options = CompressOptions::default();
    let report =
        archive::compress(dense, compressed, &encoder, &options, &mut |_| ControlFlow::Continue(()))?;
    Ok(report.compressed_tensors)
}

#[test]
fn swapped_models_run_on_payloads_and_agree() -> Result<()> {
    let room = tempfile::tempdir()?;
    println!("{:<12} {:>10} {:>10} {:>7} {:>10}", "model", "compressed", "difference", "decoded", "dense");
    let mut faults = Vec::new();
    for ((name, theirs), (_, ours)) in theirs::RUNS.into_iter().zip(ours::RUNS) {
        let (dense, small) = (room.path().join(name), room.path().join(format!("{name}-rbe")));
        let fault = agree(name, (theirs, ours), &dense, &small).with_context(|| name.to_owned());
        faults.extend(fault.err().map(|error| format!("{error:#}")));
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

fn agree(name: &str, (theirs, ours): (theirs::Run, ours::Run), dense: &Path, small: &Path) -> Result<()> {
    let random = Random::default();
    let original = theirs(VarBuilder::from_backend(Box::new(random.clone()), DType::F32, Device::Cpu))?;
    candle::safetensors::save(&*random.0.lock().expect("no model panics"), dense)?;
    let matrices = compress(dense, small)?;
    let open = |path| archive::open(path, DType::F32, &Device::Cpu);

    // On a file that holds nothing compressed the swapped model is Candle's, but for the order in which dense products are added up.
    let plain = relative_error(&ours(open(dense)?)?, &original)?;
    ensure!(plain <= 2e-6, "dense: differs by {plain:.1e} from Candle's own output");

    // Unchanged files on a compressed one: right answers, and a list of what was decoded for them.
    reset_decoded_weights();
    let decoded = theirs(open(small)?)?;
    let listed = decoded_weights().len();
    ensure!(listed == matrices, "{matrices} compressed, {listed} listed as decoded");

    reset_decoded_weights();
    set_default_layer_config(LayerConfig { precision: Precision::Exact, ..LayerConfig::default() });
    let y = ours(open(small)?)?;
    let difference = relative_error(&y, &decoded)?;
    let decoded: Vec<String> = decoded_weights().into_iter().map(|weight| weight.name).collect();
    println!("{name:<12} {matrices:>10} {difference:>10.1e} {:>7} {plain:>10.1e}", decoded.len());
    ensure!(difference <= 1e-5, "differs by {difference:.1e} from the decoded weights");
    ensure!(difference > 0.0, "equal to the last bit: did it run on the payloads?");
    let expected = DECODED.iter().find(|(model, _)| *model == name).map_or(&[][..], |(_, parts)| parts);
    let surprise = decoded.iter().find(|name| !expected.iter().any(|part| name.contains(part)));
    ensure!(surprise.is_none(), "{surprise:?} was decoded");
    let missed = expected.iter().find(|part| !decoded.iter().any(|name| name.contains(*part)));
    ensure!(missed.is_none(), "{missed:?} is no longer decoded: strike it from the list");
    Ok(())
}
