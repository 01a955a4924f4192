//! `rbe eval`

use crate::bar::Bar;
use crate::language::{self, Language};
use crate::layers::Layers;
use crate::print::{self, Table};
use anyhow::Context;
use candle_rbe::models::{Evaluation, Windows, evaluate};
use clap::Args;
use serde::Serialize;
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// Compare a compressed model with the original on a text
#[derive(Args)]
pub(crate) struct Eval {
    /// The original model's directory
    dense: PathBuf,
    /// The compressed model's directory
    rbe: PathBuf,
    /// The text, UTF-8
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Windows of the text, spread evenly
    #[arg(long, value_name = "N", default_value_t = Windows::default().count)]
    windows: usize,
    /// Tokens in each window
    #[arg(long, value_name = "N", default_value_t = Windows::default().length)]
    window_tokens: usize,
    #[command(flatten)]
    layers: Layers,
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
        let tokenizer = language::tokenizer(&self.dense)?;
        let windows = Windows { count: self.windows, length: self.window_tokens };
        let text = Text::open(&self.text, &tokenizer, windows)?;
        self.layers.apply();
        let (reference, candidate) = (Language::open(&self.dense)?, Language::open(&self.rbe)?);
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
pub(crate) struct Text {
    file: PathBuf,
    tokens: Vec<u32>,
    windows: Windows,
}

impl Text {
    /// Reads a text that is long enough for the windows.
    pub(crate) fn open(file: &Path, tokenizer: &Tokenizer, windows: Windows) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read the text {}", file.display()))?;
        let tokens = language::tokens(tokenizer, &text, false)?;
        windows.starts(tokens.len()).with_context(|| format!("cannot evaluate on {}", file.display()))?;
        Ok(Self { file: file.to_owned(), tokens, windows })
    }

    /// Whether a model can read it: said before one is compressed that is to be compared with it.
    pub(crate) fn suits(&self, language: &Language) -> anyhow::Result<()> {
        let suits = self.windows.starts_for(&language.model, &self.tokens);
        suits.map(drop).with_context(|| format!("cannot evaluate on {}", self.file.display()))
    }
}

/// Runs both models over windows of the text.
pub(crate) fn compare(reference: &Language, candidate: &Language, text: &Text) -> anyhow::Result<Evaluation> {
    let bar = Bar::new("evaluating")?;
    let progress = |done: usize, of: usize| bar.set(done as u64, of as u64, String::new());
    evaluate(&reference.model, &candidate.model, &text.tokens, text.windows, progress).with_context(|| {
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
