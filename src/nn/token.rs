//! One token through a decoder on the CPU: this crate's kernels on the threads that its products run on, and between them no tensor, no
//! graph and, but for a few vectors at the beginning, no allocation.
//!
//! Every number is the one that the layers' forwards give, to the bit: the same kernels take the same numbers in the same order. What is left
//! out is what Candle's operations cost beside their work, which of a small model's token is a good part.

use super::RbeLinear;
use crate::RbeTensor;
use crate::clock::Instant;
use crate::ops::CandlePool;
use crate::step::{Decoder, DecoderLayer, HeadNorm, Heads, Nonlinearity, NormWeights, Projection, Stored};
use candle_core::op::{Gelu, GeluErf, Relu, Silu, UnaryOpT};
use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Storage, Tensor, bail};
use rbe_core::codec;
use rbe_core::cpu::{self, Norm, Rows};

impl Stored for RbeLinear {
    fn layout(&self) -> codec::Layout {
        self.weight().layout()
    }
}

/// Whether a token can go through this decoder here: where scores are capped it cannot, for attention's kernels do not cap them.
pub(crate) fn fits(decoder: &Decoder<RbeLinear>) -> bool {
    let is_plain = |layer: &DecoderLayer<RbeLinear>| layer.heads.softcap.is_none();
    decoder.what_does_not_fit().is_none() && decoder.layers.iter().all(is_plain)
}

/// Where a token stands: its position, and the turns of each rotation there, of each as many cosines as pairs are turned, then as many sines.
#[derive(Clone, Copy)]
pub(crate) struct Now<'a> {
    pub position: usize,
    pub turns: &'a [f32],
}

/// The state after the last norm of a token that comes in as `embedding`. Its keys and values go to its position in the caches, F32 tensors
/// `(1, kv_heads, capacity, width)`, one a layer. `None` where these are of another shape or type.
///
/// # Errors
/// When a weight cannot be packed; Candle's.
pub(crate) fn token(
    decoder: &Decoder<RbeLinear>,
    embedding: Vec<f32>,
    now: Now,
    caches: &[(Tensor, Tensor)],
) -> Result<Option<Vec<f32>>> {
    let fit = caches.iter().zip(&decoder.layers).all(|((keys, values), layer)| {
        let Heads { kv_heads, width, .. } = layer.heads;
        [keys, values].into_iter().all(|buffer| match *buffer.dims() {
            [1, heads, capacity, of] => {
                (heads, of) == (kv_heads, width)
                    && now.position < capacity
                    && buffer.dtype() == DType::F32
                    && buffer.is_contiguous()
            }
            _ => false,
        })
    });
    if !fit || caches.len() != decoder.layers.len() || embedding.len() != decoder.hidden {
        return Ok(None);
    }
    let mut vectors = Vectors::new(decoder, embedding);
    for (layer, (keys, values)) in decoder.layers.iter().zip(caches) {
        vectors.normed(layer.norms[0].as_ref());
        project(&layer.inputs, &vectors.x, &mut vectors.heads_in[..layer.heads.inputs()])?;
        vectors.attend(decoder, &layer.heads, now, (keys, values))?;
        let heads_out = &vectors.heads_out[..layer.heads.heads * layer.heads.width];
        project(std::slice::from_ref(&layer.output), heads_out, &mut vectors.y)?;
        vectors.add(layer.norms[1].as_ref(), decoder.residual_multiplier);
        vectors.normed(layer.norms[2].as_ref());
        let inner = &mut vectors.inner[..layer.inner_outputs()];
        project(&layer.inner, &vectors.x, inner)?;
        let gated = gate(layer, inner, &mut vectors.gated);
        project(std::slice::from_ref(&layer.down), gated, &mut vectors.y)?;
        vectors.add(layer.norms[3].as_ref(), decoder.residual_multiplier);
    }
    vectors.normed(Some(&decoder.norm));
    Ok(Some(vectors.x))
}

