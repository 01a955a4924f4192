//! `rbe compress`

use crate::bar::Bar;
use crate::encoder::EncoderArgs;
use crate::print;
use anyhow::Context;
use candle_rbe::archive::{self, CompressOptions, CompressReport, Selection};
use clap::Args;
use std::path::PathBuf;

/// Compress a model: a Hugging Face directory into a directory, or one safetensors file into a file
#[derive(Args)]
pub(crate) struct Compress {
    /// Model directory (single file or sharded), or a safetensors file
    input: PathBuf,
    /// What to write: a directory for a directory, a file for a file
    output: PathBuf,
    #[command(flatten)]
    encoder: EncoderArgs,
    /// Compress only matrices whose names match this regular expression
    #[arg(long, value_name = "RE")]
    include: Option<String>,
    /// Leave matrices dense whose names match this regular expression
    #[arg(long, value_name = "RE")]
    exclude: Option<String>,
    /// Replace the output if it is there
    #[arg(long)]
    force: bool,
    /// Print a report of every tensor as one JSON object
    #[arg(long)]
    json: bool,
}

impl Compress {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let encoder = self.encoder.encoder()?;
        let selection = Selection::new(self.include.as_deref(), self.exclude.as_deref())?;
        let options = CompressOptions { selection, overwrite: self.force };
        let bar = Bar::new("compressing")?;
        let report =
            archive::compress(&self.input, &self.output, &encoder, &options, &mut |step| bar.step(step))
                .with_context(|| format!("cannot compress {}", self.input.display()))?;
        drop(bar);
        match self.json {
            true => print::json(&report),
            false => print::line(&self.describe(&report)),
        }
    }

    fn describe(&self, report: &CompressReport) -> String {
        format!(
            "{}: {} -> {} in {:.1} s\n{} of {} tensors compressed, {:.3} bits per weight, relative error {:.4}",
            self.output.display(),
            print::bytes(report.bytes_before),
            print::bytes(report.bytes_after),
            report.seconds,
            report.compressed_tensors,
            report.tensors.len(),
            report.bits_per_weight,
            report.relative_error,
        )
    }
}
