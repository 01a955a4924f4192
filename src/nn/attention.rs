//! Attention over layers that are dense or compressed, with a cache, and what all layers of a forward pass share.

use super::norm::has_op;
use super::rope::Rotation;
use super::{KvCache, Linear, forward_all};
use crate::ops::{self, AttentionMask};
use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::Module;
use std::ops::Range;

/// What all layers of one forward pass share: where its tokens stand, what they may look at, and the cache.
#[derive(Debug)]
pub struct AttentionPass<'c> {
    past: usize,
    seq: usize,
    mask: AttentionMask,
    rotation: Option<Rotation>,
    cache: Option<&'c mut KvCache>,
}

impl<'c> AttentionPass<'c> {
    /// A pass of `seq` new positions after those in the cache; each sees those before it and itself.
    pub fn causal(seq: usize, cache: Option<&'c mut KvCache>) -> Self {
        let past = cache.as_ref().map_or(0, |cache| cache.len());
        Self { past, seq, mask: AttentionMask::Causal, rotation: None, cache }
    }

    /// A pass in which every position sees all, or with a mask `(batch, seq)` those whose entry is not zero.
    pub fn full(seq: usize, mask: Option<Tensor>) -> Self {
        let mask = mask.map_or(AttentionMask::Full, AttentionMask::Keys);
        Self { past: 0, seq, mask, rotation: None, cache: None }
    }

    /// The same pass with queries and keys turned by their positions; `frequencies` are radians per position of each pair of a
    /// head's elements ([`Rope::frequencies`](super::Rope::frequencies)).
    ///
    /// # Errors
    /// Candle's.
    pub fn rotated(self, frequencies: &[f32], dtype: DType, device: &Device) -> Result<Self> {
        let rotation = Some(Rotation::new(frequencies, self.positions(), dtype, device)?);
        Ok(Self { rotation, ..self })
    }

    /// The positions of this pass's tokens.
    pub fn positions(&self) -> Range<usize> {
        self.past..self.past + self.seq
    }

    /// Attention of this pass's queries to all keys so far.
    ///
    /// `q` `(batch, heads, seq, head_dim)`; `k`, `v` `(batch, kv_heads, seq, head_dim)`, `heads` a multiple of
    /// `kv_heads`; all contiguous. Returns `(batch, seq, heads * head_dim)`. `layer` is that of the cache.
    ///
    /// # Errors
    /// When the shapes do not fit, or the cache holds another batch.
    pub fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Tensor> {
        let turn = |x: &Tensor| self.rotation.as_ref().map_or_else(|| Ok(x.clone()), |r| r.apply(x));
        let (q, k) = (turn(q)?, turn(k)?);
        match &mut self.cache {
            None => attention(&q, &k, v, scale, &self.mask),
            Some(cache) => {
                let (k, v) = cache.append(layer, &k, v)?;
                attention(&q, &k, &v, scale, &self.mask)
            }
        }
    }

    /// Every layer is done: the cache now counts this pass's tokens.
    pub fn finish(self) {
        if let Some(cache) = self.cache {
            cache.advance(self.seq);
        }
    }
}

/// The layers that make queries, keys and values.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)]
pub enum Projections {
    /// One each.
    Separate {
        /// `(heads * head_dim, hidden)`.
        q: Linear,
        /// `(kv_heads * head_dim, hidden)`.
        k: Linear,
        /// As `k`.
        v: Linear,
    },
    /// All three side by side, `((heads + 2 kv_heads) * head_dim, hidden)`.
    Joined(Linear),
}

/// Multi-head attention, with as many key heads as query heads or fewer (GQA, arXiv 2305.13245).
///
/// On the CPU its memory is linear in the sequence, forward and backward.
#[doc(alias = "RBEAttention")]
#[derive(Clone, Debug)]
pub struct RbeAttention {
    projections: Projections,
    out: Linear,
    heads: usize,
    kv_heads: usize,
    scale: f64,
}

impl RbeAttention {
    /// Puts a layer together; `scale` multiplies `q k'`, usually `1 / sqrt(head_dim)`.
    pub fn new(projections: Projections, out: Linear, heads: usize, kv_heads: usize, scale: f64) -> Self {
        Self { projections, out, heads, kv_heads, scale }
    }

