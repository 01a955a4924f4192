//! From a dense model to a compressed one, one matrix in memory at a time.

use super::beside::{config, tied};
use super::layers;
use super::options::{CompressOptions, Selection};
use super::parts::{Made, Part, joined};
use super::progress::{OnProgress, ProgressReporter};
use super::stage::Stage;
use super::work::{Matrices, Work};
use super::{
    Archive, Dtype, Entry, FORMAT_KEY, FORMAT_VERSION, NonFinite, Original, SUFFIX, SafetensorsWriter, Slot,
    TENSORS_KEY, TIED_KEY,
};
use crate::clock::Instant;
use crate::models::Walk;
use crate::nn::Calibration;
use crate::{Encoder, Error, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

/// What became of one tensor.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct TensorReport {
    /// Its name in the model.
    pub name: String,
    /// Its shape, before and after.
    pub shape: Vec<usize>,
    /// Its type in the original.
    pub dtype: Dtype,
    /// Whether it is compressed now.
    pub compressed: bool,
    /// Terms, block and transform in one line; of a dense tensor its type.
    pub summary: String,
    /// Bits per weight in the output, all side information counted.
    pub bits_per_weight: f64,
    /// `|W - W^| / |W|`, measured by decoding; absent where the tensor is dense, and so exact.
    pub relative_error: Option<f64>,
    /// What may matter: a row or a block with more than three times that error.
    pub warning: Option<String>,
    /// Bytes in the original.
    pub bytes_before: u64,
    /// Bytes in the output.
    pub bytes_after: u64,
}

/// What became of a model.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct CompressReport {
    /// Every tensor, in the order of the file.
    pub tensors: Vec<TensorReport>,
    /// How many of them are compressed.
    pub compressed_tensors: usize,
    /// Weights in all tensors.
    pub weights: u64,
    /// Weights in the compressed ones.
    pub compressed_weights: u64,
    /// Bits per weight of the compressed tensors.
    pub bits_per_weight: f64,
    /// `|W - W^| / |W|` over all compressed tensors together.
    pub relative_error: f64,
    /// Bytes of all tensors in the original.
    pub bytes_before: u64,
    /// Bytes of all tensors in the output.
    pub bytes_after: u64,
    /// The files copied along.
    pub companions: Vec<String>,
    /// The dense tensors with infinite values, such as a mask's.
    pub non_finite: Vec<NonFinite>,
    /// Wall time.
    pub seconds: f64,
}

/// Compresses a model: a Hugging Face directory into a directory, or one safetensors file into a file.
///
/// [`Rate::BitsPerWeight`](crate::Rate) is a budget for all matrices together: token tables and heads get more of it than
/// projections, by their names ([`EncoderConfig::mix`](crate::EncoderConfig) says how). Other rates are each matrix' own.
///
/// A directory's configuration, tokenizer and licence travel along. GPT-2's `Conv1D` weights, stored (in, out), are
/// encoded as (out, in), along which the product runs fastest; their names and shapes stay. `config.json` beside the
/// weights says whether a model is one. Where it ties the head to the embeddings and the file holds the same bytes for both,
/// the head is not stored again; readers of this crate, and [`decode`](super::decode()), have it under both names.
///
/// # Errors
/// The input cannot be read, is compressed already, or has no tensor to compress; a weight is not finite or out of the
/// format's range, or the rate cannot be reached, with the tensor's name; a tensor that stays dense holds NaN; the output exists, is the input, or cannot be written; `watch` asks to
/// stop ([`std::io::ErrorKind::Interrupted`]). Nothing is left behind then.
pub fn compress(
    input: impl AsRef<Path>,
    output: impl AsRef<Path>,
    encoder: &Encoder,
    options: &CompressOptions,
    watch: &mut OnProgress<'_>,
) -> Result<CompressReport> {
    let archive = Archive::open(input)?;
    let stage = Stage::like(&archive, output, options.overwrite, &[])?;
    let mut work = Work { encoder, options, calibration: None, walk: None };
    let report = run(&archive, &stage, &mut work, watch)?;
    stage.commit()?;
    Ok(report)
}

