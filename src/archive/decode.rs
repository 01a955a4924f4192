//! From a compressed model back to a dense one, a dense tensor or a few decoded rows in memory at a time.

use super::progress::{OnProgress, ProgressReporter};
use super::stage::{Scratch, Stage, inputs};
use super::{Archive, Dtype, Entry, NonFinite, SafetensorsWriter, Slot, gguf, is_gguf, measure, unpack_gguf};
use crate::clock::Instant;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use safetensors::View;
use std::fs::File;
use std::path::Path;

/// The largest part of a tensor's norm that may be lost to another type: more than the rounding of any of them, a
/// quarter of a percent at most, and little beside what compression loses.
const MOST_LOST: f64 = 0.01;

/// How [`decode`] goes about it.
#[derive(Clone, Debug, Default)]
pub struct DecodeOptions {
    /// The type of every floating tensor in the output, F32, F16 or BF16; `None` keeps the original's types.
    pub dtype: Option<Dtype>,
    /// Whether an existing output file is replaced.
    pub overwrite: bool,
}

/// What a decoded model holds.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct DecodeReport {
    /// Tensors in all.
    pub tensors: usize,
    /// How many of them were compressed.
    pub decoded_tensors: usize,
    /// Bytes of all tensors in the input.
    pub bytes_before: u64,
    /// Bytes of all tensors in the output.
    pub bytes_after: u64,
    /// The dense tensors with values that are not finite, which are in the output as they were.
    pub non_finite: Vec<NonFinite>,
    /// Wall time.
    pub seconds: f64,
}

