//! A compressed model with fewer coefficients.

use super::parts::{Part, in_one};
use super::progress::{OnProgress, ProgressReporter};
use super::stage::{Stage, inputs};
use super::{
    Archive, FORMAT_KEY, FORMAT_VERSION, Original, SUFFIX, SafetensorsWriter, Slot, TENSORS_KEY, TIED_KEY,
};
use crate::{Error, RbeTensor, Result};
use candle_core::Device;
use rbe_core::codec::ParameterKind;
use rbe_core::encode::PruneReport;
use std::collections::BTreeMap;
use std::path::Path;

/// Writes a compressed model with the sparse coefficients of magnitude below `threshold` taken away
/// ([`RbeTensor::prune_coefficients`]); tensors without a sparse term are copied. Returns what became of each pruned tensor, by name.
///
/// With `original`, the model before it was compressed, the errors reported and recorded are measured; without, they are
/// bounds.
///
/// # Errors
/// Nothing in the input has a sparse term; a tensor is damaged, or missing in `original`; the output exists, is an input,
/// or cannot be written; `watch` asks to stop. Nothing is left behind then.
pub fn prune(
    input: impl AsRef<Path>,
    output: impl AsRef<Path>,
    threshold: f32,
    original: Option<&Path>,
    overwrite: bool,
    watch: &mut OnProgress<'_>,
) -> Result<BTreeMap<String, PruneReport>> {
    let (input, output) = (input.as_ref(), output.as_ref());
    let archive = Archive::open(input)?;
    let original = original.map(Archive::open).transpose()?;
    let others: Vec<&Path> = original.iter().flat_map(inputs).collect();
    let stage = Stage::like(&archive, output, overwrite, &others)?;
    stage.copy_companions(input)?;

    let stored = archive.entries().filter(|entry| entry.tied_to.is_none());
    let compressed = stored.clone().filter(|entry| entry.compressed);
    let originals: BTreeMap<&str, Original> = compressed
        .clone()
        .map(|entry| (entry.name.as_str(), Original { dtype: entry.dtype, shape: entry.shape.clone() }))
        .collect();
    let mut metadata = archive.metadata();
    metadata.insert(FORMAT_KEY.into(), FORMAT_VERSION.into());
    metadata
        .insert(TENSORS_KEY.into(), serde_json::to_string(&originals).map_err(|e| Error::file(output, e))?);
    if let Some(tied) = archive.tied_as_json()? {
        metadata.insert(TIED_KEY.into(), tied);
    }
    let plan = stored.map(|entry| match entry.compressed {
        true => Slot::payload(&entry.name),
        false => Slot::dense(&entry.name, entry.dtype, &entry.shape),
    });
    let mut writer = SafetensorsWriter::new(stage.model()?, output, plan.collect(), metadata)?;
    let mut pace = ProgressReporter::new(watch, output, compressed.map(|entry| entry.elements() as u64));
    let mut reports = BTreeMap::new();
    while let Some(slot) = writer.next_slot() {
        let entry = archive.entry(slot.name.strip_suffix(SUFFIX).unwrap_or(&slot.name))?;
        if !entry.compressed {
            writer.write(&entry.shape, archive.bytes(entry))?;
            continue;
        }
        pace.tell(Some((&entry.name, entry.elements() as u64)))?;
        let mut payloads = vec![];
        for part in Part::all(std::iter::once(entry)) {
            let tensor = archive.part(entry, part.index)?;
            payloads.push(match has_sparse(&tensor) {
                false => archive.payload_part(entry, part.index)?.bytes.to_vec(),
                true => {
                    let (pruned, report) = pruned(&tensor, &part, threshold, original.as_ref())?;
                    reports.insert(part.name, report);
                    pruned.to_bytes()?
                }
            });
        }
        let payload = in_one(&archive, entry, payloads)?;
        writer.write(&[payload.len()], &payload)?;
    }
    pace.tell(None)?;
    if reports.is_empty() {
        return Err(Error::file(input, "has no tensor with a sparse term, and only those can be pruned"));
    }
    writer.finish()?;
    stage.commit()?;
    Ok(reports)
}

fn has_sparse(tensor: &RbeTensor) -> bool {
    tensor.parameter_groups().iter().any(|group| group.kind == ParameterKind::Coefficients)
}

fn pruned(
    tensor: &RbeTensor,
    part: &Part,
    threshold: f32,
    original: Option<&Archive>,
) -> Result<(RbeTensor, PruneReport)> {
    let weight = match original {
        Some(archive) => {
            let weight = archive.tensor(archive.entry(&part.entry.name)?, &Device::Cpu)?;
            let weight = if part.entry.stacked { weight.get(part.index)? } else { weight };
            Some(if weight.rank() > 2 { weight.flatten_from(1)? } else { weight })
        }
        None => None,
    };
    tensor.prune_coefficients(threshold, weight.as_ref()).map_err(|e| e.in_tensor(&part.name))
}
