//! An unmodified LLaMA of `candle_transformers` on a compressed model: the builder decodes what the model asks for.
//!
//! ```sh
//! cargo run --release --features cli --example unmodified
//! ```
//!
//! The model then takes as much memory as the original; what is saved is the file. To run on the compressed weights it takes one
//! line at the top of a copy of its file: `candle_rbe::candle_nn`.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_rbe::archive::{self, Archive, CompressOptions, Selection};
use candle_rbe::nn::decoded_weights;
use candle_rbe::{Encoder, EncoderConfig, Rate};
use candle_transformers::models::llama::{Cache, Config, Llama, LlamaConfig};
use std::ops::ControlFlow;
use std::path::Path;

/// The directory of a LLaMA, compressed or not, to logits `(1, vocabulary)` of the token after `ids` `(1, tokens)`.
fn logits(directory: &Path, config: &Config, ids: &Tensor) -> Result<Tensor> {
    let vb = archive::open_decoded(directory, DType::F32, &Device::Cpu)?;
    let model = Llama::load(vb, config)?;
    Ok(model.forward(ids, 0, &mut Cache::new(false, DType::F32, config, &Device::Cpu)?)?)
}

fn bytes(directory: &Path) -> Result<usize> {
    Ok(Archive::open(directory)?.entries().map(|entry| entry.bytes).sum())
}

fn main() -> Result<()> {
    let dense = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/llama-books");
    let config: LlamaConfig = serde_json::from_slice(&std::fs::read(dense.join("config.json"))?)?;
    let config = config.into_config(false);
    let ids = Tensor::new(&[[846u32, 318, 259, 2024, 9, 1111, 512, 33]], &Device::Cpu)?;
    let expected = logits(&dense, &config, &ids)?;
    let largest = expected.abs()?.max_all()?.to_scalar::<f32>()?;
    println!("original       {:>9} bytes, logits up to {largest:.2}", bytes(&dense)?);

    let room = tempfile::tempdir()?;
    for bits in [8.02, 6.02, 4.02] {
        let compressed = room.path().join(bits.to_string());
        let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(bits)))?;
        let projections = Selection::new(Some("_proj"), None)?;
        let options = CompressOptions { selection: projections, ..CompressOptions::default() };
        archive::compress(&dense, &compressed, &encoder, &options, &mut |_| ControlFlow::Continue(()))?;
        let difference = (logits(&compressed, &config, &ids)? - &expected)?.abs()?;
        println!(
            "at {bits} bits   {:>9} bytes, logits differ by {:.4} at most, {:.4} in the mean",
            bytes(&compressed)?,
            difference.max_all()?.to_scalar::<f32>()?,
            difference.mean_all()?.to_scalar::<f32>()?,
        );
    }
    let decoded = decoded_weights();
    println!("{} weights were decoded, such as", decoded.len());
    decoded.iter().take(2).for_each(|weight| println!("  {weight}"));
    Ok(())
}