/// [`compress`], with the model's own predictions kept as close as the bits allow.
///
/// With the squares of inputs alone ([`Calibration::of_squares`]) the columns' scales follow them, and bits are shared out as
/// [`compress`] does. With products of inputs the rate must be [`Rate::BitsPerWeight`](crate::Rate), and the bits are shared out by
/// what each matrix' error is expected to do to the predictions; a matrix that the calibration has no statistics of (a token table
/// that is not the head) has the rate for itself.
///
/// # Errors
/// As [`compress`]; another rate; what [`Calibration::statistics`] refuses; statistics of another shape than the matrix.
pub fn compress_calibrated(
    input: impl AsRef<Path>,
    output: impl AsRef<Path>,
    encoder: &Encoder,
    options: &CompressOptions,
    calibration: &mut Calibration<'_>,
    watch: &mut OnProgress<'_>,
) -> Result<CompressReport> {
    let archive = Archive::open(input)?;
    let stage = Stage::like(&archive, output, options.overwrite, &[])?;
    let mut work = Work { encoder, options, calibration: Some(calibration), walk: None };
    let report = run(&archive, &stage, &mut work, watch)?;
    stage.commit()?;
    Ok(report)
}

/// [`compress`], or [`compress_calibrated`], into an output that is begun and not yet to have its name: to look at it first,
/// at [`Stage::path`], or to have begun it before other work. What an earlier call wrote into the same stage is given up.
/// Whether something is replaced the stage knows; [`CompressOptions::overwrite`] is not looked at.
///
/// # Errors
/// As [`compress_calibrated`].
pub fn compress_into(
    input: impl AsRef<Path>,
    stage: &Stage,
    encoder: &Encoder,
    options: &CompressOptions,
    calibration: Option<&mut Calibration<'_>>,
    watch: &mut OnProgress<'_>,
) -> Result<CompressReport> {
    let mut work = Work { encoder, options, calibration, walk: None };
    run(&Archive::open(input)?, stage, &mut work, watch)
}

/// [`compress_into`], calibrated on the windows of a [`Walk`] through the same model: layer by layer, each by what it sees
/// behind the layers in front of it as they are compressed, so that it makes up for their errors.
///
/// It takes what the walk takes and one matrix' encoding, whatever the model's size, and for every token two passes through the
/// model. The rate must be [`Rate::BitsPerWeight`](crate::Rate), shared out as [`compress`] does. Matrices that the walk does
/// not come to (a token table that is not the head) are encoded as by [`compress`].
///
/// Matrices that are encoded are kept in a hidden file beside the destination until the stage is committed ([`kept_layers`](super::kept_layers)). If that
/// does not come to pass, the same call goes on from there, with the same output to the byte: what is the same is told by the
/// contents of the input, the configuration, the encoder's settings, the selection, the tokens, this crate's version and the
/// processor's [`level`](crate::cpu::level).
///
/// # Errors
/// As [`compress`]; another rate, or the sparse term; what [`Walk::step`] refuses; the same conversion is under way.
pub fn compress_layer_by_layer(
    input: impl AsRef<Path>,
    stage: &Stage,
    encoder: &Encoder,
    options: &CompressOptions,
    walk: Walk,
    watch: &mut OnProgress<'_>,
) -> Result<CompressReport> {
    let archive = Archive::open(input)?;
    let kept = stage.kept(&layers::identity(&archive, encoder, options, &walk)?)?;
    let mut work = Work { encoder, options, calibration: None, walk: Some((walk, kept)) };
    run(&archive, stage, &mut work, watch)
}

