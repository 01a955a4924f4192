//! What a decoder is to a token's step: its compressed matrices, and numbers beside them.

use crate::cuda::blocks::WARP;
use crate::cuda::machine::Machine;
use crate::cuda::matrix::DeviceMatrix;
use crate::error::{Error, Result};
use rbe_core::codec::{Sides, sizes};
use std::sync::Arc;

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

/// A norm: `(x - mean) / sqrt(variance + eps) * weight + bias`, and without a bias by the mean square alone.
#[derive(Clone, Debug)]
pub struct NormWeights {
    /// One number an element.
    pub weight: Vec<f32>,
    /// Of a layer norm.
    pub bias: Option<Vec<f32>>,
    /// What is added before the root.
    pub eps: f64,
}

/// A product with a compressed matrix.
#[derive(Debug)]
pub struct Projection<D: Machine> {
    /// The stored matrix.
    pub matrix: Arc<DeviceMatrix<D>>,
    /// Whether it is that of the layer's weight `(out, in)` transposed.
    pub transposed: bool,
    /// One number an output.
    pub bias: Option<Vec<f32>>,
}

impl<D: Machine> Projection<D> {
    pub(super) fn outputs(&self) -> usize {
        Sides::new(self.matrix.layout(), self.transposed).output().elements()
    }

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

/// The heads of an attention.
#[derive(Clone, Debug)]
pub struct Heads {
    /// Of queries.
    pub heads: usize,
    /// Of keys and values.
    pub kv_heads: usize,
    /// Elements of each.
    pub width: usize,
    /// What multiplies `q k'`.
    pub scale: f64,
    /// Scores `s` become `c tanh(s / c)`.
    pub softcap: Option<f64>,
    /// How many positions one sees, its own counted.
    pub window: Option<usize>,
    /// Which of the decoder's rotations turns queries and keys.
    pub rotation: Option<usize>,
    /// Norms of queries and keys.
    pub norm: Option<HeadNorm>,
}

/// Norms of queries and keys by their mean square.
#[derive(Clone, Debug)]
pub struct HeadNorm {
    /// Whether it is that of all heads together, with a weight for each element; else of each head.
    pub of_all: bool,
    /// Weights for queries and for keys.
    pub weights: [Vec<f32>; 2],
    /// What is added before the root.
    pub eps: f64,
}

/// The nonlinearity of a feed-forward layer, numbered as in `kernels/step.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nonlinearity {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x Phi(x)`.
    Gelu,
    /// Its approximation by a hyperbolic tangent.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// A layer: `h += r norm(attention(norm(h))); h += r norm(feed_forward(norm(h)))`.
#[derive(Debug)]
pub struct DecoderLayer<D: Machine> {
    /// Before the attention, after it, before the feed-forward layer and after it.
    pub norms: [Option<NormWeights>; 4],
    /// Queries, keys and values: three, or one of all side by side.
    pub inputs: Vec<Projection<D>>,
    /// The attention.
    pub heads: Heads,
    /// Its output.
    pub output: Projection<D>,
    /// In front of the nonlinearity: one, a gate and what it scales, or one of both side by side.
    pub inner: Vec<Projection<D>>,
    /// Whether there is a gate.
    pub is_gated: bool,
    /// The nonlinearity.
    pub nonlinearity: Nonlinearity,
    /// The feed-forward layer's output.
    pub down: Projection<D>,
}

/// A decoder from the embedding to the last norm.
#[derive(Debug)]
pub struct Decoder<D: Machine> {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Each layer, from the first.
    pub layers: Vec<DecoderLayer<D>>,
    /// The norm after the last.
    pub norm: NormWeights,
    /// `r`, by which what is added to the stream is multiplied.
    pub residual_multiplier: f64,
    /// Elements of a head that each rotation turns.
    pub rotations: Vec<usize>,
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

    pub(super) fn inputs(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.width
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
        for layer in &self.layers {
            let Heads { rotation, heads, width, .. } = layer.heads;
            if rotation.is_some_and(|rotation| self.rotations.get(rotation).is_none_or(|w| *w > width)) {
                return wrong("attention has a rotation that is none, or wider than a head");
            }
            let outputs =
                |projections: &[Projection<D>]| projections.iter().map(Projection::outputs).sum::<usize>();
            let input = |projection: &Projection<D>| {
                Sides::new(projection.matrix.layout(), projection.transposed).input().elements()
            };
            let inner = outputs(&layer.inner) / if layer.is_gated { 2 } else { 1 };
            let fits = outputs(&layer.inputs) == layer.heads.inputs()
                && layer.inputs.iter().chain(&layer.inner).all(|projection| input(projection) == self.hidden)
                && input(&layer.output) == heads * width
                && input(&layer.down) == inner
                && [&layer.output, &layer.down].iter().all(|out| out.outputs() == self.hidden);
            if !fits {
                return wrong("projections have other sides than its heads and stream");
            }
        }
        Ok(())
    }
}

impl<D: Machine> DecoderLayer<D> {
    pub(super) fn projections(&self) -> impl Iterator<Item = &Projection<D>> {
        self.inputs.iter().chain([&self.output]).chain(&self.inner).chain([&self.down])
    }
}
