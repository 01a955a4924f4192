//! From a compressed model back to a dense one, a dense tensor or a few decoded rows in memory at a time.

use super::convert::{Pace, Watch};
use super::stage::{Stage, inputs};
use super::{Archive, Dtype, Entry, SafetensorsWriter, Slot, measure};
use crate::clock::Instant;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use safetensors::View;
use std::fs::File;
use std::path::Path;

/// The smallest number that F16 rounds to infinity.
const F16_OVERFLOW: f64 = 65_520.0;

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
    /// Wall time.
    pub seconds: f64,
}

/// Writes a compressed model as one dense safetensors file of the original's names, shapes and types.
///
/// # Errors
/// A tensor is damaged or does not fit the type asked for, with its name; the output exists, is the input, or cannot
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
    let stage = Stage::file(output, options.overwrite, &inputs(&archive).collect::<Vec<_>>())?;
    write_model(&archive, output, stage.model()?, options.dtype, watch)?;
    let bytes_after = archive.entries().map(|entry| dense_bytes(entry, options.dtype)).sum();
    stage.commit()?;
    Ok(DecodeReport {
        tensors: archive.entries().len(),
        decoded_tensors: archive.entries().filter(|entry| entry.compressed).count(),
        bytes_before: archive.entries().map(|entry| entry.bytes as u64).sum(),
        bytes_after,
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn write_model(
    archive: &Archive,
    output: &Path,
    model: File,
    dtype: Option<Dtype>,
    watch: &mut Watch<'_>,
) -> Result<()> {
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
        } else if entry.compressed {
            let tensor = archive.rbe(entry)?;
            let bytes = usize::try_from(dense_bytes(entry, Some(dtype))).unwrap_or(usize::MAX);
            let written = writer.write_pieces(&entry.shape, bytes, |write| {
                tensor.decode_in_bands(|band| {
                    let band = Tensor::from_slice(band, band.len(), &Device::Cpu)?;
                    if dtype == Dtype::F16 {
                        refuse_overflow(archive, entry, &band)?;
                    }
                    write(&View::data(&band.to_dtype(DType::try_from(dtype)?)?))
                })
            });
            written.map_err(|error| match error {
                Error::Allocation { .. } | Error::Candle(_) => archive.about(entry, error),
                named => named,
            })?;
        } else {
            let tensor = archive.tensor(entry, &Device::Cpu)?;
            if dtype == Dtype::F16 {
                refuse_overflow(archive, entry, &tensor)?;
            }
            let tensor = tensor.to_dtype(DType::try_from(dtype)?)?;
            writer.write(&entry.shape, &View::data(&tensor))?;
        }
    }
    pace.tell(None)?;
    writer.finish().map(drop)
}

/// The type of a tensor in the output.
fn target(entry: &Entry, dtype: Option<Dtype>) -> Dtype {
    dtype.filter(|_| measure::is_float(entry.dtype)).unwrap_or(entry.dtype)
}

fn dense_bytes(entry: &Entry, dtype: Option<Dtype>) -> u64 {
    (entry.elements() * target(entry, dtype).bitsize() / 8) as u64
}

fn refuse_overflow(archive: &Archive, entry: &Entry, tensor: &Tensor) -> Result<()> {
    let mut largest = 0.0f64;
    measure::for_each(&View::data(tensor), tensor.dtype().into(), |_, value| {
        if value.is_finite() {
            largest = largest.max(value.abs());
        }
    });
    match largest < F16_OVERFLOW {
        true => Ok(()),
        false => {
            Err(archive.about(entry, format!("holds {largest:e}, too large for F16; decode to BF16 or F32")))
        }
    }
}
