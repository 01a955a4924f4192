//! The linear layer over a compressed weight.

use super::counters::{Counters, Counts};
use super::mode::{BlockCache, DecodeMode, LayerConfig};
use crate::clock::Instant;
use crate::{RbeTensor, ops};
use candle_core::{Result, Tensor, bail};
use candle_nn::Module;
use rbe_core::cpu::Precision;
use std::sync::Arc;
use std::time::Duration;

/// A linear layer over a compressed weight.
///
/// Unless [`with_mode`](Self::with_mode) says otherwise the product runs on the compressed form, and no dense copy of the
/// weight exists. Differentiable in its input. Clones share the weight, the cache of decoded blocks and the counts.
#[doc(alias = "RBELinear")]
#[derive(Clone, Debug)]
pub struct RbeLinear {
    weight: RbeTensor,
    bias: Option<Tensor>,
    config: LayerConfig,
    decoded: Decoded,
    counters: Arc<Counters>,
}

/// What a mode holds beside the weight.
#[derive(Clone, Debug)]
enum Decoded {
    Nothing,
    Blocks(Arc<BlockCache>),
    FirstPlanes(RbeTensor),
}

impl RbeLinear {
    /// A layer with a weight of shape `(out, in)` and a bias of shape `(out)`, of [`LayerConfig::default`].
    pub fn new(weight: RbeTensor, bias: Option<Tensor>) -> Self {
        let (config, decoded) = (LayerConfig::default(), Decoded::Nothing);
        Self { weight, bias, config, decoded, counters: Arc::default() }
    }

    /// The same layer with activations taken at this precision. Where a gradient goes through the input, [`Precision::Auto`] takes
    /// them exactly.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.config.precision = precision;
        self
    }

    /// The same layer with its weight used in this way.
    ///
    /// # Errors
    /// [`DecodeMode::Full`] with a cache smaller than a block; [`DecodeMode::Progressive`] with 0 or more than 8 planes,
    /// or of a weight without a planes term.
    pub fn with_mode(mut self, mode: DecodeMode) -> crate::Result<Self> {
        self.decoded = match mode {
            DecodeMode::Direct => Decoded::Nothing,
            DecodeMode::Full { cache_bytes } => {
                Decoded::Blocks(Arc::new(BlockCache::new(&self.weight, cache_bytes)?))
            }
            DecodeMode::Progressive { planes } => Decoded::FirstPlanes(self.weight.first_planes(planes)?),
        };
        self.config.mode = mode;
        Ok(self)
    }

    /// The precision of activations and how the weight is used.
    pub fn config(&self) -> LayerConfig {
        self.config
    }

    /// The compressed weight, `(out, in)`.
    pub fn weight(&self) -> &RbeTensor {
        &self.weight
    }

    /// The bias, `(out)`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// What the layer and its clones have done so far.
    pub fn counts(&self) -> Counts {
        self.counters.counts()
    }

    /// Writes the output into `y`, a contiguous F32 tensor `(.., out)` on the CPU that no variable's gradient goes through,
    /// from an `x` that is one too. Once as many tokens have passed before, nothing is allocated here.
    ///
    /// ```
    /// # use candle_core::{DType, Device, Result, Tensor};
    /// # use candle_nn::Module;
    /// # use candle_rbe::{Encoder, EncoderConfig, RbeLinear, Rate};
    /// # fn main() -> Result<()> {
    /// # let weight = Tensor::randn(0f32, 0.1, (96, 64), &Device::Cpu)?;
    /// # let compressed = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(4.2)))?.encode(&weight)?;
    /// let layer = RbeLinear::new(compressed, None);
    /// let y = Tensor::zeros((3, 96), DType::F32, &Device::Cpu)?;
    /// for _ in 0..2 {
    ///     let x = Tensor::randn(0f32, 1., (3, 64), &Device::Cpu)?;
    ///     layer.forward_into(&x, &y)?;
    ///     assert_eq!(y.to_vec2::<f32>()?, layer.forward(&x)?.to_vec2::<f32>()?);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// When a shape or type is another, a tensor is on another device, the weight is transposed, or the mode is
    /// [`DecodeMode::Full`].
    pub fn forward_into(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        let start = Instant::now();
        let weight = match &self.decoded {
            Decoded::Nothing => &self.weight,
            Decoded::FirstPlanes(first) => first,
            Decoded::Blocks(_) => {
                bail!("forward_into multiplies with compressed weights, not decoded blocks")
            }
        };
        ops::matmul_into(x, weight, self.bias.as_ref(), self.config.precision, y)?;
        self.count(x, start.elapsed());
        Ok(())
    }

    /// The counters themselves, to be listed under a name.
    pub(super) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Whether the product runs on all of the compressed weight.
    pub(super) fn is_direct(&self) -> bool {
        matches!(self.decoded, Decoded::Nothing)
    }

    fn product(&self, x: &Tensor) -> Result<Tensor> {
        let start = Instant::now();
        let precision = self.config.precision;
        let y = match &self.decoded {
            Decoded::Nothing => ops::matmul(x, &self.weight, precision)?,
            Decoded::FirstPlanes(first) => ops::matmul_with_gradient(x, first, &self.weight, precision)?,
            Decoded::Blocks(cache) => cache.product(&self.weight, x, &self.counters)?,
        };
        self.count(x, start.elapsed());
        Ok(y)
    }

    /// Counts a forward pass with this input.
    pub(super) fn count(&self, x: &Tensor, time: Duration) {
        self.count_tokens(x.elem_count() / x.dims().last().map_or(1, |last| (*last).max(1)), time);
    }

    /// Counts a forward pass of so many tokens.
    pub(super) fn count_tokens(&self, tokens: usize, time: Duration) {
        let layout = self.weight.layout();
        let (multiply_adds, bytes) = match &self.decoded {
            Decoded::Blocks(_) => (layout.elements(), size_of::<f32>() * layout.elements()),
            Decoded::FirstPlanes(first) => (first.stored_coefficients(), first.memory_in_bytes()),
            Decoded::Nothing => (self.weight.stored_coefficients(), self.weight.memory_in_bytes()),
        };
        if !matches!(self.decoded, Decoded::Blocks(_)) {
            self.counters.unpack(multiply_adds);
        }
        self.counters.call(tokens, tokens * multiply_adds, bytes, time);
    }

    /// The output for a product, which it takes.
    pub(super) fn with_bias(&self, product: Tensor) -> Result<Tensor> {
        match &self.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }
}

impl Module for RbeLinear {
    /// `(.., in)` to `(.., out)`, of the input's type: F32, F16 or BF16.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (Decoded::Nothing, Some(bias)) = (&self.decoded, &self.bias) else {
            return self.with_bias(self.product(x)?);
        };
        let start = Instant::now();
        let y = ops::matmul_with_bias(x, &self.weight, bias, self.config.precision)?;
        self.count(x, start.elapsed());
        Ok(y)
    }
}
