//! `rbe prune`

use crate::bar::Bar;
use crate::interrupt;
use crate::print::{self, Table};
use anyhow::Context;
use candle_rbe::archive;
use clap::Args;
use std::path::PathBuf;

/// Take small coefficients away from the sparse terms of a compressed model
#[derive(Args)]
pub(crate) struct Prune {
    /// Compressed model directory or file
    input: PathBuf,
    /// What to write: a directory for a directory, a file for a file
    output: PathBuf,
    /// Coefficients smaller than this go; what the basis functions can say of them stays
    #[arg(long, value_name = "T")]
    threshold: f32,
    /// The model before it was compressed, to measure the errors; without it they are bounds
    #[arg(long, value_name = "MODEL")]
    against: Option<PathBuf>,
    /// Replace the output if it is there
    #[arg(long)]
    force: bool,
    /// Print a report of every pruned tensor as one JSON object
    #[arg(long)]
    json: bool,
}

impl Prune {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        interrupt::install()?;
        let bar = Bar::new("pruning")?;
        let mut watch = |step: archive::Progress<'_>| bar.step(step);
        let against = self.against.as_deref();
        let reports =
            archive::prune(&self.input, &self.output, self.threshold, against, self.force, &mut watch)
                .with_context(|| format!("cannot prune {}", self.input.display()))?;
        drop(bar);
        if self.json {
            return print::json(&reports);
        }
        let mut table = Table::new(&[0]);
        table.row(["tensor", "coefficients", "left", "bytes", "left", "change", "error", "now"]);
        for (name, report) in &reports {
            let sign = if report.measured { "" } else { "<= " };
            table.row([
                name.clone(),
                report.coefficients_before.to_string(),
                report.coefficients_after.to_string(),
                report.bytes_before.to_string(),
                report.bytes_after.to_string(),
                format!("{:.5}", report.change),
                format!("{:.5}", report.error_before),
                format!("{sign}{:.5}", report.error_after),
            ]);
        }
        print::line(&table.to_string())
    }
}
