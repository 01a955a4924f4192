//! `rbe inspect`

use crate::print::{self, Table};
use candle_rbe::archive::{Archive, Dtype, Entry};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

/// List a model's tensors: shape, terms, bits per weight, error
#[derive(Args)]
pub(crate) struct Inspect {
    /// Model directory or safetensors file, compressed or not
    model: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Line {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    compressed: bool,
    summary: String,
    bytes: u64,
    bits_per_weight: f64,
    relative_error: Option<f64>,
}

#[derive(Serialize)]
struct Report {
    tensors: Vec<Line>,
    compressed_tensors: usize,
    weights: u64,
    compressed_weights: u64,
    bytes: u64,
    compressed_bytes: u64,
    /// Of the compressed tensors; absent where there is none.
    bits_per_weight: Option<f64>,
}

impl Inspect {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let archive = Archive::open(&self.model)?;
        let tensors: Vec<Line> =
            archive.entries().map(|entry| line(&archive, entry)).collect::<Result<_, _>>()?;
        let sum = |of: fn(&Line) -> u64| tensors.iter().map(of).sum::<u64>();
        let weights = |line: &Line| line.shape.iter().map(|&side| side as u64).product();
        let compressed = |line: &&Line| line.compressed;
        let compressed_weights = tensors.iter().filter(compressed).map(weights).sum();
        let compressed_bytes = tensors.iter().filter(compressed).map(|line| line.bytes).sum();
        let report = Report {
            compressed_tensors: tensors.iter().filter(compressed).count(),
            weights: sum(weights),
            compressed_weights,
            bytes: sum(|line| line.bytes),
            compressed_bytes,
            bits_per_weight: (compressed_weights > 0)
                .then(|| 8.0 * compressed_bytes as f64 / compressed_weights as f64),
            tensors,
        };
        match self.json {
            true => print::json(&report),
            false => print::line(&describe(&report)),
        }
    }
}

fn line(archive: &Archive, entry: &Entry) -> candle_rbe::Result<Line> {
    let mut line = Line {
        name: entry.name.clone(),
        shape: entry.shape.clone(),
        dtype: entry.dtype,
        compressed: entry.compressed,
        summary: format!("dense {}", entry.dtype),
        bytes: entry.bytes as u64,
        bits_per_weight: entry.dtype.bitsize() as f64,
        relative_error: None,
    };
    if entry.compressed {
        let tensor = archive.rbe(entry)?;
        line.summary = tensor.summary().to_owned();
        line.bits_per_weight = tensor.bits_per_weight();
        line.relative_error = Some(tensor.relative_error());
    }
    Ok(line)
}

fn describe(report: &Report) -> String {
    let mut table = Table::new(&[0, 5]);
    table.row(["tensor", "shape", "bytes", "bits", "error", "stored as"]);
    for line in &report.tensors {
        table.row([
            line.name.clone(),
            print::shape(&line.shape),
            print::bytes(line.bytes),
            format!("{:.3}", line.bits_per_weight),
            line.relative_error.map_or("-".into(), |error| format!("{error:.4}")),
            line.summary.clone(),
        ]);
    }
    let total = format!(
        "{} tensors, {} weights, {}",
        report.tensors.len(),
        report.weights,
        print::bytes(report.bytes)
    );
    let compressed = match report.bits_per_weight {
        None => "nothing is compressed".into(),
        Some(bits) => format!(
            "{} tensors compressed: {} weights at {bits:.3} bits, {}",
            report.compressed_tensors,
            report.compressed_weights,
            print::bytes(report.compressed_bytes)
        ),
    };
    format!("{table}\n{total}\n{compressed}")
}
