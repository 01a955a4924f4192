//! `rbe verify`

use crate::print::{self, Table};
use crate::source::Source;
use anyhow::bail;
use candle_rbe::archive;
use clap::Args;
use std::path::PathBuf;

/// Check every tensor of a compressed model against the original: checksums, shapes, errors
#[derive(Args)]
pub(crate) struct Verify {
    /// Compressed model directory or file
    input: PathBuf,
    /// The model it was made from, or its GGUF file
    #[arg(long, value_name = "ORIGINAL")]
    against: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let (input, against) = (Source::open(&self.input)?, Source::open(&self.against)?);
        let report = archive::verify(input.path(), against.path())?;
        if self.json {
            print::json(&report)?;
        } else {
            let mut table = Table::new(&[0, 3]);
            table.row(["tensor", "measured error", "recorded", ""]);
            for tensor in &report.tensors {
                let number = |error: Option<f64>| error.map_or("exact".into(), |error| format!("{error:.5}"));
                let problem = tensor.problem.as_ref();
                table.row([
                    tensor.name.clone(),
                    problem.map_or_else(|| number(tensor.relative_error), |_| "-".into()),
                    tensor.recorded_error.map_or("-".into(), |error| format!("{error:.5}")),
                    match (problem, &tensor.non_finite, &tensor.warning) {
                        (Some(problem), ..) => format!("PROBLEM: {problem}"),
                        (None, Some(found), _) => format!("ok, but {found}"),
                        (None, None, Some(warning)) => format!("ok, but {warning}"),
                        (None, None, None) => "ok".into(),
                    },
                ]);
            }
            print::line(&table.to_string())?;
            print::line(&format!(
                "relative error {:.5} over all compressed tensors, {:.5} at most; {:.1} s",
                report.relative_error, report.largest_relative_error, report.seconds
            ))?;
        }
        if report.problems > 0 {
            let (bad, all) = (report.problems, report.tensors.len());
            bail!("{bad} of {all} tensors do not verify; compress {} again", self.against.display());
        }
        Ok(())
    }
}
