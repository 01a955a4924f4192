//! One token through a decoder, as launches alone: products with compressed weights and, between them, `kernels/step.cu`.
//!
//! Nothing is allocated, copied or waited for, and what changes from token to token is in the device's memory, so that a graph of one token's
//! launches serves the next. The residual stream is in F32; everything else is of the model's type, and rounded where Candle's operations would
//! round it, or more seldom.

mod captured;
mod decoder;
mod laid_out;

pub use captured::CapturedStep;
pub use decoder::{Decoder, DecoderLayer, Projection};
pub use laid_out::DeviceDecoder;

use super::blocks::{THREADS, WARPS};
use super::machine::{Arg, Launch, Machine, Module};
use super::matrix::{DeviceMatrix, Output};
use super::operands::Operand;
use crate::error::{Error, Result};
use crate::step::Heads;
use decoder::{NORM_THREADS, norm_floats};
use laid_out::Norm;
use rbe_core::codec::sizes;
use std::sync::Arc;

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

/// One token after another on their way through a decoder: the vectors of one, in the device's memory.
pub struct TokenStep<D: Machine> {
    device: Arc<DeviceDecoder<D>>,
    vectors: Vectors<D::Memory>,
}

impl<D: Machine> std::fmt::Debug for TokenStep<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TokenStep({:?})", self.device)
    }
}

impl<D: Machine> TokenStep<D> {
    /// Room for the vectors of one token.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn new(device: Arc<DeviceDecoder<D>>) -> Result<Self> {
        let DeviceDecoder { machine, element, decoder, splits, .. } = &*device;
        let longest =
            |of: &dyn Fn(&DecoderLayer<D>) -> usize| decoder.layers.iter().map(of).max().unwrap_or(0);
        let vector = |len: usize| machine.allocate(sizes::elements(&[len, element.bytes()]));
        let inner = longest(&|layer| layer.inner_outputs());
        let heads = longest(&|layer| layer.heads.heads * layer.heads.width);
        let part_floats = decoder
            .layers
            .iter()
            .zip(splits)
            .map(|(layer, splits)| sizes::elements(&[layer.heads.heads, *splits, layer.heads.width + 2]));
        let turns: usize = decoder.rotations.iter().sum();
        let vectors = Vectors {
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
        };
        machine.wait()?;
        Ok(Self { device, vectors })
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

    /// The decoder that it is of.
    pub fn device(&self) -> &Arc<DeviceDecoder<D>> {
        &self.device
    }

    /// Queues the launches of one token. Its keys and values go to its position in the caches, one a layer, of `capacity` positions, which
    /// its position is below.
    ///
    /// # Errors
    /// When there are not as many caches as layers, or the device refuses a launch.
    pub fn run(&self, caches: &[Cache<D::Memory>], capacity: usize) -> Result<()> {
        let Decoder { layers, residual_multiplier, .. } = &self.device.decoder;
        if caches.len() != layers.len() {
            return Err(Error::config(format!("{} caches for {} layers", caches.len(), layers.len())));
        }
        let Vectors { embedding, y, x, out, heads_in, heads_out, inner, gated, .. } = &self.vectors;
        let factor = *residual_multiplier as f32;
        // What the next product sees, or after the last layer the head.
        let before = |index: usize| match self.device.layers.get(index) {
            Some(memory) => (memory.norms[0].as_ref(), x),
            None => (Some(&self.device.norm), out),
        };
        let (norm, to) = before(0);
        self.add_and_norm(Added { y: embedding, to_stream: false, factor: 1.0, norm: None }, norm, to)?;
        for (index, layer) in layers.iter().enumerate() {
            let memory = &self.device.layers[index];
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
        Operand { memory, offset, element: self.device.element }
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
        kernel: &str,
        grid: [usize; 3],
        threads: usize,
        shared_floats: usize,
        args: Vec<Arg<'_, D::Memory>>,
    ) -> Result<()> {
        self.device.machine.launch(Launch {
            module: Module::Step,
            kernel: format!("{kernel}_{}", self.device.element.suffix()),
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
        let hidden = self.device.decoder.hidden;
        let Added { y, to_stream, factor, norm: inner } = added;
        let mut args = vec![Arg::Memory(&self.vectors.stream, 0), Arg::Memory(y, 0)];
        args.extend([Arg::Int(to_stream.into()), Arg::Float(factor)]);
        args.extend(norm_args(inner));
        args.extend(norm_args(norm));
        args.extend([Arg::Memory(x, 0), Arg::Int(hidden)]);
        self.launch("add_and_norm", [1, 1, 1], NORM_THREADS, norm_floats(hidden), args)
    }

    fn attend(&self, index: usize, cache: &Cache<D::Memory>, capacity: usize) -> Result<()> {
        let Heads { heads, kv_heads, width, scale, softcap, window, rotation, norm } =
            &self.device.decoder.layers[index].heads;
        let Vectors { heads_in, heads_out, now, parts, counters, .. } = &self.vectors;
        let bytes = self.device.element.bytes();
        let (at_once, groups) = self.device.decoder.layers[index].heads.at_once();
        let splits = self.device.splits[index];
        let rotations = &self.device.decoder.rotations;
        let turns_before: usize = rotation.map_or(0, |rotation| rotations[..rotation].iter().sum());
        let (k_at, v_at) = (heads * width * bytes, (heads + kv_heads) * width * bytes);
        let weights = self.device.layers[index].head_norm.as_ref();
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
        self.launch(&format!("attend_{at_once}"), [splits, groups, 1], THREADS, shared_floats, args)
    }

    fn gate(&self, layer: &DecoderLayer<D>) -> Result<()> {
        let Vectors { inner, gated, .. } = &self.vectors;
        let outputs = layer.inner_outputs();
        let size = if layer.is_gated { outputs / 2 } else { outputs };
        let up = layer.is_gated.then_some(inner);
        let args = vec![
            Arg::Memory(inner, 0),
            Arg::optional(up, size * self.device.element.bytes()),
            Arg::Memory(gated, 0),
            Arg::Int(layer.nonlinearity as usize),
            Arg::Int(size),
        ];
        self.launch("gate", [size.div_ceil(THREADS), 1, 1], THREADS, 0, args)
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
