//! `rbe demo`: the whole way in one command, on the small model of the repository.

use crate::bar::Bar;
use crate::eval::{Passage, compare};
use crate::interrupt;
use crate::language::{self, Language};
use crate::layers::Layers;
use crate::print::{self, Table};
use crate::sampling::Chooser;
use crate::writer::{Prompt, Writer};
use anyhow::{Context, ensure};
use candle_rbe::archive::{self, CompressOptions, Scratch, Selection};
use candle_rbe::models::{Config, Windows};
use candle_rbe::{Encoder, EncoderConfig, Rate};
use clap::Args;
use std::path::PathBuf;

/// Compress a small model, run it beside the original, and show what changed
#[derive(Args)]
pub(crate) struct Demo {
    /// Model directory
    #[arg(default_value = "models/llama-books")]
    model: PathBuf,
    /// Bits per weight of the projections, all side information counted [default: 4 and room for the scales]
    #[arg(long, value_name = "B")]
    bits: Option<f64>,
    /// The text to evaluate on
    #[arg(long, value_name = "FILE", default_value = "models/evaluation.txt")]
    text: PathBuf,
    /// The text to continue
    #[arg(long, default_value = "It was a dark evening, and the old gentleman")]
    prompt: String,
    /// Tokens to continue it by
    #[arg(short, value_name = "N", default_value_t = 80)]
    n: usize,
    /// Seed of the texts
    #[arg(long, default_value_t = 3)]
    seed: u64,
    #[command(flatten)]
    layers: Layers,
}

impl Demo {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        for path in [&self.model, &self.text] {
            let hint = "run rbe in the root of the repository, or name a model directory and a --text";
            ensure!(path.exists(), "there is no {}; {hint}", path.display());
        }
        interrupt::install()?;
        let tokenizer = language::tokenizer(&self.model)?;
        let text = Passage::open(&self.text, &tokenizer, Windows::default())?;
        self.layers.apply();
        let room = Scratch::new(std::env::temp_dir().join("rbe-demo"))?;
        let compressed = room.path().join("model");
        let config = self.bits.map_or_else(EncoderConfig::default, |bits| Rate::BitsPerWeight(bits).into());
        let encoder = Encoder::new(config)?;
        let projections = Config::read(&self.model)?.projections();
        let options = CompressOptions {
            selection: Selection::new(Some(&projections), None)?,
            ..CompressOptions::default()
        };
        let bar = Bar::new("compressing")?;
        let report =
            archive::compress(&self.model, &compressed, &encoder, &options, &mut |step| bar.step(step))
                .with_context(|| format!("cannot compress {}", self.model.display()))?;
        drop(bar);
        let chosen = report.tensors.iter().filter(|tensor| tensor.compressed);
        let before: u64 = chosen.clone().map(|tensor| tensor.bytes_before).sum();
        let after: u64 = chosen.map(|tensor| tensor.bytes_after).sum();
        print::line(&format!(
            "Compressed the {} projections of {} in {:.1} s: {} -> {}.\n",
            report.compressed_tensors,
            self.model.display(),
            report.seconds,
            print::bytes(before),
            print::bytes(after),
        ))?;

        let (dense, rbe) = (Language::open(&self.model)?, Language::open(&compressed)?);
        let evaluation = compare(&dense, &rbe, &text)?;
        // Small models repeat themselves when they always take the likeliest token; with the same seed both draw alike.
        let chooser = Chooser::Sample { temperature: 0.7, top_k: None, top_p: None, seed: self.seed };
        let prompt = Prompt::Text(&self.prompt);
        let writer = Writer { tokenizer: &tokenizer, prompt, count: self.n, chooser, stops: &[] };
        let mut texts = vec![];
        for language in [&dense, &rbe] {
            let mut text = String::new();
            let speed = writer.write(&language.model, |piece| {
                text.push_str(piece);
                Ok(())
            })?;
            texts.push((text, speed.written_rate));
        }

        let (original, ours) = (evaluation.reference, evaluation.candidate);
        let mut table = Table::new(&[0]);
        table.row(["", "original", "compressed"]);
        let mut row = |name: &str, original: String, ours: String| table.row([name.into(), original, ours]);
        row(
            "bits per projection weight",
            format!("{:.2}", 8.0 * before as f64 / report.compressed_weights as f64),
            format!("{:.2}", report.bits_per_weight),
        );
        row("projections", print::bytes(before), print::bytes(after));
        row("all weights", print::bytes(report.bytes_before), print::bytes(report.bytes_after));
        row(
            "perplexity (lower is better)",
            format!("{:.2}", original.perplexity),
            format!("{:.2}", ours.perplexity),
        );
        row(
            "tokens read per second",
            format!("{:.0}", original.tokens_per_second),
            format!("{:.0}", ours.tokens_per_second),
        );
        row("tokens written per second", format!("{:.0}", texts[0].1), format!("{:.0}", texts[1].1));
        print::line(&format!(
            "{table}\n\nThe two agree on the likeliest next token at {:.1} % of positions;\nKL divergence {:.4} nats \
             per token, relative error of the weights {:.4}.",
            100.0 * evaluation.top1_agreement,
            evaluation.kl_divergence,
            report.relative_error,
        ))?;
        for (name, (text, _)) in ["original", "compressed"].iter().zip(&texts) {
            print::line(&format!("\n{name}:\n{}", wrap(text)))?;
        }
        Ok(())
    }
}

/// Lines of at most 92 characters, set in by two.
fn wrap(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        if lines.last().is_some_and(|line| line.chars().count() + word.chars().count() > 90) {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            line.push_str(if line.is_empty() { "  " } else { " " });
            line.push_str(word);
        }
    }
    lines.join("\n")
}
