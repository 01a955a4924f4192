//! `rbe compress`

use crate::bar::Bar;
use crate::encoder::EncoderArgs;
use crate::language::{self, Language};
use crate::print;
use anyhow::Context;
use candle_rbe::archive::{self, CompressOptions, CompressReport, Selection};
use candle_rbe::nn::Calibration;
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
    /// Keep the model's predictions on this text as close as the bits allow, which then are a budget for all layers
    /// together (a model directory of a known architecture)
    #[arg(long, value_name = "TEXT")]
    calibrate: Option<PathBuf>,
    /// Most windows of 256 tokens taken from the calibration text, spread evenly
    #[arg(long, value_name = "N", default_value_t = 128, requires = "calibrate")]
    samples: usize,
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
        let options = CompressOptions { selection, overwrite: self.force, plain: self.encoder.plain };
        let report = match &self.calibrate {
            None => {
                let bar = Bar::new("compressing")?;
                archive::compress(&self.input, &self.output, &encoder, &options, &mut |step| bar.step(step))
            }
            Some(text) => {
                let tokenizer = language::tokenizer(&self.input)?;
                let language = Language::open(&self.input)?;
                let samples = language::samples(&language.model, &tokenizer, text, self.samples)?;
                let bar = Bar::new("compressing")?;
                let progress = |done: usize, of: usize| bar.set(done as u64, of as u64, "reading".into());
                let mut calibration = Calibration::new(&language.model, samples).with_progress(progress);
                archive::compress_calibrated(
                    &self.input,
                    &self.output,
                    &encoder,
                    &options,
                    &mut calibration,
                    &mut |step| bar.step(step),
                )
            }
        };
        let report = report.with_context(|| format!("cannot compress {}", self.input.display()))?;
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
