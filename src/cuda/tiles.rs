//! Products on tensor cores: what `tiles.cuh` and `ring.cuh` have of them.

use super::blocks::{WARP, WARPS};
use super::machine::Arg;

/// Floats of shared memory for the sums of `tiles.cuh`.
pub(super) const TILE_FLOATS: usize = WARPS * WARP * 64;
/// Bytes of a load of a warp, and steps that it has on their way: `LOAD` and `STAGES` of `ring.cuh`.
pub(super) const LOAD: usize = WARP * 16;
pub(super) const STAGES: usize = 2;
/// Passes on tensor cores of fewer than the most vectors at once, before all is decoded.
pub(super) const PASSES: usize = 4;
/// Vectors at once of any form without staged ones, of each of which shared memory has a word.
pub(super) const MOST_VECTORS: usize = 32;

/// How vectors are shared out, as `tiles.cuh` has it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Few,
    FewExact,
    Many,
    Exact,
    Wide,
    Broad,
}

impl Form {
    /// Whether a block has its inputs in shared memory.
    pub(super) fn stages(self) -> bool {
        matches!(self, Form::Few | Form::FewExact)
    }

    /// What a warp's step loads: `SETS`, where vectors are not staged, and `SHARES` of `tiles.cuh`.
    pub(super) fn loads(self) -> LoadsOfStep {
        let (vectors, shares) = match self {
            Form::Few | Form::FewExact => (0, 1),
            Form::Many | Form::Exact => (1, 1),
            Form::Wide => (2, 1),
            Form::Broad => (4, 2),
        };
        LoadsOfStep { vectors, shares }
    }

    /// What the kernels' names end in.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Form::Few => "few",
            Form::FewExact => "few_exact",
            Form::Many => "many",
            Form::Exact => "exact",
            Form::Wide => "wide",
            Form::Broad => "broad",
        }
    }
}

/// What a warp's step loads beside its words.
#[derive(Clone, Copy)]
pub(super) struct LoadsOfStep {
    /// Vectors that travel with it.
    pub vectors: usize,
    /// Warps that share its words.
    pub shares: usize,
}

/// Where the warps' steps lie in shared memory: see `ring.cuh`.
pub(super) struct Slots {
    /// Floats before them.
    pub at: usize,
    /// Of each step.
    pub bytes: usize,
}

impl Slots {
    /// Floats until their end.
    pub(super) fn end(&self) -> usize {
        self.at + WARPS * STAGES * self.bytes / size_of::<f32>()
    }

    pub(super) fn args<'a, M>(&self) -> [Arg<'a, M>; 2] {
        [self.at, self.bytes].map(Arg::Int)
    }
}

/// The part of a product that is for tensor cores.
pub(super) struct Tiles {
    /// The first so many.
    pub block_rows: usize,
    pub form: Form,
    /// So many vectors, where all blocks are as high as the lowest.
    pub at_once: usize,
    /// How often, for all of the batch.
    pub groups: usize,
}
