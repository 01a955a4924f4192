//! The one-line swap: a model written for Candle, compiled as it is and with one `use` line changed.
//!
//! ```sh
//! cargo run --release --features cli --example swap
//! ```
//!
//! The weights, three trained matrices, are saved as a safetensors file, compressed into another, and both
//! files are loaded with Candle's own `VarBuilder`.

use anyhow::Result;
use candle_core::{DType, Device, Tensor, safetensors};
use candle_nn::VarBuilder;
use candle_rbe::archive::{self, CompressOptions};
use candle_rbe::{Encoder, EncoderConfig, Rate};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;

mod before {
    use candle_nn::{Linear, linear_no_bias};
    include!("feed_forward.rs");
}

mod after {
    use candle_rbe::{Linear, linear_no_bias};
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

/// Candle's own builder; `VarBuilder::from_mmaped_safetensors` reads the file just as well.
fn builder(path: &Path) -> Result<VarBuilder<'static>> {
    Ok(VarBuilder::from_buffered_safetensors(std::fs::read(path)?, DType::F32, &Device::Cpu)?)
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
        let y = after::FeedForward::new(HIDDEN, INNER, builder(&compressed)?)?.forward(&x)?;
        println!(
            "{bits} bits a weight {:>8} bytes, relative difference {:.4}",
            size(&compressed)?,
            difference(&y, &expected)?
        );
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
