//! `rbe eval`

use crate::bar::Bar;
use crate::device::DeviceArgs;
use crate::language::{self, Language};
use crate::layers::Layers;
use crate::print::{self, Table};
use crate::reader::TextReader;
use crate::source::Source;
use anyhow::Context;
use candle_rbe::models::{Evaluation, Text, Windows, evaluate};
use clap::Args;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Compare a compressed model with the original on a text
///
/// Both see the same windows of the text, each alone. Every window begins with what the model expects before a text, as
/// `rbe generate` puts it before a prompt: what the template in tokenizer.json says, or add_bos_token in
/// tokenizer_config.json; of many models that is nothing. Perplexity is over every token of a window but its first, the
/// divergence over every position.
#[derive(Args)]
pub(crate) struct Eval {
    /// The original model: a directory, a GGUF file, or a repository of the hub (org/name)
    dense: PathBuf,
    /// The compressed model, likewise
    rbe: PathBuf,
    /// The text, UTF-8
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Windows of the text, spread evenly
    #[arg(long, value_name = "N", default_value_t = Windows::default().count)]
    windows: usize,
    /// Tokens in each window, with those that start a text
    #[arg(long, value_name = "N", default_value_t = Windows::default().length)]
    window_tokens: usize,
    #[command(flatten)]
    layers: Layers,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    reference_bytes: u64,
    candidate_bytes: u64,
    #[serde(flatten)]
    evaluation: Evaluation,
}

impl Eval {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let (dense, rbe) = (Source::open(&self.dense)?, Source::open(&self.rbe)?);
        let tokenizer = language::tokenizer(dense.path())?;
        let windows = Windows { count: self.windows, length: self.window_tokens };
        let text = Passage::open(&self.text, &tokenizer, windows)?;
        self.layers.apply();
        let [reference, candidate] = self.device.open_to_compare([dense.path(), rbe.path()])?;
        let evaluation = compare(&reference, &candidate, &text)?;
        let report =
            Report { reference_bytes: reference.bytes()?, candidate_bytes: candidate.bytes()?, evaluation };
        match self.json {
            true => print::json(&report),
            false => print::line(&describe(&report)),
        }
    }
}

/// The text that models are compared on, and which parts of it.
pub(crate) struct Passage {
    file: PathBuf,
    start: Vec<u32>,
    tokens: Vec<u32>,
    windows: Windows,
}

impl Passage {
    /// Reads a text that is long enough for the windows.
    pub(crate) fn open(file: &Path, tokenizer: &TextReader, windows: Windows) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read the text {}", file.display()))?;
        let (start, tokens) = (tokenizer.start().to_vec(), tokenizer.tokens(&text)?);
        let passage = Self { file: file.to_owned(), start, tokens, windows };
        windows.cut(passage.text()).with_context(|| format!("cannot evaluate on {}", file.display()))?;
        Ok(passage)
    }

    fn text(&self) -> Text<'_> {
        Text { start: &self.start, tokens: &self.tokens }
    }

    /// Whether a model can read it: said before one is compressed that is to be compared with it.
    pub(crate) fn suits(&self, language: &Language) -> anyhow::Result<()> {
        let suits = self.windows.cut_for(&language.model, self.text());
        suits.map(drop).with_context(|| format!("cannot evaluate on {}", self.file.display()))
    }
}

/// Runs both models over windows of the text.
pub(crate) fn compare(
    reference: &Language,
    candidate: &Language,
    passage: &Passage,
) -> anyhow::Result<Evaluation> {
    let bar = Bar::new("evaluating")?;
    let progress = |done: usize, of: usize| bar.set(done as u64, of as u64, String::new());
    let (text, windows) = (passage.text(), passage.windows);
    evaluate(&reference.model, &candidate.model, text, windows, progress).with_context(|| {
        format!("cannot compare {} with {}", candidate.path.display(), reference.path.display())
    })
}

fn describe(report: &Report) -> String {
    let Evaluation { windows, reference, candidate, .. } = report.evaluation;
    let mut table = Table::new(&[0]);
    table.row(["", "original", "compressed"]);
    table.row(["weights".into(), print::bytes(report.reference_bytes), print::bytes(report.candidate_bytes)]);
    table.row([
        "perplexity".into(),
        format!("{:.3}", reference.perplexity),
        format!("{:.3}", candidate.perplexity),
    ]);
    table.row([
        "tokens per second".into(),
        format!("{:.0}", reference.tokens_per_second),
        format!("{:.0}", candidate.tokens_per_second),
    ]);
    format!(
        "{table}\nKL divergence {:.6} nats per token, the same likeliest token at {:.1} % of positions, logits at \
         most {:.3} apart\n{} windows of {} tokens",
        report.evaluation.kl_divergence,
        100.0 * report.evaluation.top1_agreement,
        report.evaluation.max_logit_difference,
        windows.count,
        windows.length,
    )
}
