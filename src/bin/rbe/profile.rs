//! `rbe profile`: where a compressed model's time goes, layer by layer.

use crate::chart;
use crate::interrupt;
use crate::language::{self, Language};
use crate::layers::Layers;
use crate::print::{self, Table};
use crate::source::Source;
use anyhow::{Context, ensure};
use candle_core::Tensor;
use candle_rbe::archive::Stage;
use candle_rbe::models::{CausalLm, generate, greedy};
use candle_rbe::nn::{Counts, LayerCounts, layer_counts, reset_layer_counts};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;

/// Run a compressed model and show what each layer did: time, bytes, coefficients, cache
#[derive(Args)]
pub(crate) struct Profile {
    /// The compressed model's directory
    model: PathBuf,
    /// A text, UTF-8, of which the beginning is read
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens to read in one piece
    #[arg(long, value_name = "N", default_value_t = 128)]
    tokens: usize,
    /// Tokens to write after them, one by one
    #[arg(short, value_name = "N", default_value_t = 32)]
    n: usize,
    #[command(flatten)]
    layers: Layers,
    /// Draw the table as a picture, SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Replace the picture if it is there
    #[arg(long, requires = "svg")]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    tokens_read: usize,
    tokens_written: usize,
    /// Of the whole run, what is no compressed layer among it.
    seconds: f64,
    layers: Vec<LayerCounts>,
}

impl Profile {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        interrupt::install()?;
        let begin = |path: &PathBuf| Stage::file(path, self.force, &[&self.model, &self.text]);
        let picture = self.svg.as_ref().map(begin).transpose()?;
        let source = Source::open(&self.model)?;
        let tokenizer = language::tokenizer(source.path())?;
        let text = std::fs::read_to_string(&self.text)
            .with_context(|| format!("cannot read the text {}", self.text.display()))?;
        self.layers.apply();
        let language = Language::open(source.path())?;
        let mut ids = tokenizer.whole(&text)?;
        ids.truncate(self.tokens);
        ensure!(
            !ids.is_empty(),
            "there is nothing to read: no token of {} was asked for",
            self.text.display()
        );
        ensure!(
            !layer_counts().is_empty(),
            "{} has no compressed layer; `rbe compress` makes a model that has",
            self.model.display()
        );
        // Once to touch all memory, then what is counted.
        language.model.forward_last(&Tensor::new(&ids[..1], language.model.device())?.unsqueeze(0)?, None)?;
        reset_layer_counts();
        let start = Instant::now();
        let written = generate(&language.model, &ids, self.n.max(1), greedy)
            .collect::<Result<Vec<_>, _>>()
            .context("cannot run the model")?;
        let seconds = start.elapsed().as_secs_f64();
        let report =
            Report { tokens_read: ids.len(), tokens_written: written.len(), seconds, layers: layer_counts() };
        if let Some(picture) = picture {
            std::fs::write(picture.path(), draw(&report))
                .with_context(|| format!("cannot write {}", picture.destination().display()))?;
            picture.commit()?;
        }
        match self.json {
            true => print::json(&report),
            false => print::line(&describe(&report)),
        }
    }
}

/// The sum over all layers.
fn total(layers: &[LayerCounts]) -> Counts {
    layers.iter().fold(Counts::default(), |sum, LayerCounts { counts, .. }| Counts {
        calls: sum.calls + counts.calls,
        tokens: sum.tokens + counts.tokens,
        multiply_adds: sum.multiply_adds + counts.multiply_adds,
        unpacked: sum.unpacked + counts.unpacked,
        weight_bytes: sum.weight_bytes + counts.weight_bytes,
        cache_hits: sum.cache_hits + counts.cache_hits,
        cache_misses: sum.cache_misses + counts.cache_misses,
        nanoseconds: sum.nanoseconds + counts.nanoseconds,
    })
}

fn describe(report: &Report) -> String {
    let all = total(&report.layers);
    let mut table = Table::new(&[0]);
    table.row([
        "layer",
        "ms",
        "share",
        "calls",
        "unpacked",
        "multiply-adds",
        "weights read",
        "GB/s",
        "cache hits",
    ]);
    let mut row = |name: &str, counts: &Counts| {
        table.row([
            name.to_owned(),
            format!("{:.2}", counts.time().as_secs_f64() * 1e3),
            format!("{:.1} %", 100.0 * counts.time().as_secs_f64() / report.seconds),
            counts.calls.to_string(),
            print::count(counts.unpacked),
            print::count(counts.multiply_adds),
            print::bytes(counts.weight_bytes),
            format!("{:.2}", counts.weight_bytes as f64 / counts.nanoseconds.max(1) as f64),
            counts.hit_rate().map_or_else(|| "-".into(), |rate| format!("{:.0} %", 100.0 * rate)),
        ]);
    };
    for layer in &report.layers {
        row(&layer.layer, &layer.counts);
    }
    row("all compressed layers", &all);
    format!(
        "{table}\n\n{} tokens read and {} written in {:.1} ms; {:.1} ms of it outside of compressed layers",
        report.tokens_read,
        report.tokens_written,
        1e3 * report.seconds,
        1e3 * (report.seconds - all.time().as_secs_f64()).max(0.0),
    )
}

fn draw(report: &Report) -> String {
    let all = total(&report.layers).time().as_secs_f64();
    let mut bars: Vec<_> = report
        .layers
        .iter()
        .map(|layer| chart::Bar {
            name: layer.layer.clone(),
            value: 1e3 * layer.counts.time().as_secs_f64(),
            note: format!(
                "{} read, {:.2} GB/s",
                print::bytes(layer.counts.weight_bytes),
                layer.counts.weight_bytes as f64 / layer.counts.nanoseconds.max(1) as f64
            ),
        })
        .collect();
    bars.push(chart::Bar {
        name: "all else".into(),
        value: 1e3 * (report.seconds - all).max(0.0),
        note: "attention, norms, embeddings, dense layers".into(),
    });
    let title = format!(
        "Milliseconds per layer: {} tokens read, {} written in {:.1} ms",
        report.tokens_read,
        report.tokens_written,
        1e3 * report.seconds
    );
    chart::bars(&title, "ms", &bars)
}
