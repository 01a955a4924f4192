//! One token through a decoder, as launches alone: products with compressed weights and, between them, `kernels/step.cu`.
//!
//! Nothing is allocated, copied or waited for, and what changes from token to token is in the device's memory, so that a graph of one token's
//! launches serves the next. The residual stream is in F32; everything else is of the model's type, and rounded where Candle's operations would
//! round it, or more seldom.

use super::blocks::{THREADS, WARP, WARPS};
use super::machine::{Arg, Element, Launch, Machine, Module};
use super::matrix::{DeviceMatrix, Output};
use super::operands::Operand;
use crate::error::{Error, Result};
use half::{bf16, f16};
use rbe_core::codec::{Sides, sizes};
use std::sync::Arc;

/// Threads of the block that adds and norms: `NORM_THREADS` of `kernels/step.cu`.
const NORM_THREADS: usize = 512;
/// Sums of its warps that it has room for.
const NORM_SUMS: usize = 5;
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
    fn outputs(&self) -> usize {
        Sides::new(self.matrix.layout(), self.transposed).output().elements()
    }

    /// Several of one input as one, whose product takes one launch; `None` where that cannot be.
    fn stacked(parts: &[Self]) -> Result<Option<Self>>
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

/// A norm in the device's memory.
struct Norm<M> {
    weight: M,
    bias: Option<M>,
    eps: f32,
}

/// What a layer has there beside its matrices.
struct LayerMemory<M> {
    norms: [Option<Norm<M>>; 4],
    input_biases: Vec<Option<M>>,
    output_bias: Option<M>,
    inner_biases: Vec<Option<M>>,
    down_bias: Option<M>,
    head_norm: Option<[M; 2]>,
}

/// What a token's vectors lie in.
struct Vectors<M> {
    embedding: M,
    stream: M,
    x: M,
    heads_in: M,
    heads_out: M,
    inner: M,
    gated: M,
    y: M,
    out: M,
    /// The position, and the turns of each rotation.
    now: M,
    parts: M,
    counters: M,
}

/// The keys and values of a layer, `(kv_heads, capacity, width)` each.
#[derive(Debug)]
pub struct Cache<M> {
    /// Of the tokens before, and then of this one too.
    pub keys: M,
    /// As the keys.
    pub values: M,
}

/// A decoder in the device's memory, for one token after another.
pub struct TokenStep<D: Machine> {
    machine: D,
    element: Element,
    decoder: Decoder<D>,
    memories: Vec<LayerMemory<D::Memory>>,
    norm: Norm<D::Memory>,
    vectors: Vectors<D::Memory>,
    splits: Vec<usize>,
}

impl<D: Machine> std::fmt::Debug for TokenStep<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TokenStep({} layers, {:?})", self.decoder.layers.len(), self.element)
    }
}

/// Numbers as a device has them.
fn encode(values: &[f32], element: Element) -> Vec<u8> {
    match element {
        Element::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Element::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        Element::BF16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
    }
}

impl Heads {
    /// Whether the kernels take them: a width of at most 256, a multiple of 8.
    pub fn fit(&self) -> bool {
        self.width.is_multiple_of(WIDTH_STEP)
            && self.width <= WIDEST
            && self.kv_heads > 0
            && self.heads.is_multiple_of(self.kv_heads)
    }

    /// Query heads that a block has at once, and groups of them.
    fn at_once(&self) -> (usize, usize) {
        let shared = self.heads / self.kv_heads;
        let at_once = if shared == 1 { 1 } else { HEADS_AT_ONCE };
        (at_once, self.kv_heads * shared.div_ceil(at_once))
    }

    /// Blocks that share a head's keys.
    fn splits(&self, multiprocessors: usize) -> usize {
        (ATTENTION_BLOCKS * multiprocessors).div_ceil(self.at_once().1).clamp(1, MOST_SPLITS)
    }

    fn inputs(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.width
    }
}

