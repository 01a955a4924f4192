//! How a conversion tells where it stands, and is stopped.

use super::Entry;
use crate::{Error, Result};
use std::ops::ControlFlow;
use std::path::Path;

/// Where a conversion stands: about to take up tensor `name`, or at the end when `done == of`.
///
/// Only tensors that are encoded or decoded count; dense ones are copied in no time.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The tensor that comes next; empty at the end.
    pub name: &'a str,
    /// Tensors finished.
    pub tensors_done: usize,
    /// Tensors to do in all.
    pub tensors: usize,
    /// Weights finished.
    pub weights_done: u64,
    /// Weights to do in all.
    pub weights: u64,
}

/// Is told every step; `ControlFlow::Break` stops the conversion, which then leaves nothing behind.
pub type OnProgress<'a> = dyn FnMut(Progress<'_>) -> ControlFlow<()> + 'a;

/// Tells the caller of a conversion where it stands.
pub(super) struct ProgressReporter<'a, 'b> {
    watch: &'a mut OnProgress<'b>,
    output: &'a Path,
    tensors_done: usize,
    tensors: usize,
    weights_done: u64,
    weights: u64,
}

impl<'a, 'b> ProgressReporter<'a, 'b> {
    pub(super) fn new<'e>(
        watch: &'a mut OnProgress<'b>,
        output: &'a Path,
        work: impl Iterator<Item = &'e Entry> + Clone,
    ) -> Self {
        // Saturating, since a file's word on shapes is not checked before its payloads are read.
        let weights = work.clone().fold(0u64, |sum, entry| sum.saturating_add(entry.elements() as u64));
        Self { watch, output, tensors_done: 0, tensors: work.count(), weights_done: 0, weights }
    }

    /// Before `next`, or at the end with `None`.
    pub(super) fn tell(&mut self, next: Option<&Entry>) -> Result<()> {
        let &mut Self { tensors_done, tensors, weights_done, weights, .. } = self;
        let name = next.map_or("", |entry| &entry.name);
        let stop = (self.watch)(Progress { name, tensors_done, tensors, weights_done, weights });
        if stop.is_break() {
            let kind = std::io::ErrorKind::Interrupted;
            return Err(Error::io(
                self.output,
                std::io::Error::new(kind, "stopped on request; nothing is written"),
            ));
        }
        if let Some(entry) = next {
            self.tensors_done += 1;
            self.weights_done = self.weights_done.saturating_add(entry.elements() as u64);
        }
        Ok(())
    }
}
