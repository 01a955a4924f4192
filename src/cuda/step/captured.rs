//! A token's step as a graph from the second token on.

use super::{Cache, DeviceDecoder, TokenStep};
use crate::cuda::machine::Machine;
use crate::error::Result;
use std::sync::Arc;
use std::thread::{self, ThreadId};

/// A token's step, and the graph of its launches.
pub struct CapturedStep<D: Machine> {
    step: TokenStep<D>,
    /// The thread whose stream had the last token. All that a product keeps for a while has been there since.
    ran: Option<ThreadId>,
    graph: Option<Captured<D::Graph>>,
}

/// Launches of one thread's stream, with the keys and values that they read and write.
struct Captured<G> {
    graph: G,
    addresses: Vec<u64>,
    capacity: usize,
}

impl<D: Machine> std::fmt::Debug for CapturedStep<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let launches = if self.graph.is_some() { "as a graph" } else { "one by one" };
        write!(f, "CapturedStep({:?}, {launches})", self.step)
    }
}

impl<D: Machine> Drop for CapturedStep<D> {
    fn drop(&mut self) {
        // Launches of another thread's stream may not have run yet.
        let _ = self.step.device().machine().wait_for_all();
    }
}

impl<D: Machine> CapturedStep<D> {
    /// The step of a decoder, of which nothing was captured.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn new(decoder: Arc<DeviceDecoder<D>>) -> Result<Self> {
        Ok(Self { step: TokenStep::new(decoder)?, ran: None, graph: None })
    }

    /// The step itself.
    pub fn step(&self) -> &TokenStep<D> {
        &self.step
    }

    /// Lets `bring` bring a token to where the step finds it, and queues its launches ([`TokenStep::run`]): one by one for a thread's first one,
    /// else as a graph, which is captured anew where keys and values lie elsewhere than the last token's. What cannot be captured is
    /// launched one by one.
    ///
    /// # Errors
    /// Those of `bring`, and as [`TokenStep::run`].
    pub fn run(
        &mut self,
        bring: impl FnOnce(&TokenStep<D>) -> Result<()>,
        caches: &[Cache<D::Memory>],
        capacity: usize,
    ) -> Result<()> {
        let machine = self.step.device().machine();
        let thread = thread::current().id();
        if self.ran.is_some_and(|ran| ran != thread) {
            // Nothing orders what the last thread asked for before what this one does.
            machine.wait_for_all()?;
        }
        let has_run_here = self.ran.replace(thread) == Some(thread);
        bring(&self.step)?;
        let of = |cache: &Cache<D::Memory>| [machine.address(&cache.keys), machine.address(&cache.values)];
        let addresses: Vec<_> = caches.iter().flat_map(of).collect();
        let is_same = |graph: &Captured<_>| graph.capacity == capacity && graph.addresses == addresses;
        self.graph.take_if(|graph| !has_run_here || !is_same(graph));
        if self.graph.is_none() && has_run_here {
            let graph = machine.capture(&mut || self.step.run(caches, capacity));
            self.graph = graph.map(|graph| Captured { graph, addresses, capacity });
        }
        match &self.graph {
            Some(captured) => machine.replay(&captured.graph),
            None => self.step.run(caches, capacity),
        }
    }
}
