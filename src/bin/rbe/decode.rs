//! `rbe decode`

use crate::bar::Bar;
use crate::{interrupt, print, source};
use anyhow::Context;
use candle_rbe::archive::{self, DecodeOptions, Dtype};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Decode a compressed model into one ordinary safetensors file, or a GGUF file into a model directory
#[derive(Args)]
pub(crate) struct Decode {
    /// Compressed model directory or file, a GGUF file, or a repository of the hub (org/name)
    input: PathBuf,
    /// File to write; for a GGUF file a directory, with configuration and tokenizer
    output: PathBuf,
    /// Type of the weights [default: each tensor's type before it was compressed; of one that GGUF quantised F32]
    #[arg(long, value_enum)]
    dtype: Option<DtypeArg>,
    /// Replace the output if it is there
    #[arg(long)]
    force: bool,
    /// Print a report as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum DtypeArg {
    F32,
    F16,
    Bf16,
}

impl Decode {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        interrupt::install()?;
        let dtype = self.dtype.map(|dtype| match dtype {
            DtypeArg::F32 => Dtype::F32,
            DtypeArg::F16 => Dtype::F16,
            DtypeArg::Bf16 => Dtype::BF16,
        });
        let options = DecodeOptions { dtype, overwrite: self.force };
        let input = source::local(&self.input)?;
        let bar = Bar::new("decoding")?;
        let report = archive::decode(&input, &self.output, &options, &mut |step| bar.step(step))
            .with_context(|| format!("cannot decode {}", self.input.display()))?;
        drop(bar);
        print::warn_of(&report.non_finite);
        if self.json {
            return print::json(&report);
        }
        print::line(&format!(
            "{}: {} -> {} in {:.1} s\n{} of {} tensors decoded",
            self.output.display(),
            print::bytes(report.bytes_before),
            print::bytes(report.bytes_after),
            report.seconds,
            report.decoded_tensors,
            report.tensors,
        ))
    }
}
