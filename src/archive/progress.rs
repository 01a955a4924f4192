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
    /// Weights among those finished that an earlier run of the same conversion left ([`kept_layers`](super::kept_layers)).
    pub weights_kept: u64,
}

/// Is told every step; `ControlFlow::Break` stops the conversion, which then leaves nothing behind, or, calibrated layer by
/// layer, what it goes on from.
pub type OnProgress<'a> = dyn FnMut(Progress<'_>) -> ControlFlow<()> + 'a;

/// Tells the caller of a conversion where it stands.
pub(super) struct ProgressReporter<'a, 'b> {
    watch: &'a mut OnProgress<'b>,
    output: &'a Path,
    tensors_done: usize,
    tensors: usize,
    weights_done: u64,
    weights: u64,
    weights_kept: u64,
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
        let tensors = work.count();
        Self { watch, output, tensors_done: 0, tensors, weights_done: 0, weights, weights_kept: 0 }
    }

    /// Before a tensor of this name and so many weights, or at the end with `None`.
    pub(super) fn tell(&mut self, next: Option<(&str, u64)>) -> Result<()> {
        let &mut Self { tensors_done, tensors, weights_done, weights, weights_kept, .. } = self;
        let name = next.map_or("", |(name, _)| name);
        let step = Progress { name, tensors_done, tensors, weights_done, weights, weights_kept };
        let stop = (self.watch)(step);
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

    /// Before a tensor that an earlier run left.
    pub(super) fn tell_of_kept(&mut self, name: &str, weights: u64) -> Result<()> {
        self.tell(Some((name, weights)))?;
        self.weights_kept = self.weights_kept.saturating_add(weights);
        Ok(())
    }
}