    /// `(batch, seq, hidden)` to `(batch, seq, hidden)`; `layer` is that of the pass's cache.
    ///
    /// # Errors
    /// When a shape does not fit.
    pub fn forward(&self, x: &Tensor, layer: usize, pass: &mut AttentionPass) -> Result<Tensor> {
        let (q, k, v) = match &self.projections {
            Projections::Separate { q, k, v } => forward_all([q, k, v], x)?.into(),
            Projections::Joined(joined) => {
                let joined = joined.forward(x)?;
                let width = joined.dim(D::Minus1)? / (self.heads + 2 * self.kv_heads);
                let part = |first, heads| joined.narrow(D::Minus1, first * width, heads * width);
                let (q, k) = (part(0, self.heads)?, part(self.heads, self.kv_heads)?);
                (q, k, part(self.heads + self.kv_heads, self.kv_heads)?)
            }
        };
        let (q, k) = (split_heads(&q, self.heads)?, split_heads(&k, self.kv_heads)?);
        let v = split_heads(&v, self.kv_heads)?;
        self.out.forward(&pass.attend(layer, &q, &k, &v, self.scale)?)
    }

    /// Those of queries, keys and values, or the one of all, then that of the output.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut linears = match &mut self.projections {
            Projections::Separate { q, k, v } => vec![q, k, v],
            Projections::Joined(joined) => vec![joined],
        };
        linears.push(&mut self.out);
        linears
    }
}

/// Cuts `(batch, seq, heads * head_dim)` into heads: `(batch, heads, seq, head_dim)`, contiguous.
fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, seq, width) = x.dims3()?;
    x.reshape((batch, seq, heads, width / heads))?.transpose(1, 2)?.contiguous()
}

/// `softmax(scale q k' + mask) v`: this crate's op where it takes the tensors, composed elsewhere.
fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, mask: &AttentionMask) -> Result<Tensor> {
    if has_op(q) { ops::attention(q, k, v, scale, mask) } else { composed(q, k, v, scale, mask) }
}

