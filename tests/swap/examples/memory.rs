//! A LLaMA of candle-transformers on a compressed model, its file unchanged or swapped: memory, and what was decoded.
//!
//! ```sh
//! cargo run --release -p swap --example memory -- llama-rbe unchanged
//! cargo run --release -p swap --example memory -- llama-rbe swapped
//! ```

use anyhow::{bail, Context, Result};
use candle::{DType, Device, Tensor};
use candle_rbe::archive;
use candle_rbe::nn::decoded_weights;
use std::path::Path;

/// Loads the model and runs it over eight tokens.
macro_rules! run {
    ($llama:path, $directory:expr) => {{
        use $llama::{Cache, Llama, LlamaConfig};
        let config: LlamaConfig = serde_json::from_slice(&std::fs::read($directory.join("config.json"))?)?;
        let config = config.into_config(false);
        let vb = archive::open($directory, DType::F32, &Device::Cpu)?;
        let model = Llama::load(vb, &config)?;
        let ids = Tensor::new(&[[846u32, 318, 259, 2024, 9, 1111, 512, 33]], &Device::Cpu)?;
        model.forward(&ids, 0, &mut Cache::new(false, DType::F32, &config, &Device::Cpu)?)?
    }};
}

/// A line of `/proc/self/status`, where there is one.
fn status(name: &str) -> String {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.map_or_else(|| "unknown".into(), |line| line.trim_start_matches(':').trim().into())
}

fn main() -> Result<()> {
    let usage = "the directory of a LLaMA, and `unchanged` or `swapped`";
    let mut args = std::env::args().skip(1);
    let directory = args.next().context(usage)?;
    let directory = Path::new(&directory);
    let logits = match args.next().as_deref() {
        Some("unchanged") => run!(candle_transformers::models::llama, directory),
        Some("swapped") => run!(swap::models::llama, directory),
        _ => bail!(usage),
    };
    println!("largest logit   {:.4}", logits.max_all()?.to_scalar::<f32>()?);
    println!("peak memory     {}, files mapped {}", status("VmHWM"), status("RssFile"));
    let decoded = decoded_weights();
    let bytes: usize = decoded.iter().map(|weight| weight.bytes()).sum();
    println!("decoded         {} weights, {bytes} bytes", decoded.len());
    decoded.iter().take(3).for_each(|weight| println!("  {weight}"));
    Ok(())
}
