//! `rbe inspect`

use crate::print::{self, Table};
use crate::source::Source;
use candle_rbe::archive::{Archive, Dtype, Entry};
use candle_rbe::codec::Errors;
use clap::Args;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// List a model's tensors: shape, terms, bits per weight in the file and in memory, error
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
    /// The tensor that stands for this one, which the file does not hold again.
    tied_to: Option<String>,
    summary: String,
    /// In the file.
    bytes: u64,
    bits_per_weight: f64,
    /// Of the same payload without entropy coding; of a dense tensor, in the file.
    plain_bytes: u64,
    /// In the layout that products read; of a dense tensor, in the file.
    memory_bytes: u64,
    /// Of a stack that of the matrix which has the largest.
    relative_error: Option<f64>,
    /// The largest of a row of the stored matrix and of a block, relative to themselves; absent where they are not recorded.
    worst_row_error: Option<f32>,
    worst_block_error: Option<f32>,
}

#[derive(Serialize)]
struct Report {
    tensors: Vec<Line>,
    compressed_tensors: usize,
    weights: u64,
    compressed_weights: u64,
    bytes: u64,
    compressed_bytes: u64,
    /// What the compressed tensors would take in the file without entropy coding.
    plain_bytes: u64,
    /// What the compressed tensors take in memory.
    memory_bytes: u64,
    /// Of the compressed tensors, in the file; absent where there is none.
    bits_per_weight: Option<f64>,
    /// The same in memory.
    memory_bits_per_weight: Option<f64>,
}

impl Inspect {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let source = Source::open(&self.model)?;
        let archive = Archive::open(source.path())?;
        let tensors: Vec<Line> =
            archive.entries().map(|entry| line(&archive, entry)).collect::<Result<_, _>>()?;
        let sum = |of: fn(&Line) -> u64| tensors.iter().map(of).sum::<u64>();
        let weights: fn(&Line) -> u64 = |line| line.shape.iter().map(|&side| side as u64).product();
        // What another stands for is neither stored nor counted again.
        let compressed = |line: &&Line| line.compressed && line.tied_to.is_none();
        let compressed_sum = |of: fn(&Line) -> u64| tensors.iter().filter(compressed).map(of).sum::<u64>();
        let compressed_weights = compressed_sum(weights);
        let compressed_bytes = compressed_sum(|line| line.bytes);
        let memory_bytes = compressed_sum(|line| line.memory_bytes);
        let per_weight =
            |bytes: u64| (compressed_weights > 0).then(|| 8.0 * bytes as f64 / compressed_weights as f64);
        let report = Report {
            compressed_tensors: tensors.iter().filter(compressed).count(),
            weights: tensors.iter().filter(|line| line.tied_to.is_none()).map(weights).sum(),
            compressed_weights,
            bytes: sum(|line| line.bytes),
            compressed_bytes,
            plain_bytes: compressed_sum(|line| line.plain_bytes),
            memory_bytes,
            bits_per_weight: per_weight(compressed_bytes),
            memory_bits_per_weight: per_weight(memory_bytes),
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
        tied_to: entry.tied_to.clone(),
        summary: format!("dense {}", entry.dtype),
        bytes: entry.bytes as u64,
        bits_per_weight: entry.dtype.bitsize() as f64,
        plain_bytes: entry.bytes as u64,
        memory_bytes: entry.bytes as u64,
        relative_error: None,
        worst_row_error: None,
        worst_block_error: None,
    };
    if let Some(other) = &entry.tied_to {
        (line.bytes, line.plain_bytes, line.memory_bytes, line.bits_per_weight) = (0, 0, 0, 0.0);
        line.summary = format!("the same as {other}");
    } else if entry.compressed {
        (line.plain_bytes, line.memory_bytes) = (0, 0);
        let (mut errors, mut summaries) = (Errors::default(), BTreeSet::new());
        for index in 0..entry.parts() {
            let part = archive.part(entry, index)?;
            line.plain_bytes += part.plain_size_in_bytes() as u64;
            line.memory_bytes += part.memory_in_bytes() as u64;
            let own = part.errors();
            errors.relative = errors.relative.max(own.relative);
            errors.worst_row = errors.worst_row.max(own.worst_row);
            errors.worst_block = errors.worst_block.max(own.worst_block);
            summaries.insert(part.summary().to_owned());
        }
        line.summary = summaries.into_iter().collect::<Vec<_>>().join(", ");
        if entry.parts() > 1 {
            line.summary = format!("{} of {}", entry.parts(), line.summary);
        }
        line.bits_per_weight = 8.0 * entry.bytes as f64 / entry.elements() as f64;
        line.relative_error = Some(errors.relative.into());
        line.worst_row_error = Some(errors.worst_row).filter(|error| *error > 0.0);
        line.worst_block_error = Some(errors.worst_block).filter(|error| *error > 0.0);
    }
    Ok(line)
}

fn describe(report: &Report) -> String {
    let mut table = Table::new(&[0, 7]);
    table.row(["tensor", "shape", "bytes", "bits", "memory", "error", "worst row", "stored as"]);
    for line in &report.tensors {
        table.row([
            line.name.clone(),
            print::shape(&line.shape),
            print::bytes(line.bytes),
            format!("{:.3}", line.bits_per_weight),
            print::bytes(line.memory_bytes),
            line.relative_error.map_or("-".into(), |error| format!("{error:.4}")),
            line.worst_row_error.map_or("-".into(), |error| format!("{error:.4}")),
            line.summary.clone(),
        ]);
    }
    let total = format!(
        "{} tensors, {} weights, {}",
        report.tensors.len(),
        report.weights,
        print::bytes(report.bytes)
    );
    let compressed = match (report.bits_per_weight, report.memory_bits_per_weight) {
        (Some(bits), Some(memory)) => {
            let saved = report.plain_bytes - report.compressed_bytes.min(report.plain_bytes);
            format!(
                "{} tensors compressed: {} weights at {bits:.3} bits, {}; entropy coding saves {}, {:.1} %; in memory \
                 {memory:.3} bits, {}",
                report.compressed_tensors,
                report.compressed_weights,
                print::bytes(report.compressed_bytes),
                print::bytes(saved),
                100.0 * saved as f64 / report.plain_bytes as f64,
                print::bytes(report.memory_bytes)
            )
        }
        _ => "nothing is compressed".into(),
    };
    format!("{table}\n{total}\n{compressed}")
}
