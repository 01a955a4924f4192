//! `rbe blocks`

use crate::encoder::EncoderArgs;
use crate::print::{self, Table};
use crate::source::Source;
use anyhow::{Context, bail};
use candle_core::DType;
use candle_rbe::BlockSizeWeights;
use candle_rbe::archive::{Archive, Selection};
use clap::Args;
use std::path::PathBuf;

/// Try every block edge on samples of a model's matrices: size, speed, error
#[derive(Args)]
pub(crate) struct Blocks {
    /// Model directory (single file or sharded), or a safetensors file
    model: PathBuf,
    #[command(flatten)]
    encoder: EncoderArgs,
    /// Matrices to try, spread evenly over the model's
    #[arg(long, value_name = "N", default_value_t = 4)]
    samples: usize,
    /// Sample only matrices whose names match this regular expression
    #[arg(long, value_name = "RE")]
    include: Option<String>,
    /// What a small size counts
    #[arg(long, value_name = "W", default_value_t = BlockSizeWeights::default().memory)]
    memory: f64,
    /// What a fast product counts
    #[arg(long, value_name = "W", default_value_t = BlockSizeWeights::default().speed)]
    speed: f64,
    /// What a small error counts
    #[arg(long, value_name = "W", default_value_t = BlockSizeWeights::default().accuracy)]
    accuracy: f64,
    /// Print one JSON object with the edges, the best first
    #[arg(long)]
    json: bool,
}

impl Blocks {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let encoder = self.encoder.encoder()?;
        let selection = Selection::new(self.include.as_deref(), None)?;
        let source = Source::open(&self.model)?;
        let archive = Archive::open(source.path())?;
        let chosen: Vec<_> = archive.entries().filter(|e| !e.compressed && selection.takes(e)).collect();
        if chosen.is_empty() || self.samples == 0 {
            bail!("{} has no matrix to try", self.model.display());
        }
        let count = self.samples.min(chosen.len());
        let mut matrices = Vec::new();
        for n in 0..count {
            let entry = chosen[n * chosen.len() / count];
            let matrix = archive.dense_part(entry, n % entry.parts())?.to_dtype(DType::F32)?;
            let (rows, cols) = matrix.dims2()?;
            matrices.push((matrix.flatten_all()?.to_vec1::<f32>()?, rows, cols));
        }
        let samples: Vec<_> =
            matrices.iter().map(|(values, rows, cols)| (&values[..], *rows, *cols)).collect();
        let weights = BlockSizeWeights { memory: self.memory, speed: self.speed, accuracy: self.accuracy };
        let scores = encoder
            .optimize_block_size(&samples, weights)
            .with_context(|| format!("cannot try block edges on {}", self.model.display()))?;
        if self.json {
            return print::json(&serde_json::json!({ "edges": scores }));
        }
        let mut table = Table::new(&[]);
        table.row(["block", "bits", "ns per 1000 weights", "relative error", "score"]);
        for score in scores {
            table.row([
                score.block.to_string(),
                format!("{:.3}", score.bits_per_weight),
                format!("{:.1}", score.product_ns_per_kiloweight),
                format!("{:.5}", score.relative_error),
                format!("{:.3}", score.score),
            ]);
        }
        print::line(&table.to_string())
    }
}
