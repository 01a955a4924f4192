//! A decoder whose matrices are on a device, and whether the kernels take it.

use crate::cuda::blocks::WARP;
use crate::cuda::machine::Machine;
use crate::cuda::matrix::DeviceMatrix;
use crate::error::{Error, Result};
use crate::step::{self, Heads, Stored};
use rbe_core::codec::{Layout, sizes};
use std::sync::Arc;

/// A decoder whose matrices are on a device.
pub type Decoder<D> = step::Decoder<Arc<DeviceMatrix<D>>>;
/// Its layers.
pub type DecoderLayer<D> = step::DecoderLayer<Arc<DeviceMatrix<D>>>;
/// Its products.
pub type Projection<D> = step::Projection<Arc<DeviceMatrix<D>>>;

impl<D: Machine> Stored for Arc<DeviceMatrix<D>> {
    fn layout(&self) -> Layout {
        DeviceMatrix::layout(self)
    }
}

/// Threads of the block that adds and norms: `NORM_THREADS` of `kernels/step.cu`.
pub(super) const NORM_THREADS: usize = 1024;
/// Sums of its warps that it has room for.
const NORM_SUMS: usize = 4;

/// Floats of shared memory of that block: the stream, what is added to it, and the sums.
pub(super) fn norm_floats(hidden: usize) -> usize {
    2 * hidden + NORM_SUMS * (NORM_THREADS / WARP)
}

/// Query heads that a block has at once where they share a key's: the kernels' greater number of them.
const HEADS_AT_ONCE: usize = 4;
/// What a group of lanes has of a head: eight elements each.
const WIDTH_STEP: usize = 8;
const WIDEST: usize = WIDTH_STEP * WARP;
/// Blocks of attention for each multiprocessor, and the most that share the keys of one head.
const ATTENTION_BLOCKS: usize = 2;
const MOST_SPLITS: usize = 64;

impl<D: Machine> Projection<D> {
    /// Several of one input as one, whose product takes one launch; `None` where that cannot be.
    pub(super) fn stacked(parts: &[Self]) -> Result<Option<Self>>
    where
        D: Clone,
    {
        if parts.len() < 2 || parts.iter().any(|part| part.transposed) {
            return Ok(None);
        }
        let matrices: Vec<_> = parts.iter().map(|part| part.matrix.clone()).collect();
        let Some(matrix) = DeviceMatrix::stacked(&matrices)? else { return Ok(None) };
        let has_bias = parts.iter().any(|part| part.bias.is_some());
        let bias = |part: &Self| part.bias.clone().unwrap_or_else(|| vec![0.0; part.outputs()]);
        let bias = has_bias.then(|| parts.iter().flat_map(bias).collect());
        Ok(Some(Self { matrix: Arc::new(matrix), transposed: false, bias }))
    }
}

impl Heads {
    /// Whether the kernels take them.
    fn fit(&self) -> bool {
        self.width.is_multiple_of(WIDTH_STEP)
            && self.width <= WIDEST
            && self.kv_heads > 0
            && self.heads.is_multiple_of(self.kv_heads)
    }

    /// Query heads that a block has at once, and groups of them.
    pub(super) fn at_once(&self) -> (usize, usize) {
        let shared = self.heads / self.kv_heads;
        let at_once = if shared == 1 { 1 } else { HEADS_AT_ONCE };
        (at_once, self.kv_heads * shared.div_ceil(at_once))
    }

    /// Blocks that share a head's keys.
    pub(super) fn splits(&self, multiprocessors: usize) -> usize {
        (ATTENTION_BLOCKS * multiprocessors).div_ceil(self.at_once().1).clamp(1, MOST_SPLITS)
    }
}

impl<D: Machine> Decoder<D> {
    /// Whether the kernels take it: heads of at most 256 elements, a multiple of 8, and a stream that fits the shared memory of a block twice.
    pub fn fits(&self, machine: &D) -> bool {
        let norm_bytes = sizes::elements(&[norm_floats(self.hidden), size_of::<f32>()]);
        norm_bytes <= machine.shared_bytes_limit() && self.layers.iter().all(|layer| layer.heads.fit())
    }

    /// Refuses what does not fit together, or is more than the kernels take.
    pub(super) fn check(&self, machine: &D) -> Result<()> {
        let wrong = |what: &str| Err(Error::config(format!("a decoder whose {what}")));
        if !self.fits(machine) {
            return wrong(
                "heads or residual stream are wider than the kernels take, or heads no multiple of 8 wide",
            );
        }
        match self.what_does_not_fit() {
            Some(what) => wrong(what),
            None => Ok(()),
        }
    }
}
