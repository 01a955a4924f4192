//! How a layer uses its compressed weight.

use super::counters::Counters;
use crate::{Error, Quality, RbeTensor};
use candle_core::{D, DType, Device, Result, Tensor};
use lru::LruCache;
use rbe_core::cpu::{PackedMatrix, Precision};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// How a layer uses its compressed weight. The first two give the same result up to rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DecodeMode {
    /// The product runs on the compressed form. Fastest and smallest in nearly all cases.
    #[default]
    Direct,
    /// Blocks are decoded to F32, once as long as they stay in a cache of at most `cache_bytes`, and multiplied densely.
    /// A cache for the whole matrix makes an ordinary dense layer of it.
    Full {
        /// The most memory that decoded blocks take; at least one block must fit.
        cache_bytes: usize,
    },
    /// The first planes of a planes term alone: the coarser quantiser nested in the finer one, in proportionally fewer
    /// bytes. Gradients still flow back through all of the weight.
    Progressive {
        /// Planes of every block, 1 to 8.
        planes: u8,
    },
}

impl DecodeMode {
    /// [`Full`](Self::Full) with a cache of 32, 24, 16 or 8 of the weight's blocks for the quality grades
    /// from [`Quality::UltraHigh`] to [`Quality::Fast`].
    pub fn full(quality: Quality, weight: &RbeTensor) -> Self {
        let blocks = match quality {
            Quality::UltraHigh => 32,
            Quality::High => 24,
            Quality::Balanced => 16,
            Quality::Fast => 8,
        };
        Self::Full { cache_bytes: blocks * block_bytes(weight) }
    }
}

/// What layers are made with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerConfig {
    /// The precision of activations against planes and trellises. By default what each weight's own error makes worth while.
    pub precision: Precision,
    /// How the weight is used.
    pub mode: DecodeMode,
}

static DEFAULT: RwLock<LayerConfig> =
    RwLock::new(LayerConfig { precision: Precision::Auto, mode: DecodeMode::Direct });

/// What [`linear`](super::linear) and its like make compressed layers with, and [`Linear::new`](super::Linear::new) as far as
/// precision goes.
pub fn default_layer_config() -> LayerConfig {
    *DEFAULT.read().unwrap_or_else(PoisonError::into_inner)
}

/// Sets what [`linear`](super::linear) and its like make compressed layers with from now on, in the whole process: a model's
/// code need not know. Layers that exist stay as they are. [`Precision::Exact`] is for comparing products with a dense layer's;
/// what it takes longer buys nothing that the weights have not lost.
///
/// ```
/// use candle_rbe::{LayerConfig, Precision, set_default_layer_config};
///
/// set_default_layer_config(LayerConfig { precision: Precision::Exact, ..LayerConfig::default() });
/// // ... load models ...
/// set_default_layer_config(LayerConfig::default());
/// ```
pub fn set_default_layer_config(config: LayerConfig) {
    *DEFAULT.write().unwrap_or_else(PoisonError::into_inner) = config;
}

/// Bytes of the largest block in F32.
fn block_bytes(weight: &RbeTensor) -> usize {
    size_of::<f32>() * weight.layout().largest_block()
}

/// Decoded blocks of one weight, the least recently used leaving first.
#[derive(Debug)]
pub(super) struct BlockCache {
    /// The weight, on the CPU: blocks are decoded there.
    matrix: Arc<PackedMatrix>,
    blocks: Mutex<LruCache<usize, Tensor>>,
    /// Every other product goes over the blocks from the last to the first, so that what the one before left in
    /// a cache too small for all of them is found.
    backwards: AtomicBool,
}

impl BlockCache {
    pub(super) fn new(weight: &RbeTensor, bytes: usize) -> crate::Result<Self> {
        let block = block_bytes(weight);
        let Some(capacity) = NonZeroUsize::new(bytes / block) else {
            let reason = format!("a cache of {bytes} bytes for decoded blocks of {block}: not one fits");
            return Err(Error::config(reason));
        };
        let capacity = capacity.min(NonZeroUsize::new(weight.layout().blocks()).unwrap_or(capacity));
        let matrix = weight.to_device(&Device::Cpu)?.on_cpu()?.clone();
        Ok(Self { matrix, blocks: Mutex::new(LruCache::new(capacity)), backwards: AtomicBool::new(false) })
    }

    /// `y = x W'` with decoded blocks: `(.., in)` to `(.., out)` of `x`'s type, computed in F32. Differentiable in `x`.
    pub(super) fn product(&self, weight: &RbeTensor, x: &Tensor, counters: &Counters) -> Result<Tensor> {
        let (matrix, layout) = (&self.matrix, weight.layout());
        let (out_features, in_features) = weight.shape().dims2()?;
        if x.dim(D::Minus1)? != in_features {
            let reason = format!(
                "input of shape {:?} with a weight of shape ({out_features}, {in_features})",
                x.shape()
            );
            return Err(Error::shape(reason).into());
        }
        let rows = x.to_dtype(DType::F32)?.reshape(((), in_features))?;
        let transposed = weight.is_transposed();
        let out_blocks = if transposed { layout.block_cols() } else { layout.block_rows() };
        let in_blocks = if transposed { layout.block_rows() } else { layout.block_cols() };
        let mut sums: Vec<Option<Tensor>> = vec![None; out_blocks];
        // The shares of one output block, added up in the order of its input blocks whichever was decoded first: the same
        // input has the same output to the bit, whatever is cached.
        let mut shares: Vec<Option<Tensor>> = vec![None; in_blocks];
        let backwards = self.backwards.fetch_xor(true, Ordering::Relaxed);
        let last = layout.blocks() - 1;
        for n in (0..=last).map(|n| if backwards { last - n } else { n }) {
            let (out, input) = (n / in_blocks, n % in_blocks);
            let (i, j) = if transposed { (input, out) } else { (out, input) };
            let block = layout.block_at(i, j);
            let index = block.index;
            let decode = || {
                counters.miss(block.len());
                Tensor::from_vec(matrix.decode_block_at(i, j), (block.height, block.width), x.device())
            };
            let stored = {
                let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
                match blocks.get(&index) {
                    Some(stored) => {
                        counters.hit();
                        stored.clone()
                    }
                    None => {
                        let stored = decode()?;
                        blocks.put(index, stored.clone());
                        stored
                    }
                }
            };
            shares[input] = Some(if transposed {
                rows.narrow(1, block.row, block.height)?.contiguous()?.matmul(&stored)?
            } else {
                rows.narrow(1, block.col, block.width)?.contiguous()?.matmul(&stored.t()?)?
            });
            if shares.iter().all(Option::is_some) {
                let mut shares = shares.iter_mut().filter_map(Option::take);
                let first = shares.next();
                sums[out] =
                    first.map(|first| shares.try_fold(first, |sum, share| sum + share)).transpose()?;
            }
        }
        let sums: Vec<Tensor> = sums.into_iter().flatten().collect();
        let mut shape = x.dims().to_vec();
        shape.pop();
        shape.push(out_features);
        Tensor::cat(&sums, 1)?.reshape(shape)?.to_dtype(x.dtype())
    }
}