/// Attention out of Candle's operations, the softmax in F32 for half types: for other devices and F64.
///
/// Heads that share a key are stacked as rows of one product, so that keys and values are read once and never repeated in
/// memory.
fn composed(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, mask: &AttentionMask) -> Result<Tensor> {
    let (batch, heads, seq, head_dim) = q.dims4()?;
    let (_, kv_heads, total, _) = k.dims4()?;
    let dtype = if q.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let hidden = |seen: &Tensor| {
        let shape = seen.shape();
        let infinity = Tensor::full(f32::NEG_INFINITY, shape, q.device())?;
        seen.where_cond(&infinity.zeros_like()?, &infinity)?.to_dtype(dtype)
    };
    let mask = match mask {
        AttentionMask::Full => None,
        AttentionMask::Causal if seq == 1 => None,
        AttentionMask::Causal => {
            let row = |i| (0..total).map(move |j| u8::from(j <= total - seq + i));
            let seen: Vec<u8> = (0..seq).flat_map(row).collect();
            Some(hidden(&Tensor::from_vec(seen, (1, 1, seq, total), q.device())?)?)
        }
        AttentionMask::Keys(keys) => Some(hidden(&keys.ne(0u32)?.reshape((batch, 1, 1, total))?)?),
    };
    // Scaled before the product: a sum of 128 products of large queries and keys overflows F16.
    let queries = (q * scale)?.reshape((batch, kv_heads, heads / kv_heads * seq, head_dim))?;
    let scores = queries.matmul(&k.t()?)?.to_dtype(dtype)?;
    let scores = match mask {
        None => scores,
        Some(mask) => {
            let masked = scores.reshape((batch, heads, seq, total))?.broadcast_add(&mask)?;
            masked.reshape((batch, kv_heads, (), total))?
        }
    };
    let mixed = candle_nn::ops::softmax(&scores, D::Minus1)?.to_dtype(v.dtype())?.matmul(v)?;
    mixed.reshape((batch, heads, seq, head_dim))?.transpose(1, 2)?.reshape((batch, seq, heads * head_dim))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, one query at a time in F64.
    fn textbook(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Vec<f64>> {
        let (batch, heads, seq, head_dim) = q.dims4()?;
        let (_, kv_heads, total, _) = k.dims4()?;
        let [q, k, v] = [q, k, v].map(|x| x.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>());
        let (q, k, v) = (q?, k?, v?);
        let mut out = vec![0.; batch * seq * heads * head_dim];
        for (b, h, i) in (0..batch * heads * seq).map(|n| (n / seq / heads, n / seq % heads, n % seq)) {
            let query = &q[((b * heads + h) * seq + i) * head_dim..][..head_dim];
            let row = |x: &[f64], j: usize| {
                let kv_head = b * kv_heads + h / (heads / kv_heads);
                x[(kv_head * total + j) * head_dim..][..head_dim].to_vec()
            };
            let seen = total - seq + i + 1;
            let dot = |j| query.iter().zip(row(&k, j)).map(|(q, k)| q * k).sum::<f64>();
            let weights: Vec<f64> = (0..seen).map(|j| (dot(j) * scale).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for (j, weight) in weights.iter().enumerate() {
                let to = &mut out[((b * seq + i) * heads + h) * head_dim..][..head_dim];
                to.iter_mut().zip(row(&v, j)).for_each(|(to, v)| *to += weight / sum * v);
            }
        }
        Ok(out)
    }

    #[test]
    fn agrees_with_the_definition_in_every_dtype() -> Result<()> {
        for (dtype, tolerance) in
            [(DType::F64, 1e-12), (DType::F32, 2e-6), (DType::F16, 4e-3), (DType::BF16, 3e-2)]
        {
            for (batch, heads, kv_heads, past, seq) in
                [(1, 4, 4, 0, 5), (2, 6, 2, 0, 7), (2, 6, 2, 9, 3), (3, 4, 1, 4, 1), (1, 2, 1, 130, 70)]
            {
                let random = |heads, seq| {
                    Tensor::randn(0f32, 1., (batch, heads, seq, 8), &Device::Cpu)?.to_dtype(dtype)
                };
                let (q, k, v) =
                    (random(heads, seq)?, random(kv_heads, past + seq)?, random(kv_heads, past + seq)?);
                let ours = attention(&q, &k, &v, 0.35, &AttentionMask::Causal)?;
                assert_eq!((ours.dims(), ours.dtype()), (&[batch, seq, heads * 8][..], dtype));
                let ours = ours.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
                let exact = textbook(&q, &k, &v, 0.35)?;
                let error = ours.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0., f64::max);
                assert!(error < tolerance, "{dtype:?} {batch} {heads} {kv_heads} {past} {seq}: {error}");
            }
        }
        Ok(())
    }

    /// Largest difference of two tensors, relative to the largest value.
    fn difference(a: &Tensor, b: &Tensor) -> Result<f64> {
        let largest = |x: &Tensor| x.abs()?.flatten_all()?.max(0)?.to_dtype(DType::F64)?.to_scalar::<f64>();
        Ok(largest(&(a - b)?)? / largest(b)?)
    }

    #[test]
    fn gradients_and_masks_are_those_of_the_composed_form() -> Result<()> {
        use candle_core::Var;
        for (batch, heads, kv_heads, past, seq) in
            [(1, 4, 4, 0, 5), (2, 6, 2, 0, 40), (2, 6, 2, 9, 3), (3, 4, 1, 4, 1), (1, 2, 1, 130, 70)]
        {
            let total = past + seq;
            let random = |heads, seq| Var::randn(0f32, 1., (batch, heads, seq, 8), &Device::Cpu);
            let (q, k, v) = (random(heads, seq)?, random(kv_heads, total)?, random(kv_heads, total)?);
            // Every second key, and the first, so that each query sees one.
            let keys: Vec<u8> = (0..batch * total).map(|n| u8::from(n % total % 2 == 0)).collect();
            let keys = Tensor::from_vec(keys, (batch, total), &Device::Cpu)?;
            for mask in [AttentionMask::Causal, AttentionMask::Full, AttentionMask::Keys(keys)] {
                let gradients = |y: Tensor| -> Result<Vec<Tensor>> {
                    let store = (y.sin()? * 3.)?.sum_all()?.backward()?;
                    Ok([&q, &k, &v].map(|x| store.get(x).expect("a gradient").clone()).into())
                };
                let (ours, theirs) =
                    (ops::attention(&q, &k, &v, 0.35, &mask)?, composed(&q, &k, &v, 0.35, &mask)?);
                assert!(difference(&ours, &theirs)? < 3e-6, "{mask:?} {batch} {heads} {past} {seq}");
                for (ours, theirs) in gradients(ours)?.iter().zip(&gradients(theirs)?) {
                    let error = difference(ours, theirs)?;
                    assert!(error < 2e-5, "{mask:?} {batch} {heads} {kv_heads} {past} {seq}: {error}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn a_query_that_sees_no_key_gives_zero_and_what_is_not_finite_shows() -> Result<()> {
        let x = Tensor::ones((1, 1, 3, 4), DType::F32, &Device::Cpu)?;
        let none = AttentionMask::Keys(Tensor::zeros((1, 3), DType::U8, &Device::Cpu)?);
        let y = ops::attention(&x, &x, &x, 1.0, &none)?.flatten_all()?.to_vec1::<f32>()?;
        assert!(y.iter().all(|y| *y == 0.0), "{y:?}");
        let bad = (x.log()? / 0.0)?;
        let y = ops::attention(&bad, &x, &x, 1.0, &AttentionMask::Full)?.flatten_all()?.to_vec1::<f32>()?;
        assert!(y.iter().all(|y| y.is_nan()), "{y:?}");
        let wide = Tensor::ones((1, 1, 3, 5), DType::F32, &Device::Cpu)?;
        assert!(ops::attention(&x, &wide, &wide, 1.0, &AttentionMask::Full).is_err());
        Ok(())
    }
}
