//! A decoder as one token's step takes it: products with stored matrices, and numbers beside them. What carries the step out, a
//! [device](crate::cuda::TokenStep) or the CPU, decides what a stored matrix `M` is.

use rbe_core::codec::{Layout, Sides};

/// A matrix that is stored somewhere.
pub trait Stored {
    /// How it is cut into blocks.
    fn layout(&self) -> Layout;
}

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
pub struct Projection<M> {
    /// The stored matrix.
    pub matrix: M,
    /// Whether it is that of the layer's weight `(out, in)` transposed.
    pub transposed: bool,
    /// One number an output.
    pub bias: Option<Vec<f32>>,
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
pub struct DecoderLayer<M> {
    /// Before the attention, after it, before the feed-forward layer and after it.
    pub norms: [Option<NormWeights>; 4],
    /// Queries, keys and values: three, or one of all side by side.
    pub inputs: Vec<Projection<M>>,
    /// The attention.
    pub heads: Heads,
    /// Its output.
    pub output: Projection<M>,
    /// In front of the nonlinearity: one, a gate and what it scales, or one of both side by side.
    pub inner: Vec<Projection<M>>,
    /// Whether there is a gate.
    pub is_gated: bool,
    /// The nonlinearity.
    pub nonlinearity: Nonlinearity,
    /// The feed-forward layer's output.
    pub down: Projection<M>,
}

/// A decoder from the embedding to the last norm.
#[derive(Debug)]
pub struct Decoder<M> {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Each layer, from the first.
    pub layers: Vec<DecoderLayer<M>>,
    /// The norm after the last.
    pub norm: NormWeights,
    /// `r`, by which what is added to the stream is multiplied.
    pub residual_multiplier: f64,
    /// Elements of a head that each rotation turns.
    pub rotations: Vec<usize>,
}

impl Heads {
    /// Elements of queries, keys and values together.
    pub(crate) fn inputs(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.width
    }
}

impl<M: Stored> Projection<M> {
    fn sides(&self) -> Sides {
        Sides::new(self.matrix.layout(), self.transposed)
    }

    /// Elements of its input.
    fn inputs(&self) -> usize {
        self.sides().input().elements()
    }

    /// Elements of its output.
    pub(crate) fn outputs(&self) -> usize {
        self.sides().output().elements()
    }
}

impl<M> DecoderLayer<M> {
    /// All of its products.
    pub(crate) fn projections(&self) -> impl Iterator<Item = &Projection<M>> {
        self.inputs.iter().chain([&self.output]).chain(&self.inner).chain([&self.down])
    }
}

impl<M: Stored> DecoderLayer<M> {
    /// Elements of what is in front of the nonlinearity: of a gate and what it scales together.
    pub(crate) fn inner_outputs(&self) -> usize {
        self.inner.iter().map(Projection::outputs).sum()
    }

    /// Whether its products have the sides of its heads and of a stream so wide.
    fn fits(&self, hidden: usize) -> bool {
        let Heads { heads, kv_heads, width, .. } = self.heads;
        let gated = self.inner_outputs() / if self.is_gated { 2 } else { 1 };
        let inputs: usize = self.inputs.iter().map(Projection::outputs).sum();
        kv_heads > 0
            && heads.is_multiple_of(kv_heads)
            && inputs == self.heads.inputs()
            && self.inputs.iter().chain(&self.inner).all(|projection| projection.inputs() == hidden)
            && self.output.inputs() == heads * width
            && self.down.inputs() == gated
            && [&self.output, &self.down].iter().all(|out| out.outputs() == hidden)
    }
}

impl<M: Stored> Decoder<M> {
    /// What of the decoder does not fit together, if anything.
    pub(crate) fn what_does_not_fit(&self) -> Option<&'static str> {
        let turns = |layer: &DecoderLayer<M>| {
            let Heads { rotation, width, .. } = layer.heads;
            rotation
                .is_none_or(|rotation| self.rotations.get(rotation).is_some_and(|turned| *turned <= width))
        };
        if !self.layers.iter().all(turns) {
            return Some("attention has a rotation that is none, or wider than a head");
        }
        let fits = self.layers.iter().all(|layer| layer.fits(self.hidden));
        (!fits).then_some("projections have other sides than its heads and stream")
    }
}
