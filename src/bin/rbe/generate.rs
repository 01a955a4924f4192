//! `rbe generate`

use crate::language::{self, Language, Sampling};
use crate::layers::Layers;
use clap::Args;
use std::io::{Write, stdout};
use std::path::PathBuf;

/// Continue a text with a model, compressed or not
#[derive(Args)]
pub(crate) struct Generate {
    /// Model directory with config.json and tokenizer.json
    model: PathBuf,
    /// The text to continue
    #[arg(long, short)]
    prompt: String,
    /// At most so many tokens
    #[arg(short, value_name = "N", default_value_t = 100)]
    n: usize,
    /// Sample at this temperature [default: always the likeliest token]
    #[arg(long, value_name = "T", value_parser = temperature)]
    temperature: Option<f64>,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    layers: Layers,
}

fn temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err("a temperature is a number above 0".into()),
    }
}

impl Generate {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let tokenizer = language::tokenizer(&self.model)?;
        self.layers.apply();
        let language = Language::open(&self.model)?;
        let sampling = match self.temperature {
            None => Sampling::Greedy,
            Some(temperature) => Sampling::Temperature { temperature, seed: self.seed },
        };
        let say = |text: &str| -> anyhow::Result<()> {
            let mut out = stdout().lock();
            out.write_all(text.as_bytes())?;
            Ok(out.flush()?)
        };
        let (written, rate) =
            language::write(&language.model, &tokenizer, &self.prompt, self.n, sampling, say)?;
        say("\n")?;
        eprintln!("{written} tokens, {rate:.0} per second");
        Ok(())
    }
}