/// What a token is on its way.
struct Vectors {
    stream: Vec<f32>,
    x: Vec<f32>,
    heads_in: Vec<f32>,
    heads_out: Vec<f32>,
    inner: Vec<f32>,
    gated: Vec<f32>,
    y: Vec<f32>,
}

impl Vectors {
    fn new(decoder: &Decoder<RbeLinear>, stream: Vec<f32>) -> Self {
        let longest = |len: &dyn Fn(&DecoderLayer<RbeLinear>) -> usize| {
            vec![0.0; decoder.layers.iter().map(len).max().unwrap_or(0)]
        };
        Self {
            x: vec![0.0; stream.len()],
            y: vec![0.0; stream.len()],
            heads_in: longest(&|layer| layer.heads.inputs()),
            heads_out: longest(&|layer| layer.heads.heads * layer.heads.width),
            inner: longest(&|layer| layer.inner_outputs()),
            gated: longest(&|layer| layer.inner_outputs()),
            stream,
        }
    }

    /// The stream as the next product sees it.
    fn normed(&mut self, norm: Option<&NormWeights>) {
        match norm {
            Some(weights) => normed(weights, &self.stream, &mut self.x),
            None => self.x.copy_from_slice(&self.stream),
        }
    }

    /// Adds a product to the stream.
    fn add(&mut self, norm: Option<&NormWeights>, factor: f64) {
        let added = match norm {
            Some(weights) => {
                normed(weights, &self.y, &mut self.x);
                &self.x
            }
            None => &self.y,
        };
        self.stream.iter_mut().zip(added).for_each(|(stream, added)| *stream += added * factor as f32);
    }

    /// The queries' attention to all keys so far.
    fn attend(
        &mut self,
        decoder: &Decoder<RbeLinear>,
        of: &Heads,
        now: Now,
        (keys, values): (&Tensor, &Tensor),
    ) -> Result<()> {
        let &Heads { heads, kv_heads, width, scale, window, rotation, ref norm, .. } = of;
        let (q, rest) = self.heads_in[..of.inputs()].split_at_mut(heads * width);
        let (k, v) = rest.split_at_mut(kv_heads * width);
        for (n, x) in [&mut *q, &mut *k].into_iter().enumerate() {
            if let Some(HeadNorm { weights, eps, .. }) = norm {
                let raw = x.to_vec();
                let rms = Norm { eps: *eps as f32, centered: false };
                cpu::norm(rms, &raw, &weights[n], &[], x, &CandlePool);
            }
            if let Some(rotation) = rotation {
                let before: usize = decoder.rotations[..rotation].iter().sum();
                let turned = decoder.rotations[rotation];
                rotate(x, width, &now.turns[before..][..turned]);
            }
        }
        let past = now.position;
        for (buffer, rows) in [(keys, &*k), (values, &*v)] {
            buffer.inplace_op1(&Append { rows, width, position: past })?;
        }
        // The first key that is seen, and how many.
        let first = window.map_or(0, |window| (past + 1).saturating_sub(window));
        let shape = cpu::Attention {
            batch: 1,
            heads,
            kv_heads,
            queries: 1,
            keys: past + 1 - first,
            width,
            scale: scale as f32,
            causal: true,
            key_bias: &[],
        };
        let out = &mut self.heads_out[..heads * width];
        let q = cpu::Heads { values: q, batch_stride: heads * width, head_stride: width };
        with_values(keys, |keys| {
            with_values(values, |values| {
                let (batch_stride, head_stride) = (keys.len(), keys.len() / kv_heads);
                let [k, v] = [keys, values].map(|buffer| {
                    let seen = &buffer[first * width..];
                    cpu::Heads { values: seen, batch_stride, head_stride }
                });
                cpu::attention(&shape, [q, k, v], out, &CandlePool);
                Ok(())
            })
        })
    }
}

fn normed(NormWeights { weight, bias, eps }: &NormWeights, x: &[f32], out: &mut [f32]) {
    let norm = Norm { eps: *eps as f32, centered: bias.is_some() };
    cpu::norm(norm, x, weight, bias.as_deref().unwrap_or_default(), out, &CandlePool);
}

