//! `rbe imatrix`

use crate::bar::Bar;
use crate::compress::own_text_of;
use crate::interrupt;
use crate::language;
use crate::print;
use crate::source::{self, Source};
use anyhow::Context;
use candle_core::{DType, Device, Tensor};
use candle_rbe::archive::{self, Archive, Imatrix, Stage};
use candle_rbe::models::{Config, StreamedModel};
use clap::Args;
use std::path::{Path, PathBuf};

/// Write how large the inputs of a model's layers are as an importance matrix that llama.cpp reads (GGUF)
///
/// The model is read layer by layer. `rbe compress --imatrix` takes the file, and so does `llama-quantize --imatrix`.
#[derive(Args)]
pub(crate) struct WriteImatrix {
    /// Model directory of a known architecture, a GGUF file, or a repository of the Hugging Face hub
    input: PathBuf,
    /// The file to write, such as imatrix.gguf
    output: PathBuf,
    /// The text that the model reads, UTF-8; without it, text of its own making
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Most windows of 256 tokens taken from the text, spread evenly
    #[arg(long, value_name = "N", default_value_t = 64, requires = "text")]
    samples: usize,
    /// Replace the output if it is there
    #[arg(long)]
    force: bool,
}

/// Windows that go through the model together: layers are read once for each.
const TOGETHER: usize = 8;

impl WriteImatrix {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        interrupt::install()?;
        let given = source::local(&self.input)?;
        let source = Source::beside(&given, &self.output)?;
        let input = source.path();
        let model = Archive::open(input)?;
        let inputs: Vec<&Path> = [&given].into_iter().chain(&self.text).map(|path| &**path).collect();
        let stage = Stage::file(&self.output, self.force, &inputs)?;
        let config = Config::read(language::directory(input))
            .with_context(|| format!("cannot load {}", self.input.display()))?;
        let weights = archive::open(input, DType::F32, &Device::Cpu)?;
        let streamed = StreamedModel::new(config.clone(), weights)?;
        let (windows, dataset) = match &self.text {
            Some(text) => {
                let windows = language::samples(&config, &language::tokenizer(input)?, text, self.samples)?;
                (windows, text.display().to_string())
            }
            None => (own_text_of(&streamed)?.chunk(TOGETHER, 0)?, "the model's own".to_owned()),
        };
        let bar = Bar::new("running")?;
        bar.set(0, 1, String::new());
        let batches: Vec<Tensor> =
            windows.chunks(TOGETHER).map(|some| Tensor::cat(some, 0)).collect::<candle_core::Result<_>>()?;
        let statistics = streamed.input_squares(&batches)?;
        drop(bar);
        let (count, tokens) = batches.iter().try_fold((0, 0), |(count, _), batch| {
            let (windows, tokens) = batch.dims2()?;
            candle_core::Result::Ok((count + windows, tokens))
        })?;
        Imatrix::write(&stage, &model, &statistics, &dataset, (count, tokens))?;
        stage.commit()?;
        print::line(&format!(
            "{}: the inputs of {} layers over {count} windows of {tokens} tokens",
            self.output.display(),
            statistics.len()
        ))
    }
}
