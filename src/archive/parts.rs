//! The matrices that a model's tensors are: one each, or of a stack of experts as many as there are.

use super::{Archive, Entry, measure};
use crate::{RbeTensor, Result};
use rbe_core::codec::stack::Stack;

/// A matrix of a tensor.
pub(super) struct Part<'a> {
    pub entry: &'a Entry,
    pub index: usize,
    /// The tensor's name, and of a stack its number after it.
    pub name: String,
}

impl<'a> Part<'a> {
    /// Those of all these tensors.
    pub(super) fn all(entries: impl Iterator<Item = &'a Entry>) -> Vec<Self> {
        entries.flat_map(|entry| (0..entry.parts()).map(|index| Self::of(entry, index))).collect()
    }

    fn of(entry: &'a Entry, index: usize) -> Self {
        let name = if entry.stacked { format!("{}.{index}", entry.name) } else { entry.name.clone() };
        Self { entry, index, name }
    }

    pub(super) fn elements(&self) -> u64 {
        (self.entry.elements() / self.entry.parts()) as u64
    }
}

/// What is reported of a matrix that was encoded.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub summary: String,
    pub relative_error: f64,
    pub warning: Option<String>,
}

impl Made {
    /// The payload of a tensor, and what is reported of it.
    pub(super) fn of(tensor: &RbeTensor, plain: bool) -> Result<(Vec<u8>, Self)> {
        let payload = if plain { tensor.to_plain_bytes()? } else { tensor.to_bytes()? };
        Ok((payload, Self::of_tensor(tensor)))
    }

    /// What is reported of a tensor.
    pub(super) fn of_tensor(tensor: &RbeTensor) -> Self {
        let (summary, warning) = (tensor.summary().to_owned(), tensor.errors().warning());
        Self { summary, relative_error: tensor.relative_error(), warning }
    }
}

/// Whether the matrices of a stack are `(in, out)`: as they fit their neighbour's, a gate and what it scales being twice as wide as
/// what comes after them.
pub(super) fn is_in_out(archive: &Archive, entry: &Entry) -> bool {
    let (stem, end) = match entry.name.strip_suffix(".weight") {
        Some(stem) => (stem, ".weight"),
        None => (entry.name.as_str(), ""),
    };
    let beside = |own: &str, other: &str| {
        stem.strip_suffix(own).and_then(|before| archive.get(&format!("{before}{other}{end}")))
    };
    let pair = match (beside("gate_up_proj", "down_proj"), beside("down_proj", "gate_up_proj")) {
        (Some(down), _) => (entry, down),
        (None, Some(gate_up)) => (gate_up, entry),
        (None, None) => return false,
    };
    match (&pair.0.shape[..], &pair.1.shape[..]) {
        (&[_, hidden, both], &[_, inner, out]) => hidden == out && both == inner.saturating_mul(2),
        _ => false,
    }
}

/// The payload of a tensor from those of its parts.
///
/// # Errors
/// When a stack has none that readers take.
pub(super) fn in_one(archive: &Archive, entry: &Entry, mut parts: Vec<Vec<u8>>) -> Result<Vec<u8>> {
    if !entry.stacked {
        return Ok(parts.pop().unwrap_or_default());
    }
    let (rows, cols) = entry.matrix().unwrap_or_default();
    Stack::to_bytes(rows, cols, &parts).map_err(|e| archive.about(entry, e))
}

/// The same, what is reported of it, and its squared norm.
///
/// # Errors
/// As [`in_one`].
pub(super) fn joined(
    archive: &Archive,
    entry: &Entry,
    made: Vec<(Vec<u8>, Made)>,
) -> Result<(Vec<u8>, Made, f64)> {
    let (payloads, made): (Vec<_>, Vec<_>) = made.into_iter().unzip();
    let norms: Vec<f64> = (0..made.len())
        .map(|index| measure::squared_norm(archive.part_bytes(entry, index), entry.dtype))
        .collect();
    let norm: f64 = norms.iter().sum();
    let error: f64 = norms.iter().zip(&made).map(|(norm, made)| norm * made.relative_error.powi(2)).sum();
    let payload = in_one(archive, entry, payloads)?;
    let mut whole = match made.first() {
        Some(first) => first.clone(),
        None => return Err(archive.about(entry, "is a stack of nothing")),
    };
    if entry.stacked {
        whole.relative_error = if norm > 0.0 { (error / norm).sqrt() } else { 0.0 };
        let others =
            if made.iter().all(|other| other.summary == whole.summary) { "" } else { ", and others" };
        whole.summary = format!("{} of {}{others}", made.len(), whole.summary);
        let warnings =
            made.iter().enumerate().filter_map(|(index, made)| Some((index, made.warning.as_ref()?)));
        whole.warning = warnings.map(|(index, warning)| format!("matrix {index}: {warning}")).next();
    }
    Ok((payload, whole, norm))
}
