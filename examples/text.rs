//! Text from compressed models: LLaMA and GPT-2, each beside its original.
//!
//! ```sh
//! cargo run --release --features cli --example text -- [BITS] [PROMPT]
//! ```
//!
//! Each model of the repository is compressed into a temporary directory, at 4.02 bits per weight or as asked, and
//! loaded from there. Both texts are drawn with the same random numbers, so they part where the predictions do.

use anyhow::{Error, Result};
use candle_core::{DType, Device};
use candle_rbe::archive::{self, CompressOptions};
use candle_rbe::models::{CausalLm, Model, generate};
use candle_rbe::{Encoder, EncoderConfig, Rate};
use candle_transformers::generation::LogitsProcessor;
use std::ops::ControlFlow;
use std::path::Path;
use tokenizers::Tokenizer;

const NEW_TOKENS: usize = 60;
const TEMPERATURE: f64 = 0.7;
const SEED: u64 = 3;

/// Whether the weights are dense or compressed, the files say.
fn load(directory: &Path) -> Result<Model> {
    Ok(Model::load(directory, archive::open(directory, DType::F32, &Device::Cpu)?)?)
}

fn continued(model: &dyn CausalLm, tokenizer: &Tokenizer, prompt: &str) -> Result<String> {
    let mut ids = tokenizer.encode(prompt, true).map_err(Error::msg)?.get_ids().to_vec();
    let mut processor = LogitsProcessor::new(SEED, Some(TEMPERATURE), None);
    let new = generate(model, &ids, NEW_TOKENS, |logits| processor.sample(logits));
    let new = new.collect::<candle_core::Result<Vec<u32>>>()?;
    ids.extend(new);
    tokenizer.decode(&ids, true).map_err(Error::msg)
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let bits: f64 = args.next().map_or(Ok(4.02), |bits| bits.parse())?;
    let prompt = args.next().unwrap_or_else(|| "It was a dark evening, and the old gentleman".into());
    let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(bits)))?;

    let room = tempfile::tempdir()?;
    for name in ["llama-books", "gpt2-books"] {
        let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name);
        let compressed = room.path().join(name);
        let options = CompressOptions::default();
        let report =
            archive::compress(
                &original,
                &compressed,
                &encoder,
                &options,
                &mut |_| ControlFlow::Continue(()),
            )?;
        println!(
            "{name}: {} -> {} bytes, {} matrices at {:.3} bits per weight, relative error {:.4}",
            report.bytes_before,
            report.bytes_after,
            report.compressed_tensors,
            report.bits_per_weight,
            report.relative_error,
        );
        let tokenizer = Tokenizer::from_file(original.join("tokenizer.json")).map_err(Error::msg)?;
        for (what, directory) in [("original", &original), ("compressed", &compressed)] {
            let text = continued(&load(directory)?, &tokenizer, &prompt)?;
            println!("\n{what}:\n  {}", text.trim_end().replace('\n', "\n  "));
        }
        println!();
    }
    Ok(())
}
