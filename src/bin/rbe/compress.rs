//! `rbe compress`

use crate::bar::Bar;
use crate::encoder::EncoderArgs;
use crate::eval::{Passage, compare};
use crate::interrupt;
use crate::language::{self, Language};
use crate::memory;
use crate::print;
use crate::source::{self, Source};
use anyhow::{Context, ensure};
use candle_core::{DType, Device, Tensor};
use candle_rbe::archive::{self, Archive, CompressOptions, CompressReport, Imatrix, Selection, Stage};
use candle_rbe::encode::fewest_bits;
use candle_rbe::models::{CausalLm, Config, StreamedModel, Walk, Windows, own_text};
use candle_rbe::nn::Calibration;
use candle_rbe::{Encoder, EncoderConfig, Rate};
use clap::Args;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Compress a model: a Hugging Face directory or a GGUF file into a directory, or one safetensors file into a file
#[derive(Args)]
pub(crate) struct Compress {
    /// Model directory (single file or sharded), a GGUF file, a safetensors file, or a repository of the Hugging Face hub:
    /// org/name, org/name@revision, org/name/file.gguf
    input: PathBuf,
    /// What to write: a directory for a directory or a GGUF file, a file for a safetensors file
    output: PathBuf,
    #[command(flatten)]
    encoder: EncoderArgs,
    /// Compress only matrices whose names match this regular expression
    #[arg(long, value_name = "RE")]
    include: Option<String>,
    /// Leave matrices dense whose names match this regular expression
    #[arg(long, value_name = "RE")]
    exclude: Option<String>,
    /// Look at the weights alone: do not run the model on text of its own making to see how large each layer's inputs are
    #[arg(long, conflicts_with = "calibrate")]
    weights_only: bool,
    /// An importance matrix of llama.cpp (GGUF, or the older .dat) that says how large each layer's inputs are, in place of
    /// running the model
    #[arg(long, value_name = "FILE", conflicts_with_all = ["calibrate", "weights_only"])]
    imatrix: Option<PathBuf>,
    /// Keep the model's predictions on this text as close as the bits allow, layer by layer: each by what it sees behind the
    /// layers in front of it as they are compressed (a model directory of a known architecture). Layers that are done are kept
    /// in a hidden file beside the output until it is there: the same command, typed again, goes on from them
    #[arg(long, value_name = "TEXT")]
    calibrate: Option<PathBuf>,
    /// Most windows of 256 tokens taken from the calibration text, spread evenly
    #[arg(long, value_name = "N", default_value_t = 64, requires = "calibrate")]
    samples: usize,
    /// KL divergence from the original, in nats per token on the text of --text, in as few bits as it takes: compresses
    /// and measures three or four times (a model directory of a known architecture)
    #[arg(long, value_name = "X", group = "rate", requires = "text")]
    kl: Option<f64>,
    /// The text that --kl measures on; not the one of --calibrate
    #[arg(long, value_name = "FILE", requires = "kl")]
    text: Option<PathBuf>,
    /// Replace the output if it is there
    #[arg(long)]
    force: bool,
    /// Print a report of every tensor as one JSON object
    #[arg(long)]
    json: bool,
}

