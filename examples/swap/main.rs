//! The one-line swap: a model written for Candle, compiled as it is and with one `use` line before it.
//!
//! ```sh
//! cargo run --release --features cli --example swap
//! ```
//!
//! The weights, three trained matrices, are saved as a safetensors file and compressed into another. The model as it is runs on
//! the compressed file too, decoded; with the line it runs on the payloads, and nothing is decoded.

use anyhow::Result;
use candle_core::{DType, Device, Tensor, safetensors};
use candle_nn::VarBuilder;
use candle_rbe::archive::{self, CompressOptions};
use candle_rbe::nn::{decoded_weights, reset_decoded_weights};
use candle_rbe::{Encoder, EncoderConfig, Rate};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;

mod before {
    include!("feed_forward.rs");
}

mod after {
    use candle_rbe::candle_nn;
    include!("feed_forward.rs");
}

const HIDDEN: usize = 256;
const INNER: usize = 768;

/// The feed-forward layer of one of LLaMA's blocks, in F32, under the names that the model asks for.
fn trained_weights() -> Result<HashMap<String, Tensor>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/models/llama-books/model.safetensors");
    let tensors = safetensors::load(path, &Device::Cpu)?;
    let own =
        tensors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix("model.layers.2.mlp.")?, tensor)));
    own.map(|(name, tensor)| Ok((name.to_owned(), tensor.to_dtype(DType::F32)?))).collect()
}

/// The one builder for all: payloads for layers that are swapped, tensors for all others.
fn builder(path: &Path) -> Result<VarBuilder<'static>> {
    Ok(archive::open(path, DType::F32, &Device::Cpu)?)
}

fn main() -> Result<()> {
    let room = tempfile::tempdir()?;
    let (dense, compressed) =
        (room.path().join("dense.safetensors"), room.path().join("compressed.safetensors"));
    safetensors::save(&trained_weights()?, &dense)?;

    // Sixteen inputs, the same in every run.
    let x = Tensor::arange(0f32, (16 * HIDDEN) as f32, &Device::Cpu)?.sqr()?.sin()?.reshape((16, HIDDEN))?;
    let expected = before::FeedForward::new(HIDDEN, INNER, builder(&dense)?)?.forward(&x)?;
    let exact = after::FeedForward::new(HIDDEN, INNER, builder(&dense)?)?.forward(&x)?;
    println!(
        "dense file       {:>9} bytes, both models, difference {:.4}",
        size(&dense)?,
        difference(&exact, &expected)?
    );

    for bits in [8.02, 6.02, 4.02] {
        let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(bits)))?;
        let options = CompressOptions { overwrite: true, ..CompressOptions::default() };
        archive::compress(&dense, &compressed, &encoder, &options, &mut |_| ControlFlow::Continue(()))?;
        let decoded = before::FeedForward::new(HIDDEN, INNER, builder(&compressed)?)?.forward(&x)?;
        let not_swapped = decoded_weights().len();
        reset_decoded_weights();
        let y = after::FeedForward::new(HIDDEN, INNER, builder(&compressed)?)?.forward(&x)?;
        println!(
            "{bits} bits a weight {:>8} bytes, relative difference {:.4}; weights decoded before and after: {not_swapped}, {}",
            size(&compressed)?,
            difference(&y, &expected)?,
            decoded_weights().len(),
        );
        // What the products lose by taking their inputs as bytes is small beside what the weights have lost.
        anyhow::ensure!(difference(&y, &decoded)? < 0.02, "the two disagree");
    }
    Ok(())
}

fn size(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path)?.len())
}

/// `|a - b| / |b|`
fn difference(a: &Tensor, b: &Tensor) -> Result<f32> {
    let squares = |x: &Tensor| x.sqr()?.sum_all()?.to_scalar::<f32>();
    Ok((squares(&(a - b)?)? / squares(b)?).sqrt())
}
