//! How a conversion tells where it stands, and is stopped.

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
    /// `work` has the weights of each tensor.
    pub(super) fn new(
        watch: &'a mut OnProgress<'b>,
        output: &'a Path,
        work: impl Iterator<Item = u64> + Clone,
    ) -> Self {
        // Saturating, since a file's word on shapes is not checked before its payloads are read.
        let weights = work.clone().fold(0u64, u64::saturating_add);
        Self { watch, output, tensors_done: 0, tensors: work.count(), weights_done: 0, weights }
    }

    /// Before a tensor of this name and so many weights, or at the end with `None`.
    pub(super) fn tell(&mut self, next: Option<(&str, u64)>) -> Result<()> {
        let &mut Self { tensors_done, tensors, weights_done, weights, .. } = self;
        let name = next.map_or("", |(name, _)| name);
        let stop = (self.watch)(Progress { name, tensors_done, tensors, weights_done, weights });
        if stop.is_break() {
            let kind = std::io::ErrorKind::Interrupted;
            return Err(Error::io(
                self.output,
                std::io::Error::new(kind, "stopped on request; nothing is written"),
            ));
        }
        if let Some((_, weights)) = next {
            self.tensors_done += 1;
            self.weights_done = self.weights_done.saturating_add(weights);
        }
        Ok(())
    }
}
