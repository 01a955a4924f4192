//! From a compressed model back to a dense one, one tensor in memory at a time.

use super::convert::{Pace, Watch, refuse_itself};
use super::stage::Stage;
use super::{Archive, Dtype, Entry, NonFinite, SafetensorsWriter, Slot, measure};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use safetensors::View;
use std::fs::File;
use std::path::Path;
use std::time::Instant;

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

/// Writes a compressed model as one dense safetensors file of the original's names, shapes and types.
///
/// # Errors
/// A tensor is damaged, or the type asked for would make infinities or mostly zeros of it, with its name and the types that
/// hold it; the output exists, is the input, or cannot
/// be written; `watch` asks to stop. Nothing is left behind then.
pub fn decode(
    input: impl AsRef<Path>,
    output: impl AsRef<Path>,
    options: &DecodeOptions,
    watch: &mut Watch<'_>,
) -> Result<DecodeReport> {
    let (input, output) = (input.as_ref(), output.as_ref());
    let start = Instant::now();
    if let Some(dtype) = options.dtype
        && !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
    {
        return Err(Error::Unsupported { what: format!("decoding to {dtype}; choose F32, F16 or BF16") });
    }
    let archive = Archive::open(input)?;
    refuse_itself(&archive, output)?;
    let stage = Stage::file(output, options.overwrite)?;
    let model = write_model(&archive, output, stage.model()?, options.dtype, watch)?;
    let bytes_after = archive.entries().map(|entry| dense_bytes(entry, options.dtype)).sum();
    stage.commit(model)?;
    Ok(DecodeReport {
        tensors: archive.entries().len(),
        decoded_tensors: archive.entries().filter(|entry| entry.compressed).count(),
        bytes_before: archive.entries().map(|entry| entry.own_bytes() as u64).sum(),
        bytes_after,
        non_finite: archive.entries().filter_map(|entry| NonFinite::of(&archive, entry)).collect(),
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn write_model(
    archive: &Archive,
    output: &Path,
    model: File,
    dtype: Option<Dtype>,
    watch: &mut Watch<'_>,
) -> Result<File> {
    let plan = archive.entries().map(|entry| Slot::dense(&entry.name, target(entry, dtype), &entry.shape));
    let mut writer = SafetensorsWriter::new(model, output, plan.collect(), archive.metadata())?;
    let mut pace = Pace::new(watch, output, archive.entries().filter(|entry| entry.compressed));
    while let Some(slot) = writer.next_slot() {
        let entry = archive.entry(&slot.name)?;
        let dtype = slot.dtype;
        if entry.compressed {
            pace.tell(Some(entry))?;
        }
        if !entry.compressed && entry.dtype == dtype {
            writer.write(&entry.shape, archive.bytes(entry))?;
        } else {
            let tensor = archive.tensor(entry, &Device::Cpu)?;
            refuse_loss(archive, entry, &tensor, dtype)?;
            let tensor = tensor.to_dtype(DType::try_from(dtype)?)?;
            writer.write(&entry.shape, &View::data(&tensor))?;
        }
    }
    pace.tell(None)?;
    writer.finish()
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
fn refuse_loss(archive: &Archive, entry: &Entry, tensor: &Tensor, dtype: Dtype) -> Result<()> {
    let held = Held::of(tensor, dtype);
    if !held.overflows && (dtype == entry.dtype || held.lost <= MOST_LOST) {
        return Ok(());
    }
    let holds = |other: &Dtype| {
        let held = Held::of(tensor, *other);
        *other != dtype && !held.overflows && held.lost <= MOST_LOST
    };
    let others: Vec<String> = [Dtype::BF16, Dtype::F16, Dtype::F32]
        .iter()
        .filter(|other| holds(other))
        .map(Dtype::to_string)
        .collect();
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
            100.0 * held.lost
        ),
    };
    Err(archive.about(entry, reason))
}

/// What a type makes of a tensor's finite values.
struct Held {
    largest: f64,
    /// Whether one becomes infinite.
    overflows: bool,
    /// `|W - rounded W| / |W|`.
    lost: f64,
}

impl Held {
    fn of(tensor: &Tensor, dtype: Dtype) -> Self {
        let round = |value: f64| match dtype {
            Dtype::F16 => f16::from_f64(value).into(),
            Dtype::BF16 => bf16::from_f64(value).into(),
            Dtype::F32 => f64::from(value as f32),
            _ => value,
        };
        let (bytes, own) = (View::data(tensor), tensor.dtype().into());
        let each = |act: &mut dyn FnMut(f64)| {
            measure::for_each(&bytes, own, |_, value| {
                if value.is_finite() {
                    act(value);
                }
            });
        };
        let mut largest = 0f64;
        each(&mut |value| largest = largest.max(value.abs()));
        let mut held = Self { largest, overflows: false, lost: 0.0 };
        let (mut lost, mut norm) = (0.0, 0.0);
        if largest > 0.0 {
            each(&mut |value| {
                let rounded = round(value);
                held.overflows |= rounded.is_infinite();
                // Relative to the largest, so that no square leaves F64.
                lost += ((value - rounded) / largest).powi(2);
                norm += (value / largest).powi(2);
            });
            held.lost = f64::sqrt(lost / norm);
        }
        held
    }
}
