//! What executes a product: the inner loops of a level, and the threads.

use super::kernels::Kernels;
use super::pool::{Pool, Serial};

/// Kernels and the pool that runs them.
#[derive(Clone, Copy)]
pub(super) struct Exec<'a> {
    pub kernels: &'a Kernels,
    pub pool: &'a dyn Pool,
}

impl<'a> Exec<'a> {
    /// The kernels of the level in use, on this pool.
    pub(super) fn new(pool: &'a dyn Pool) -> Self {
        Self { kernels: Kernels::get(), pool }
    }

    /// The same on this thread alone where the work is less than what is worth sharing.
    pub(super) fn shared_if(self, work: usize, worth: usize) -> Self {
        if work >= worth { self } else { Self { pool: &Serial, ..self } }
    }
}