impl Compress {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        interrupt::install()?;
        let encoder = self.encoder.encoder()?;
        let selection = Selection::new(self.include.as_deref(), self.exclude.as_deref())?;
        let options = CompressOptions { selection, overwrite: self.force, plain: self.encoder.plain };
        // The output is begun, and what is measured or calibrated on is read, before the work.
        let given = source::local(&self.input)?;
        if archive::is_gguf(&given) {
            // Before it is unpacked, which takes its time.
            Stage::directory(&self.output, self.force, &[&given]).with_context(|| self.failed())?;
        }
        let source = Source::beside(&given, &self.output)?;
        let input = source.path();
        let stage = self.begin(input).with_context(|| self.failed())?;
        let language = self.kl.map(|_| Language::open(input)).transpose()?;
        let bound = match (self.kl, &self.text, &language) {
            (Some(bound), Some(text), Some(language)) => Some(bound_on(bound, text, language)?),
            _ => None,
        };
        let known = match (&self.calibrate, &language) {
            _ if self.imatrix.is_some() => self.of_imatrix(input)?,
            (Some(text), _) => Known::Text(self.calibration(input, text)?),
            (None, _) if self.looks_at_inputs(&encoder) && is_model(input)? => {
                Known::Inputs(of_own_text(input)?)
            }
            _ => Known::Nothing,
        };
        let mut work = Work { compress: self, input, options, stage, known };
        let report = match bound {
            Some(bound) => work.compress_within(&bound, &encoder),
            None => work.compress(&encoder),
        };
        let mut report = report.inspect_err(|_| print::kept(&archive::kept_layers()))?;
        let others = work.stage.kept_by_others();
        work.stage.commit().with_context(|| self.failed())?;
        if archive::is_gguf(&given) {
            // Not of what it was unpacked to.
            report.bytes_before = bytes_of_parts(&given)?;
        }
        print::kept_by_others(&others);
        print::warn_of(&report.non_finite);
        for line in &report.tensors {
            line.warning.iter().for_each(|warning| print::warn(&line.name, warning));
        }
        match self.json {
            true => print::json(&report),
            false => print::line(&self.describe(&report)),
        }
    }

    /// Whether columns are to be scaled by what the model's own text shows of their inputs.
    fn looks_at_inputs(&self, encoder: &Encoder) -> bool {
        encoder.config().scales
            && !self.weights_only
            && matches!(encoder.config().rate, Rate::BitsPerWeight(_))
    }

    fn failed(&self) -> String {
        format!("cannot compress {}", self.input.display())
    }

    /// The output: a directory for a directory, a file for a file.
    fn begin(&self, input: &Path) -> anyhow::Result<Stage> {
        ensure!(
            self.kl.is_none() || input.is_dir(),
            "--kl takes a model directory, and {} is none",
            self.input.display()
        );
        let input = Archive::open(input)?;
        // With --kl or --calibrate the model is needed, and that is an error.
        if let Some(obstacle) =
            language::obstacle(&input).filter(|_| self.kl.is_none() && self.calibrate.is_none())
        {
            print::note(&format!(
                "note: no model of this program will run the output: {}",
                print::harmless(&obstacle)
            ));
        }
        let texts: Vec<&Path> =
            [&self.calibrate, &self.text, &self.imatrix].into_iter().flatten().map(|p| &**p).collect();
        Ok(Stage::like(&input, &self.output, self.force, &texts)?)
    }

    fn calibration(&self, input: &Path, text: &Path) -> anyhow::Result<Calibrated> {
        let config = Config::read(language::directory(input))
            .with_context(|| format!("cannot load {}", self.input.display()))?;
        let windows = language::samples(&config, &language::tokenizer(input)?, text, self.samples)?;
        Ok(Calibrated { config, windows })
    }

    /// What the importance matrix says of the model's layers.
    fn of_imatrix(&self, input: &Path) -> anyhow::Result<Known<'static>> {
        let Some(imatrix) = &self.imatrix else { return Ok(Known::Nothing) };
        let known = Imatrix::read(imatrix)?.statistics(&Archive::open(input)?)?;
        Ok(Known::Inputs(Calibration::known(known)))
    }

    fn describe(&self, report: &CompressReport) -> String {
        format!(
            "{}: {} -> {} in {:.1} s\n{} of {} tensors compressed, {:.3} bits per weight, relative error {:.4}",
            self.output.display(),
            print::bytes(report.bytes_before),
            print::bytes(report.bytes_after),
            report.seconds,
            report.compressed_tensors,
            report.tensors.len(),
            report.bits_per_weight,
            report.relative_error,
        )
    }
}

/// What is known of the model beside its weights.
enum Known<'m> {
    Nothing,
    /// How large the inputs of its layers are.
    Inputs(Calibration<'m>),
    /// What it reads.
    Text(Calibrated),
}

/// A text, cut into windows, and the model that it is walked through.
struct Calibrated {
    config: Config,
    windows: Vec<Tensor>,
}

impl Calibrated {
    fn walk(&self, model: &Path) -> anyhow::Result<Walk> {
        let weights = archive::open(model, DType::F32, &Device::Cpu)?;
        Ok(Walk::new(self.config.clone(), weights, self.windows.clone())?)
    }
}

/// Whether the input is a model that this program runs, and there is the memory to; else what is missing is said.
fn is_model(input: &Path) -> anyhow::Result<bool> {
    if !input.join("config.json").is_file() {
        return Ok(false);
    }
    let archive = Archive::open(input)?;
    Ok(language::obstacle(&archive).is_none() && has_room(&archive))
}

/// Whether what runs the model layer by layer fits into memory; else that is said, and what to do.
fn has_room(archive: &Archive) -> bool {
    let takes = streamed_bytes(archive);
    let short = memory::available().filter(|available| *available < takes);
    if let Some(available) = short {
        let gigabytes = |bytes: u64| bytes as f64 / 1e9;
        print::note(&format!(
            "note: to run the model takes {:.1} GB and there are {:.1}, so it is not run to see its layers' inputs, as with \
             --weights-only",
            gigabytes(takes),
            gigabytes(available)
        ));
    }
    short.is_none()
}

