//! What is asked of a conversion: which tensors, and how they are written.

use super::roles::is_patch_embedding;
use super::{Entry, measure};
use crate::{Error, Result};
use regex::Regex;

/// Which tensors are compressed: matrices of weights, chosen by size and by name.
///
/// A convolution's kernel of one position is a matrix, and so is a patch embedding's (by its name), `(out, in height width)`: where
/// patches do not overlap it is multiplied as such. The experts of a layer in one tensor `(experts, ., .)` (by its name) are
/// compressed matrix by matrix.
#[derive(Clone, Debug)]
pub struct Selection {
    include: Option<Regex>,
    exclude: Option<Regex>,
    pub(super) min_side: usize,
}

impl Default for Selection {
    /// Every matrix with both sides of 32 or more: projections and embedding tables, no norms, no biases.
    fn default() -> Self {
        Self { include: None, exclude: None, min_side: 32 }
    }
}

impl Selection {
    /// Of the matrices that the default takes, those whose name contains a match of `include` and none of `exclude`.
    pub fn new(include: Option<&str>, exclude: Option<&str>) -> Result<Self> {
        let compile = |pattern: &str| {
            Regex::new(pattern).map_err(|error| {
                // The error draws the pattern over several lines; the last says what is wrong.
                let text = error.to_string();
                let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
                Error::config(format!("{pattern:?} is not a regular expression: {reason}"))
            })
        };
        let compile = |pattern: Option<&str>| pattern.map(compile).transpose();
        Ok(Self { include: compile(include)?, exclude: compile(exclude)?, ..Self::default() })
    }

    /// The same with another least length of both sides; of small matrices the side information outweighs what is
    /// saved.
    pub fn with_min_side(self, min_side: usize) -> Self {
        Self { min_side, ..self }
    }

    /// Whether a dense tensor is to be compressed.
    pub fn takes(&self, entry: &Entry) -> bool {
        let least = self.min_side.max(1);
        measure::is_float(entry.dtype)
            && (entry.shape.len() == 2 || entry.stacked || is_kernel(entry))
            && !entry.name.ends_with("bias")
            && entry.matrix().is_some_and(|(rows, cols)| rows >= least && cols >= least)
            && self.include.as_ref().is_none_or(|pattern| pattern.is_match(&entry.name))
            && !self.exclude.as_ref().is_some_and(|pattern| pattern.is_match(&entry.name))
    }
}

/// Whether a tensor of more than two sides is the kernel of a convolution without patches that overlap, as far as can be known.
fn is_kernel(entry: &Entry) -> bool {
    let positions = entry.shape.get(2..).filter(|positions| !positions.is_empty());
    positions
        .is_some_and(|positions| positions.iter().all(|&side| side == 1) || is_patch_embedding(&entry.name))
}

/// How [`compress`](super::compress()) goes about it.
#[derive(Clone, Debug, Default)]
pub struct CompressOptions {
    /// Which tensors are compressed.
    pub selection: Selection,
    /// Whether an existing output is replaced; a directory only where it holds nothing but a compressed model.
    pub overwrite: bool,
    /// Whether payloads are written as they are, without entropy coding; [`Budget::Memory`](crate::Budget) is the
    /// encoder's setting that counts them so.
    pub plain: bool,
}