fn run(
    archive: &Archive,
    stage: &Stage,
    work: &mut Work,
    watch: &mut OnProgress<'_>,
) -> Result<CompressReport> {
    let (options, input) = (work.options, archive.path());
    let start = Instant::now();
    if let Some(entry) = archive.entries().find(|entry| entry.compressed) {
        return Err(archive.about(entry, "is already compressed; decode the model first"));
    }
    if archive.is_compressed() {
        return Err(Error::file(input, format!("is already compressed: its metadata has {FORMAT_KEY}")));
    }
    if !archive.entries().any(|entry| options.selection.takes(entry)) {
        let (count, side) = (archive.entries().len(), options.selection.min_side);
        let reason = format!(
            "none of its {count} tensors is a matrix of floats with both sides of {side} or more and a name that \
             the patterns include"
        );
        return Err(Error::file(input, reason));
    }
    let non_finite = non_finite(archive, &options.selection)?;
    let companions = stage.copy_companions(input)?;
    let mut report = CompressReport {
        tensors: vec![],
        compressed_tensors: 0,
        weights: 0,
        compressed_weights: 0,
        bits_per_weight: 0.0,
        relative_error: 0.0,
        bytes_before: 0,
        bytes_after: 0,
        companions,
        non_finite,
        seconds: 0.0,
    };
    write_model(archive, stage.destination(), stage.model()?, work, watch, &mut report)?;
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

fn write_model(
    archive: &Archive,
    output: &Path,
    model: File,
    work: &mut Work,
    watch: &mut OnProgress<'_>,
    report: &mut CompressReport,
) -> Result<()> {
    let selection = &work.options.selection;
    let config = config(archive)?;
    let tied = tied(archive, selection, config.as_ref());
    let mut writer = begin(archive, output, model, selection, &tied)?;
    let chosen = archive.entries().filter(|entry| !tied.contains_key(entry.name.as_str()));
    let parts = Part::all(chosen.filter(|entry| selection.takes(entry)));
    let matrices = Matrices::new(archive, &parts, config.as_ref());
    let plan = work.plan(&matrices)?;
    let mut pace = ProgressReporter::new(watch, output, parts.iter().map(Part::elements));
    let mut made_before = match work.walk.take() {
        Some(walk) => Some(layers::encode(work, &matrices, &plan, walk, &mut pace)?),
        None => None,
    };
    let mut taken = 0;
    let (mut squared_error, mut squared_norm) = (0.0, 0.0);
    while let Some(slot) = writer.next_slot() {
        let entry = archive.entry(slot.name.strip_suffix(SUFFIX).unwrap_or(&slot.name))?;
        let mut line = TensorReport::of_dense(entry);
        if selection.takes(entry) {
            let mut make = |at: usize| match &mut made_before {
                Some(made) => made.read(matrices.names[at], at),
                None => {
                    pace.tell(Some((matrices.names[at], matrices.elements(at))))?;
                    let tensor = work.encode(&matrices, at, &plan[at], None)?;
                    Made::of(&tensor, work.options.plain)
                }
            };
            let made = (taken..taken + entry.parts()).map(&mut make).collect::<Result<_>>()?;
            taken += entry.parts();
            let (payload, made, norm) = joined(archive, entry, made)?;
            writer.write(&[payload.len()], &payload)?;
            squared_norm += norm;
            squared_error += norm * made.relative_error.powi(2);
            line.compressed_to(payload.len(), made);
        } else {
            writer.write(&entry.shape, archive.bytes(entry))?;
        }
        report.add(line);
    }
    pace.tell(None)?;
    for (name, other) in tied {
        report.add_tied(archive.entry(name)?, other);
    }
    // At least one matrix was chosen and none is empty, so the first divisor is not zero.
    report.bits_per_weight /= report.compressed_weights as f64;
    report.relative_error = if squared_norm > 0.0 { (squared_error / squared_norm).sqrt() } else { 0.0 };
    writer.finish().map(drop)
}

/// A writer of the tensors that are stored, payloads in the place of those chosen, and what the file says of them.
fn begin(
    archive: &Archive,
    output: &Path,
    model: File,
    selection: &Selection,
    tied: &BTreeMap<&str, &str>,
) -> Result<SafetensorsWriter<File>> {
    let stored = archive.entries().filter(|entry| !tied.contains_key(entry.name.as_str()));
    let original = |entry: &Entry| Original { dtype: entry.dtype, shape: entry.shape.clone() };
    let chosen = stored.clone().filter(|entry| selection.takes(entry));
    let originals: BTreeMap<&str, Original> =
        chosen.map(|entry| (entry.name.as_str(), original(entry))).collect();
    let text = |said: Result<String, serde_json::Error>| said.map_err(|e| Error::file(output, e));
    let mut metadata = archive.metadata();
    metadata.insert(FORMAT_KEY.into(), FORMAT_VERSION.into());
    metadata.insert(TENSORS_KEY.into(), text(serde_json::to_string(&originals))?);
    if !tied.is_empty() {
        metadata.insert(TIED_KEY.into(), text(serde_json::to_string(tied))?);
    }
    let slots = stored.map(|entry| match selection.takes(entry) {
        true => Slot::payload(&entry.name),
        false => Slot::dense(&entry.name, entry.dtype, &entry.shape),
    });
    SafetensorsWriter::new(model, output, slots.collect(), metadata)
}

impl TensorReport {
    /// Of a tensor that is stored as it was.
    fn of_dense(entry: &Entry) -> Self {
        Self {
            name: entry.name.clone(),
            shape: entry.shape.clone(),
            dtype: entry.dtype,
            compressed: false,
            summary: format!("dense {}", entry.dtype),
            bits_per_weight: entry.dtype.bitsize() as f64,
            relative_error: None,
            warning: None,
            bytes_before: entry.bytes as u64,
            bytes_after: entry.bytes as u64,
        }
    }

    fn weights(&self) -> u64 {
        self.shape.iter().map(|side| *side as u64).product()
    }

    /// It was compressed to so many bytes.
    fn compressed_to(&mut self, bytes: usize, made: Made) {
        self.compressed = true;
        self.bits_per_weight = 8.0 * bytes as f64 / self.weights() as f64;
        self.bytes_after = bytes as u64;
        self.relative_error = Some(made.relative_error);
        (self.summary, self.warning) = (made.summary, made.warning);
    }
}

impl CompressReport {
    /// Adds a tensor that is stored; until all are, `bits_per_weight` is their bits.
    fn add(&mut self, line: TensorReport) {
        let weights = line.weights();
        if line.compressed {
            self.compressed_tensors += 1;
            self.compressed_weights += weights;
            self.bits_per_weight += 8.0 * line.bytes_after as f64;
        }
        self.weights += weights;
        self.bytes_before += line.bytes_before;
        self.bytes_after += line.bytes_after;
        self.tensors.push(line);
    }

    /// Adds a tensor that is not stored since `other` stands for it.
    fn add_tied(&mut self, entry: &Entry, other: &str) {
        let twin = self.tensors.iter().find(|line| line.name == other);
        let line = TensorReport {
            name: entry.name.clone(),
            shape: entry.shape.clone(),
            dtype: entry.dtype,
            compressed: twin.is_some_and(|line| line.compressed),
            summary: format!("the same as {other}"),
            bits_per_weight: 0.0,
            relative_error: twin.and_then(|line| line.relative_error),
            warning: None,
            bytes_before: entry.bytes as u64,
            bytes_after: 0,
        };
        self.bytes_before += line.bytes_before;
        self.tensors.push(line);
    }
}

/// The dense tensors that hold infinities.
///
/// # Errors
/// When one that stays dense holds NaN: no layer with it works. (The encoder refuses all that is not finite.)
fn non_finite(archive: &Archive, selection: &Selection) -> Result<Vec<NonFinite>> {
    let mut all = vec![];
    for entry in archive.entries().filter(|entry| !selection.takes(entry)) {
        let Some(found) = NonFinite::of(archive, entry) else { continue };
        if found.nan > 0 {
            return Err(archive.about(entry, format!("{found}; a model with it predicts nothing")));
        }
        all.push(found);
    }
    Ok(all)
}