impl<D: Machine> Decoder<D> {
    /// Refuses what does not fit together, or is more than the kernels take.
    fn check(&self) -> Result<()> {
        let wrong = |what: &str| Err(Error::config(format!("a decoder whose {what}")));
        for layer in &self.layers {
            let Heads { rotation, heads, width, .. } = layer.heads;
            if !layer.heads.fit() {
                return wrong("heads are wider than 256 elements, or no multiple of 8 wide");
            }
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

impl<D: Machine> TokenStep<D> {
    /// Lays out what a decoder has beside its matrices, and room for one token, whose vectors are of `element`.
    ///
    /// # Errors
    /// When heads are wider than 256 elements or no multiple of 8 wide, sides do not fit together, or the device has not enough memory.
    pub fn new(machine: D, mut decoder: Decoder<D>, element: Element) -> Result<Self>
    where
        D: Clone,
    {
        decoder.check()?;
        for layer in &mut decoder.layers {
            for projections in [&mut layer.inputs, &mut layer.inner] {
                if let Some(stacked) = Projection::stacked(projections)? {
                    *projections = vec![stacked];
                }
            }
        }
        let numbers = |values: &[f32]| machine.upload(&encode(values, Element::F32));
        let norm = |norm: &NormWeights| -> Result<Norm<D::Memory>> {
            let bias = norm.bias.as_deref().map(numbers).transpose()?;
            Ok(Norm { weight: numbers(&norm.weight)?, bias, eps: norm.eps as f32 })
        };
        let bias = |projection: &Projection<D>| -> Result<Option<D::Memory>> {
            projection.bias.as_ref().map(|bias| machine.upload(&encode(bias, element))).transpose()
        };
        let memory_of = |layer: &DecoderLayer<D>| -> Result<LayerMemory<D::Memory>> {
            let [a, b, c, d] = layer.norms.each_ref().map(|weights| weights.as_ref().map(norm).transpose());
            let head_norm =
                layer.heads.norm.as_ref().map(|norm| -> Result<_> {
                    Ok([numbers(&norm.weights[0])?, numbers(&norm.weights[1])?])
                });
            Ok(LayerMemory {
                norms: [a?, b?, c?, d?],
                input_biases: layer.inputs.iter().map(bias).collect::<Result<_>>()?,
                output_bias: bias(&layer.output)?,
                inner_biases: layer.inner.iter().map(bias).collect::<Result<_>>()?,
                down_bias: bias(&layer.down)?,
                head_norm: head_norm.transpose()?,
            })
        };
        let memories = decoder.layers.iter().map(memory_of).collect::<Result<Vec<_>>>()?;
        let last = norm(&decoder.norm)?;
        let splits: Vec<_> =
            decoder.layers.iter().map(|layer| layer.heads.splits(machine.multiprocessors())).collect();
        let vectors = Self::vectors(&machine, &decoder, &splits, element)?;
        for projection in decoder.layers.iter().flat_map(DecoderLayer::projections) {
            projection.matrix.prepare(projection.transposed)?;
        }
        machine.wait()?;
        Ok(Self { machine, element, decoder, memories, norm: last, vectors, splits })
    }

    fn vectors(
        machine: &D,
        decoder: &Decoder<D>,
        splits: &[usize],
        element: Element,
    ) -> Result<Vectors<D::Memory>> {
        let longest =
            |of: &dyn Fn(&DecoderLayer<D>) -> usize| decoder.layers.iter().map(of).max().unwrap_or(0);
        let vector = |len: usize| machine.allocate(sizes::elements(&[len, element.bytes()]));
        let inner = longest(&|layer| layer.inner.iter().map(Projection::outputs).sum());
        let heads = longest(&|layer| layer.heads.heads * layer.heads.width);
        let part_floats = decoder
            .layers
            .iter()
            .zip(splits)
            .map(|(layer, splits)| sizes::elements(&[layer.heads.heads, *splits, layer.heads.width + 2]));
        let turns: usize = decoder.rotations.iter().sum();
        Ok(Vectors {
            embedding: vector(decoder.hidden)?,
            stream: machine.allocate(sizes::elements(&[decoder.hidden, size_of::<f32>()]))?,
            x: vector(decoder.hidden)?,
            heads_in: vector(longest(&|layer| layer.heads.inputs()))?,
            heads_out: vector(heads)?,
            inner: vector(inner)?,
            gated: vector(inner)?,
            y: vector(decoder.hidden)?,
            out: vector(decoder.hidden)?,
            now: machine.allocate(sizes::elements(&[1 + turns, size_of::<f32>()]))?,
            parts: machine.allocate(sizes::elements(&[part_floats.max().unwrap_or(0), size_of::<f32>()]))?,
            counters: machine.allocate_zeroed(sizes::elements(&[
                longest(&|layer| layer.heads.at_once().1),
                size_of::<i32>(),
            ]))?,
        })
    }

    /// The device.
    pub fn machine(&self) -> &D {
        &self.machine
    }

    /// What vectors are made of.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Where the token's embedding, `hidden` elements, must be before a step.
    pub fn embedding(&self) -> &D::Memory {
        &self.vectors.embedding
    }

    /// Where its position (32 bits) and the rotations at it must be: of each half as many cosines as elements are turned, then as many
    /// sines, in F32.
    pub fn now(&self) -> &D::Memory {
        &self.vectors.now
    }

    /// What [`now`](Self::now) is to hold, where `turns` are the cosines and sines of each rotation.
    pub fn now_bytes(position: u32, turns: &[f32]) -> Vec<u8> {
        let turns = turns.iter().flat_map(|turn| turn.to_le_bytes());
        position.to_le_bytes().into_iter().chain(turns).collect()
    }

    /// Where the normed state of the token is after it, `hidden` elements.
    pub fn out(&self) -> &D::Memory {
        &self.vectors.out
    }

    /// The decoder.
    pub fn decoder(&self) -> &Decoder<D> {
        &self.decoder
    }

    /// Queues the launches of one token. Its keys and values go to its position in the caches, one a layer, of `capacity` positions, which
    /// its position is below.
    ///
    /// # Errors
    /// When there are not as many caches as layers, or the device refuses a launch.
    pub fn run(&self, caches: &[Cache<D::Memory>], capacity: usize) -> Result<()> {
        let Decoder { layers, residual_multiplier, .. } = &self.decoder;
        if caches.len() != layers.len() {
            return Err(Error::config(format!("{} caches for {} layers", caches.len(), layers.len())));
        }
        let Vectors { embedding, y, x, out, heads_in, heads_out, inner, gated, .. } = &self.vectors;
        let factor = *residual_multiplier as f32;
        // What the next product sees, or after the last layer the head.
        let before = |index: usize| match self.memories.get(index) {
            Some(memory) => (memory.norms[0].as_ref(), x),
            None => (Some(&self.norm), out),
        };
        let (norm, to) = before(0);
        self.add_and_norm(Added { y: embedding, to_stream: false, factor: 1.0, norm: None }, norm, to)?;
        for (index, layer) in layers.iter().enumerate() {
            let memory = &self.memories[index];
            let [_, after_attention, before_feed_forward, after_feed_forward] = memory.norms.each_ref();
            self.project(&layer.inputs, &memory.input_biases, x, heads_in)?;
            self.attend(index, &caches[index], capacity)?;
            self.project(
                std::slice::from_ref(&layer.output),
                std::slice::from_ref(&memory.output_bias),
                heads_out,
                y,
            )?;
            let added = Added { y, to_stream: true, factor, norm: None };
            self.add_and_norm(added.normed(after_attention), before_feed_forward.as_ref(), x)?;
            self.project(&layer.inner, &memory.inner_biases, x, inner)?;
            self.gate(layer)?;
            self.project(
                std::slice::from_ref(&layer.down),
                std::slice::from_ref(&memory.down_bias),
                gated,
                y,
            )?;
            let (norm, to) = before(index + 1);
            self.add_and_norm(added.normed(after_feed_forward), norm, to)?;
        }
        Ok(())
    }

    fn operand<'a>(&self, memory: &'a D::Memory, offset: usize) -> Operand<'a, D::Memory> {
        Operand { memory, offset, element: self.element }
    }

    /// Products of one vector, whose results lie one after another.
    fn project(
        &self,
        projections: &[Projection<D>],
        biases: &[Option<D::Memory>],
        x: &D::Memory,
        y: &D::Memory,
    ) -> Result<()> {
        let mut offset = 0;
        let products: Vec<_> = projections
            .iter()
            .zip(biases)
            .map(|(projection, bias)| {
                let output = Output {
                    y: self.operand(y, offset),
                    bias: bias.as_ref().map(|bias| self.operand(bias, 0)),
                };
                offset += projection.outputs();
                (projection, output)
            })
            .collect();
        let x = self.operand(x, 0);
        // Those of one orientation together.
        let mut products = products.into_iter().peekable();
        while let Some((first, output)) = products.next() {
            let mut together = vec![(&*first.matrix, output)];
            while let Some((next, output)) = products.next_if(|(next, _)| next.transposed == first.transposed)
            {
                together.push((&*next.matrix, output));
            }
            DeviceMatrix::matmul_all(&together, &x, 1, first.transposed)?;
        }
        Ok(())
    }

    fn launch(
        &self,
        kernel: impl Into<String>,
        grid: [usize; 3],
        threads: usize,
        shared_floats: usize,
        args: Vec<Arg<'_, D::Memory>>,
    ) -> Result<()> {
        self.machine.launch(Launch {
            module: Module::Step,
            kernel: kernel.into(),
            grid,
            threads,
            shared_bytes: sizes::elements(&[shared_floats, size_of::<f32>()]),
            waits: true,
            args,
        })
    }

    fn add_and_norm(
        &self,
        added: Added<'_, D::Memory>,
        norm: Option<&Norm<D::Memory>>,
        x: &D::Memory,
    ) -> Result<()> {
        let hidden = self.decoder.hidden;
        let Added { y, to_stream, factor, norm: inner } = added;
        let mut args = vec![Arg::Memory(&self.vectors.stream, 0), Arg::Memory(y, 0)];
        args.extend([Arg::Int(to_stream.into()), Arg::Float(factor)]);
        args.extend(norm_args(inner));
        args.extend(norm_args(norm));
        args.extend([Arg::Memory(x, 0), Arg::Int(self.element.number()), Arg::Int(hidden)]);
        let shared_floats = 2 * hidden + NORM_SUMS * (NORM_THREADS / WARP);
        self.launch("add_and_norm", [1, 1, 1], NORM_THREADS, shared_floats, args)
    }

    fn attend(&self, index: usize, cache: &Cache<D::Memory>, capacity: usize) -> Result<()> {
        let Heads { heads, kv_heads, width, scale, softcap, window, rotation, norm } =
            &self.decoder.layers[index].heads;
        let Vectors { heads_in, heads_out, now, parts, counters, .. } = &self.vectors;
        let bytes = self.element.bytes();
        let (at_once, groups) = self.decoder.layers[index].heads.at_once();
        let splits = self.splits[index];
        let rotations = &self.decoder.rotations;
        let turns_before: usize = rotation.map_or(0, |rotation| rotations[..rotation].iter().sum());
        let (k_at, v_at) = (heads * width * bytes, (heads + kv_heads) * width * bytes);
        let weights = self.memories[index].head_norm.as_ref();
        let weight = |n: usize| Arg::optional(weights.map(|weights| &weights[n]), 0);
        let normed = norm.as_ref().map_or(0, |norm| if norm.of_all { 2 } else { 1 });
        let args = vec![
            Arg::Memory(now, 0),
            Arg::Memory(now, (1 + turns_before) * size_of::<f32>()),
            Arg::Memory(heads_in, 0),
            Arg::Memory(heads_in, k_at),
            Arg::Memory(heads_in, v_at),
            Arg::Memory(&cache.keys, 0),
            Arg::Memory(&cache.values, 0),
            weight(0),
            weight(1),
            Arg::Memory(heads_out, 0),
            Arg::Memory(parts, 0),
            Arg::Memory(counters, 0),
            Arg::Int(*heads),
            Arg::Int(*kv_heads),
            Arg::Int(*width),
            Arg::Int(capacity),
            Arg::Float(*scale as f32),
            Arg::Float(softcap.unwrap_or(0.0) as f32),
            Arg::Int(window.filter(|window| *window < capacity).unwrap_or(0)),
            Arg::Int(rotation.map_or(0, |rotation| rotations[rotation])),
            Arg::Int(normed),
            Arg::Float(norm.as_ref().map_or(0.0, |norm| norm.eps as f32)),
        ];
        let inputs = (at_once + 2) * width + WARPS;
        let shared_floats = inputs.max(WARPS * at_once * (width + 2));
        let kernel = format!("attend_{at_once}_{}", self.element.suffix());
        self.launch(kernel, [splits, groups, 1], THREADS, shared_floats, args)
    }

    fn gate(&self, layer: &DecoderLayer<D>) -> Result<()> {
        let Vectors { inner, gated, .. } = &self.vectors;
        let outputs: usize = layer.inner.iter().map(Projection::outputs).sum();
        let size = if layer.is_gated { outputs / 2 } else { outputs };
        let up = layer.is_gated.then_some(inner);
        let args = vec![
            Arg::Memory(inner, 0),
            Arg::optional(up, size * self.element.bytes()),
            Arg::Memory(gated, 0),
            Arg::Int(layer.nonlinearity as usize),
            Arg::Int(self.element.number()),
            Arg::Int(size),
        ];
        self.launch("gate", [size.div_ceil(THREADS), 1, 1], THREADS, 0, args)
    }
}

impl<D: Machine> DecoderLayer<D> {
    fn projections(&self) -> impl Iterator<Item = &Projection<D>> {
        self.inputs.iter().chain([&self.output]).chain(&self.inner).chain([&self.down])
    }
}

/// What is added to the residual stream, or where it begins.
struct Added<'a, M> {
    y: &'a M,
    to_stream: bool,
    factor: f32,
    norm: Option<&'a Norm<M>>,
}

impl<'a, M> Added<'a, M> {
    fn normed(&self, norm: &'a Option<Norm<M>>) -> Self {
        Self { norm: norm.as_ref(), ..*self }
    }
}

/// As `NORM_PARAMETERS` of `kernels/step.cu` has them.
fn norm_args<M>(norm: Option<&Norm<M>>) -> [Arg<'_, M>; 3] {
    match norm {
        None => [Arg::Null, Arg::Null, Arg::Float(0.0)],
        Some(norm) => {
            [Arg::Memory(&norm.weight, 0), Arg::optional(norm.bias.as_ref(), 0), Arg::Float(norm.eps)]
        }
    }
}