/// What stands outside of layers and the largest layer, in F32, and half as much for states and what is read.
fn streamed_bytes(archive: &Archive) -> u64 {
    let mut layers: BTreeMap<Option<usize>, u64> = BTreeMap::new();
    for entry in archive.entries() {
        // The first number in a name is the layer's.
        let layer = entry.name.split('.').find_map(|part| part.parse().ok());
        let bytes = layers.entry(layer).or_default();
        *bytes = bytes.saturating_add(4 * entry.elements() as u64);
    }
    let outside = layers.remove(&None).unwrap_or_default();
    let bytes = outside.saturating_add(layers.into_values().max().unwrap_or_default());
    bytes.saturating_add(bytes / 2)
}

/// What the model shows of its layers' inputs on text of its own making.
fn of_own_text(input: &Path) -> anyhow::Result<Calibration<'static>> {
    let run = || -> anyhow::Result<_> {
        let weights = archive::open(input, DType::F32, &Device::Cpu)?;
        let model = StreamedModel::new(Config::read(language::directory(input))?, weights)?;
        let text = own_text_of(&model)?;
        Ok(Calibration::known(model.input_squares(&[text])?))
    };
    run().with_context(|| format!("cannot run {}; --weights-only does without", input.display()))
}

/// Sixteen windows of text of the model's own making.
pub(crate) fn own_text_of(model: &StreamedModel) -> anyhow::Result<Tensor> {
    let bar = Bar::new("running")?;
    let progress = |done: usize, of: usize| bar.set(done as u64, of as u64, String::new());
    let windows = Windows { count: 16, length: model.context_length().min(128) };
    Ok(own_text(model, windows, EncoderConfig::default().seed, progress)?)
}

fn bound_on<'l>(divergence: f64, text: &Path, original: &'l Language) -> anyhow::Result<Bound<'l>> {
    let text = Passage::open(text, &language::tokenizer(&original.path)?, Windows::default())?;
    text.suits(original)?;
    Ok(Bound { divergence, text, original })
}

/// What a GGUF file takes, or all files of a model that is split.
fn bytes_of_parts(path: &Path) -> anyhow::Result<u64> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let parts = archive::gguf_parts(&name);
    match &parts[..] {
        // Its own name may be no text.
        [_] => Ok(path.metadata()?.len()),
        parts => parts.iter().map(|part| Ok(path.with_file_name(part).metadata()?.len())).sum(),
    }
}

/// How near the compressed model is to be, and to what on which text.
struct Bound<'l> {
    divergence: f64,
    text: Passage,
    original: &'l Language,
}

/// A model under way.
struct Work<'c, 'm> {
    compress: &'c Compress,
    input: &'c Path,
    options: CompressOptions,
    stage: Stage,
    known: Known<'m>,
}

impl Work<'_, '_> {
    fn compress(&mut self, encoder: &Encoder) -> anyhow::Result<CompressReport> {
        let Self { compress, input, options, stage, known } = self;
        let bar = Bar::new("compressing")?;
        let watch = &mut |step: archive::Progress<'_>| bar.step(step);
        let report = match known {
            Known::Nothing => archive::compress_into(input, stage, encoder, options, None, watch),
            Known::Inputs(inputs) => {
                archive::compress_into(input, stage, encoder, options, Some(inputs), watch)
            }
            Known::Text(text) => {
                let walk = text.walk(input).with_context(|| compress.failed())?;
                archive::compress_layer_by_layer(input, stage, encoder, options, walk, watch)
            }
        };
        report.with_context(|| compress.failed())
    }

    /// The smallest model that diverges by the bound at most. Each try takes the place of the one before in the stage.
    fn compress_within(&mut self, bound: &Bound<'_>, encoder: &Encoder) -> anyhow::Result<CompressReport> {
        let at = |bits: f64| {
            let rate = Rate::BitsPerWeight(bits);
            Encoder::new(EncoderConfig { rate, ..encoder.config().clone() })
        };
        let mut last = None;
        let bits = fewest_bits(bound.divergence, |bits| -> anyhow::Result<f64> {
            let report = self.compress(&at(bits)?)?;
            let compressed = Language::open(&self.stage.path())?;
            let found = compare(bound.original, &compressed, &bound.text)?.kl_divergence;
            print::note(&format!("{:.3} bits per weight: KL divergence {found:.6}", report.bits_per_weight));
            last = Some((bits, report));
            Ok(found)
        })?;
        match last {
            Some((tried, report)) if tried == bits => Ok(report),
            _ => self.compress(&at(bits)?),
        }
    }
}