/// Writes a compressed model as one dense safetensors file of the original's names, shapes and types; a GGUF file as a
/// directory, with configuration and tokenizer ([`unpack_gguf`]).
///
/// # Errors
/// A tensor is damaged, or the type asked for would make infinities or mostly zeros of it, with its name and the types that
/// hold it; the output exists, is the input, or cannot
/// be written; `watch` asks to stop. Nothing is left behind then.
pub fn decode(
    input: impl AsRef<Path>,
    output: impl AsRef<Path>,
    options: &DecodeOptions,
    watch: &mut OnProgress<'_>,
) -> Result<DecodeReport> {
    let (input, output) = (input.as_ref(), output.as_ref());
    let start = Instant::now();
    if let Some(dtype) = options.dtype
        && !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
    {
        return Err(Error::unsupported(format!("decoding to {dtype}; choose F32, F16 or BF16")));
    }
    if is_gguf(input) {
        return decode_gguf(input, output, options, watch);
    }
    let archive = Archive::open(input)?;
    let stage = Stage::file(output, options.overwrite, &inputs(&archive).collect::<Vec<_>>())?;
    write_model(&archive, output, stage.model()?, options.dtype, watch)?;
    let bytes_after = archive.entries().map(|entry| dense_bytes(entry, options.dtype)).sum();
    stage.commit()?;
    Ok(DecodeReport {
        tensors: archive.entries().len(),
        decoded_tensors: archive.entries().filter(|entry| entry.compressed).count(),
        bytes_before: archive.entries().map(|entry| entry.own_bytes() as u64).sum(),
        bytes_after,
        non_finite: archive.entries().filter_map(|entry| NonFinite::of(&archive, entry)).collect(),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Into a directory; in another type by way of the file's own, so that what would be lost is seen.
fn decode_gguf(
    input: &Path,
    output: &Path,
    options: &DecodeOptions,
    watch: &mut OnProgress<'_>,
) -> Result<DecodeReport> {
    let start = Instant::now();
    let stage = Stage::directory(output, options.overwrite, &[input])?;
    let unpacked = match options.dtype {
        None => unpack_gguf(input, stage.path(), watch)?,
        Some(dtype) => {
            let scratch = Scratch::new(output)?;
            let own = scratch.path().join("own");
            std::fs::create_dir(&own).map_err(|e| Error::io(&own, e))?;
            let unpacked = unpack_gguf(input, &own, watch)?;
            stage.copy_companions(&own)?;
            gguf::set_dtype(&stage.path(), dtype)?;
            write_model(&Archive::open(&own)?, output, stage.model()?, Some(dtype), watch)?;
            unpacked
        }
    };
    let archive = Archive::open(stage.path())?;
    let report = DecodeReport {
        tensors: unpacked.tensors,
        decoded_tensors: unpacked.quantized_tensors,
        bytes_before: unpacked.bytes_before,
        bytes_after: archive.entries().map(|entry| entry.bytes as u64).sum(),
        non_finite: archive.entries().filter_map(|entry| NonFinite::of(&archive, entry)).collect(),
        seconds: start.elapsed().as_secs_f64(),
    };
    drop(archive);
    stage.commit()?;
    Ok(report)
}

fn write_model(
    archive: &Archive,
    output: &Path,
    model: File,
    dtype: Option<Dtype>,
    watch: &mut OnProgress<'_>,
) -> Result<()> {
    let plan = archive.entries().map(|entry| Slot::dense(&entry.name, target(entry, dtype), &entry.shape));
    let mut writer = SafetensorsWriter::new(model, output, plan.collect(), archive.metadata())?;
    let mut pace = ProgressReporter::new(
        watch,
        output,
        archive.entries().filter(|entry| entry.compressed).map(|entry| entry.elements() as u64),
    );
    while let Some(slot) = writer.next_slot() {
        let entry = archive.entry(&slot.name)?;
        let dtype = slot.dtype;
        if entry.compressed {
            pace.tell(Some((&entry.name, entry.elements() as u64)))?;
        }
        if !entry.compressed && entry.dtype == dtype {
            writer.write(&entry.shape, archive.bytes(entry))?;
        } else if entry.compressed {
            let bytes = usize::try_from(dense_bytes(entry, Some(dtype))).unwrap_or(usize::MAX);
            let mut held = Held::by(dtype);
            let written = writer.write_pieces(&entry.shape, bytes, |write| {
                decode_parts(archive, entry, &mut |band| {
                    let band = Tensor::from_slice(band, band.len(), &Device::Cpu)?;
                    held.add(&band);
                    write(&View::data(&band.to_dtype(DType::try_from(dtype)?)?))
                })
            });
            written.map_err(|error| match error {
                Error::Codec(rbe_core::Error::Allocation { .. }) | Error::Candle(_) => {
                    archive.about(entry, error)
                }
                named => named,
            })?;
            refuse_loss(archive, entry, &held)?;
        } else {
            let tensor = archive.tensor(entry, &Device::Cpu)?;
            let mut held = Held::by(dtype);
            held.add(&tensor);
            refuse_loss(archive, entry, &held)?;
            let tensor = tensor.to_dtype(DType::try_from(dtype)?)?;
            writer.write(&entry.shape, &View::data(&tensor))?;
        }
    }
    pace.tell(None)?;
    writer.finish().map(drop)
}

/// Decodes a tensor, a few rows at a time.
fn decode_parts(archive: &Archive, entry: &Entry, take: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
    (0..entry.parts()).try_for_each(|index| archive.part(entry, index)?.decode_in_bands(&mut *take))
}

/// The type of a tensor in the output.
fn target(entry: &Entry, dtype: Option<Dtype>) -> Dtype {
    dtype.filter(|_| measure::is_float(entry.dtype)).unwrap_or(entry.dtype)
}

fn dense_bytes(entry: &Entry, dtype: Option<Dtype>) -> u64 {
    (entry.elements() * target(entry, dtype).bitsize() / 8) as u64
}

/// Refuses a type that makes infinities of a tensor's values, or zeros of so many that they show, and names the types
/// that do not.
///
/// Values come back to the type that they had before compression whatever they lose: they lost it before.
fn refuse_loss(archive: &Archive, entry: &Entry, held: &Held) -> Result<()> {
    let dtype = held.dtype;
    if !held.overflows && (dtype == entry.dtype || held.lost() <= MOST_LOST) {
        return Ok(());
    }
    let mut others = vec![];
    for other in [Dtype::BF16, Dtype::F16, Dtype::F32].into_iter().filter(|other| *other != dtype) {
        let mut held = Held::by(other);
        match entry.compressed {
            true => decode_parts(archive, entry, &mut |band| {
                held.add(&Tensor::from_slice(band, band.len(), &Device::Cpu)?);
                Ok(())
            })?,
            false => held.add(&archive.tensor(entry, &Device::Cpu)?),
        }
        if !held.overflows && held.lost() <= MOST_LOST {
            others.push(other.to_string());
        }
    }
    let advice = match (&others[..], entry.dtype) {
        ([], Dtype::F64) => "only its own type, F64, holds it: decode without another type".to_owned(),
        ([], _) => "no type holds it".to_owned(),
        (others, _) => format!("decode to {}", others.join(" or ")),
    };
    let largest = held.largest;
    let reason = match held.overflows {
        true => format!("holds {largest:.3e}, too large for {dtype}; {advice}"),
        false => format!(
            "holds nothing larger than {largest:.3e}, of which {dtype} would lose {:.1} %; {advice}",
            100.0 * held.lost()
        ),
    };
    Err(archive.about(entry, reason))
}

/// What a type makes of a tensor's finite values.
struct Held {
    dtype: Dtype,
    largest: f64,
    /// Whether one becomes infinite.
    overflows: bool,
    /// `|W - rounded W|^2` and `|W|^2`, both in units of the largest value's square, so that no square leaves F64.
    squares: [f64; 2],
}

impl Held {
    fn by(dtype: Dtype) -> Self {
        Self { dtype, largest: 0.0, overflows: false, squares: [0.0; 2] }
    }

    /// Takes a part of the tensor into account.
    fn add(&mut self, tensor: &Tensor) {
        let (bytes, own) = (View::data(tensor), tensor.dtype().into());
        let each = |act: &mut dyn FnMut(f64)| {
            measure::for_each(&bytes, own, |_, value| {
                if value.is_finite() {
                    act(value);
                }
            });
        };
        let mut largest = self.largest;
        each(&mut |value| largest = largest.max(value.abs()));
        if largest == 0.0 {
            return;
        }
        let smaller = (self.largest / largest).powi(2);
        self.squares = self.squares.map(|square| square * smaller);
        self.largest = largest;
        let round = |value: f64| match self.dtype {
            Dtype::F16 => f16::from_f64(value).into(),
            Dtype::BF16 => bf16::from_f64(value).into(),
            Dtype::F32 => f64::from(value as f32),
            _ => value,
        };
        each(&mut |value| {
            let rounded = round(value);
            self.overflows |= rounded.is_infinite();
            self.squares[0] += ((value - rounded) / largest).powi(2);
            self.squares[1] += (value / largest).powi(2);
        });
    }

    /// `|W - rounded W| / |W|`.
    fn lost(&self) -> f64 {
        let [lost, norm] = self.squares;
        if norm > 0.0 { (lost / norm).sqrt() } else { 0.0 }
    }
}
