//! `rbe compress`

use crate::bar::Bar;
use crate::encoder::EncoderArgs;
use crate::eval::compare;
use crate::language::{self, Language};
use crate::print;
use anyhow::{Context, ensure};
use candle_rbe::archive::{self, CompressOptions, CompressReport, Selection};
use candle_rbe::encode::fewest_bits;
use candle_rbe::models::Windows;
use candle_rbe::nn::Calibration;
use candle_rbe::{Encoder, EncoderConfig, Rate};
use clap::Args;
use std::path::{Path, PathBuf};

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
    /// KL divergence from the original, in nats per token on the text of --text, in as few bits as it takes: compresses
    /// and measures three or four times (a model directory of a known architecture)
    #[arg(long, value_name = "X", group = "rate", requires = "text")]
    kl: Option<f64>,
    /// The text that --kl measures on; not the one of --calibrate
    #[arg(long, value_name = "FILE", requires = "kl")]
    text: Option<PathBuf>,
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
        // What is measured or calibrated on is refused before the work begins.
        let language = match self.calibrate.is_some() || self.kl.is_some() {
            true => Some(Language::open(&self.input)?),
            false => None,
        };
        let mut calibration = match (&self.calibrate, &language) {
            (Some(text), Some(language)) => Some(self.calibration(language, text)?),
            _ => None,
        };
        let report = match (self.kl, &self.text, &language) {
            (Some(bound), Some(text), Some(language)) => {
                self.compress_within(bound, language, text, &encoder, &mut calibration)?
            }
            _ => self.compress(&self.output, &encoder, self.force, &mut calibration)?,
        };
        print::warn_of(&report.non_finite);
        match self.json {
            true => print::json(&report),
            false => print::line(&self.describe(&report)),
        }
    }

    fn calibration<'m>(&self, language: &'m Language, text: &Path) -> anyhow::Result<Calibration<'m>> {
        let tokenizer = language::tokenizer(&self.input)?;
        let samples = language::samples(&language.model, &tokenizer, text, self.samples)?;
        let bar = Bar::new("calibrating")?;
        let progress = move |done: usize, of: usize| bar.set(done as u64, of as u64, String::new());
        Ok(Calibration::new(&language.model, samples).with_progress(progress))
    }

    fn compress(
        &self,
        output: &Path,
        encoder: &Encoder,
        overwrite: bool,
        calibration: &mut Option<Calibration<'_>>,
    ) -> anyhow::Result<CompressReport> {
        let selection = Selection::new(self.include.as_deref(), self.exclude.as_deref())?;
        let options = CompressOptions { selection, overwrite, plain: self.encoder.plain };
        let bar = Bar::converting("compressing")?;
        let watch = &mut |step: archive::Step<'_>| bar.step(step);
        let report = match calibration {
            None => archive::compress(&self.input, output, encoder, &options, watch),
            Some(calibration) => {
                archive::compress_calibrated(&self.input, output, encoder, &options, calibration, watch)
            }
        };
        report.with_context(|| format!("cannot compress {}", self.input.display()))
    }

    /// The smallest model that diverges by `bound` at most.
    fn compress_within(
        &self,
        bound: f64,
        original: &Language,
        text: &Path,
        encoder: &Encoder,
        calibration: &mut Option<Calibration<'_>>,
    ) -> anyhow::Result<CompressReport> {
        ensure!(self.input.is_dir(), "--kl takes a model directory, and {} is none", self.input.display());
        let there = self.output.exists();
        ensure!(self.force || !there, "{} exists; --force replaces it", self.output.display());
        let tokenizer = language::tokenizer(&self.input)?;
        // Tries stay beside the output, so that the last one moves there in one step.
        let parent = self.output.parent().filter(|parent| !parent.as_os_str().is_empty());
        let room = tempfile::tempdir_in(parent.unwrap_or(Path::new(".")))
            .with_context(|| format!("cannot write beside {}", self.output.display()))?;
        let tried = room.path().join("model");
        let mut compress = |bits: f64| -> anyhow::Result<CompressReport> {
            let config = EncoderConfig { rate: Rate::BitsPerWeight(bits), ..encoder.config().clone() };
            self.compress(&tried, &Encoder::new(config)?, true, calibration)
        };
        let mut last = None;
        let bits = fewest_bits(bound, |bits| -> anyhow::Result<f64> {
            let report = compress(bits)?;
            let compressed = Language::open(&tried)?;
            let found = compare(original, &compressed, &tokenizer, text, Windows::default())?.kl_divergence;
            eprintln!("{:.3} bits per weight: KL divergence {found:.6}", report.bits_per_weight);
            last = Some((bits, report));
            Ok(found)
        })?;
        let report = match last {
            Some((tried, report)) if tried == bits => report,
            _ => compress(bits)?,
        };
        if there {
            std::fs::remove_dir_all(&self.output)
                .with_context(|| format!("cannot replace {}", self.output.display()))?;
        }
        std::fs::rename(&tried, &self.output)
            .with_context(|| format!("cannot write {}", self.output.display()))?;
        Ok(report)
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