/// Products of one vector, whose results lie one after another.
fn project(projections: &[Projection<RbeLinear>], x: &[f32], out: &mut [f32]) -> Result<()> {
    let mut rest = out;
    for together in projections.chunk_by(|a, b| a.matrix.config() == b.matrix.config()) {
        let start = Instant::now();
        let weights = together.iter().map(|projection| projection.matrix.weight());
        let matrices = weights.map(RbeTensor::oriented).collect::<crate::Result<Vec<_>>>()?;
        let part =
            |projection: &Projection<_>| rest.split_off_mut(..projection.outputs()).unwrap_or_default();
        let mut ys: Vec<&mut [f32]> = together.iter().map(part).collect();
        let precision = together[0].matrix.config().precision;
        cpu::matmul_all_into(&matrices, Rows::new(x, 1, x.len()), &mut ys, precision, &CandlePool);
        for (y, projection) in ys.iter_mut().zip(together) {
            if let Some(bias) = &projection.bias {
                y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
            }
        }
        let time = start.elapsed();
        let bytes = |projection: &Projection<RbeLinear>| projection.matrix.weight().memory_in_bytes();
        let all: usize = together.iter().map(bytes).sum();
        for projection in together {
            let share = bytes(projection) as f64 / all.max(1) as f64;
            projection.matrix.count_tokens(1, time.mul_f64(share));
        }
    }
    Ok(())
}

/// Turns the first elements of each head, of which the first half are paired with the second: by the cosines and then the sines of `turns`.
fn rotate(x: &mut [f32], width: usize, turns: &[f32]) {
    let half = turns.len() / 2;
    let (cos, sin) = turns.split_at(half);
    for head in x.chunks_exact_mut(width) {
        let (first, second) = head[..2 * half].split_at_mut(half);
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
        }
    }
}

/// What the nonlinearity makes of what is in front of it: what the feed-forward layer's output sees.
fn gate<'v>(layer: &DecoderLayer<RbeLinear>, inner: &[f32], gated: &'v mut [f32]) -> &'v [f32] {
    let (gate, up) = match layer.is_gated {
        true => inner.split_at(inner.len() / 2),
        false => (inner, &[][..]),
    };
    let (gated, up) = (&mut gated[..gate.len()], layer.is_gated.then_some(up));
    match (layer.nonlinearity, up) {
        (Nonlinearity::Silu, Some(up)) => cpu::silu_mul(gate, up, gated, &CandlePool),
        // Candle's own, as its operations call them.
        (Nonlinearity::Silu, None) => cpu::gate_by(&Silu::f32, gate, up, gated, &CandlePool),
        (Nonlinearity::Gelu, _) => cpu::gate_by(&GeluErf::f32, gate, up, gated, &CandlePool),
        (Nonlinearity::GeluTanh, _) => cpu::gate_by(&Gelu::f32, gate, up, gated, &CandlePool),
        (Nonlinearity::Relu, _) => cpu::gate_by(&Relu::f32, gate, up, gated, &CandlePool),
    }
    gated
}

/// Writes the rows of one position, a head's each, into a buffer `(1, heads, capacity, width)`.
struct Append<'a> {
    rows: &'a [f32],
    width: usize,
    position: usize,
}

impl InplaceOp1 for Append<'_> {
    fn name(&self) -> &'static str {
        "rbe-append"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("{} writes contiguous F32 tensors", self.name());
        };
        let heads = self.rows.len() / self.width;
        for (rows, head) in
            self.rows.chunks_exact(self.width).zip(values[start..end].chunks_exact_mut((end - start) / heads))
        {
            head[self.position * self.width..][..self.width].copy_from_slice(rows);
        }
        Ok(())
    }
}

/// Calls `f` with the elements of a contiguous F32 tensor on the CPU.
fn with_values<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => f(&values[start..end]),
        _ => bail!("a token's step takes contiguous F32 tensors on the CPU"),
    }
}
