//! Attention over layers that are dense or compressed, with a cache, and what all layers of a forward pass share.

use super::causal::{CausalMask, CausalMasks, hidden};
use super::norm::{has_kernel, has_op};
use super::rope::Rotation;
use super::step::Find;
use super::{KvCache, Linear, RbeRmsNorm, Rope, forward_all};
use crate::ops::{self, AttentionMask};
use crate::step::{HeadNorm, Heads, Projection};
use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::Module;
use std::ops::Range;

/// What all layers of one forward pass share: where its tokens stand, what they may look at, and the cache.
#[derive(Debug)]
pub struct AttentionPass<'c> {
    past: usize,
    seq: usize,
    mask: AttentionMask,
    masks: CausalMasks,
    rotations: Vec<Rotation>,
    cache: Option<&'c mut KvCache>,
}

/// How queries and keys are compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scoring {
    /// What multiplies `q k'`, usually `1 / sqrt(head_dim)`.
    pub scale: f64,
    /// Scores `s` become `c tanh(s / c)` before the softmax.
    pub softcap: Option<f64>,
    /// How many positions a causal query sees, its own counted: those before are hidden.
    pub window: Option<usize>,
    /// Which of the pass's rotations turns queries and keys; a pass without any turns none.
    pub rotation: Option<usize>,
}

impl From<f64> for Scoring {
    /// A plain scale and the first rotation.
    fn from(scale: f64) -> Self {
        Self { scale, softcap: None, window: None, rotation: Some(0) }
    }
}

impl<'c> AttentionPass<'c> {
    /// A pass of `seq` new positions after those in the cache; each sees those before it and itself.
    pub fn causal(seq: usize, cache: Option<&'c mut KvCache>) -> Self {
        let past = cache.as_ref().map_or(0, |cache| cache.len());
        Self {
            past,
            seq,
            mask: AttentionMask::Causal,
            masks: CausalMasks::default(),
            rotations: vec![],
            cache,
        }
    }

    /// A pass in which every position sees all, or with a mask `(batch, seq)` those whose entry is not zero.
    pub fn full(seq: usize, mask: Option<Tensor>) -> Self {
        let mask = mask.map_or(AttentionMask::Full, AttentionMask::Keys);
        Self { past: 0, seq, mask, masks: CausalMasks::default(), rotations: vec![], cache: None }
    }

    /// The same pass with one more rotation of queries and keys by their positions, for heads of `head_dim` elements.
    ///
    /// # Errors
    /// Candle's.
    pub fn rotated(mut self, rope: &Rope, head_dim: usize, dtype: DType, device: &Device) -> Result<Self> {
        self.rotations.push(Rotation::new(rope, head_dim, self.positions(), dtype, device)?);
        Ok(self)
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
    pub fn attend(
        &mut self,
        layer: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        scoring: impl Into<Scoring>,
    ) -> Result<Tensor> {
        let scoring = scoring.into();
        let rotation = scoring.rotation.and_then(|index| self.rotations.get(index));
        let turn = |x: &Tensor| rotation.map_or_else(|| Ok(x.clone()), |r| r.apply(x));
        let (q, k) = (turn(q)?, turn(k)?);
        match &mut self.cache {
            None => attention(&q, &k, v, scoring, &self.mask, &mut self.masks),
            Some(cache) => {
                let (k, v) = cache.append(layer, &k, v)?;
                attention(&q, &k, &v, scoring, &self.mask, &mut self.masks)
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

/// Norms of queries and keys, before they are rotated.
#[derive(Clone, Debug)]
pub enum QueryKeyNorm {
    /// Of each head's, with weights `(head_dim)`.
    PerHead {
        /// Of the queries.
        q: RbeRmsNorm,
        /// Of the keys.
        k: RbeRmsNorm,
    },
    /// Of all heads' together, with weights `(heads * head_dim)` and `(kv_heads * head_dim)`.
    Whole {
        /// Of the queries.
        q: RbeRmsNorm,
        /// Of the keys.
        k: RbeRmsNorm,
    },
}

/// An attention as a token's step takes it.
pub(crate) struct AttentionStep<M> {
    pub inputs: Vec<Projection<M>>,
    pub heads: Heads,
    pub output: Projection<M>,
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
    scoring: Scoring,
    norm: Option<QueryKeyNorm>,
}

impl RbeAttention {
    /// Puts a layer together; the scoring may be a number, which multiplies `q k'`, usually `1 / sqrt(head_dim)`.
    pub fn new(
        projections: Projections,
        out: Linear,
        heads: usize,
        kv_heads: usize,
        scoring: impl Into<Scoring>,
    ) -> Self {
        Self { projections, out, heads, kv_heads, scoring: scoring.into(), norm: None }
    }

    /// The same with norms of queries and keys.
    pub fn with_norm(self, norm: QueryKeyNorm) -> Self {
        Self { norm: Some(norm), ..self }
    }

    /// `(batch, seq, hidden)` to `(batch, seq, hidden)`; `layer` is that of the pass's cache.
    ///
    /// # Errors
    /// When a shape does not fit.
    pub fn forward(&self, x: &Tensor, layer: usize, pass: &mut AttentionPass) -> Result<Tensor> {
        self.output(&self.heads(x, layer, pass)?)
    }

    /// What the heads make of `x` `(batch, seq, hidden)`, side by side: `(batch, seq, heads * head_dim)`, the input of
    /// [`output`](Self::output).
    ///
    /// # Errors
    /// When a shape does not fit.
    pub fn heads(&self, x: &Tensor, layer: usize, pass: &mut AttentionPass) -> Result<Tensor> {
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
        let (q, k) = match &self.norm {
            Some(QueryKeyNorm::Whole { q: of_q, k: of_k }) => {
                (of_q.forward(&q.contiguous()?)?, of_k.forward(&k.contiguous()?)?)
            }
            _ => (q, k),
        };
        let (q, k) = (split_heads(&q, self.heads)?, split_heads(&k, self.kv_heads)?);
        let v = split_heads(&v, self.kv_heads)?;
        let (q, k) = match &self.norm {
            Some(QueryKeyNorm::PerHead { q: of_q, k: of_k }) => (of_q.forward(&q)?, of_k.forward(&k)?),
            _ => (q, k),
        };
        pass.attend(layer, &q, &k, &v, self.scoring)
    }

    /// The last layer alone: from what [`heads`](Self::heads) returns to the output.
    ///
    /// # Errors
    /// When the shape does not fit.
    pub fn output(&self, heads: &Tensor) -> Result<Tensor> {
        self.out.forward(heads)
    }

    /// The layer as a token's step takes it: its inputs, heads and output; `None` where a part is not compressed, or trained.
    pub(crate) fn step<M>(&self, find: &Find<M>) -> Result<Option<AttentionStep<M>>> {
        let inputs = match &self.projections {
            Projections::Separate { q, k, v } => vec![q, k, v],
            Projections::Joined(joined) => vec![joined],
        };
        let inputs = inputs.into_iter().map(|linear| linear.projection(find)).collect::<Result<Vec<_>>>()?;
        let (Some(inputs), Some(output)) = (inputs.into_iter().collect(), self.out.projection(find)?) else {
            return Ok(None);
        };
        let norm = match &self.norm {
            None => None,
            Some(QueryKeyNorm::PerHead { q, k }) => Some((false, q, k)),
            Some(QueryKeyNorm::Whole { q, k }) => Some((true, q, k)),
        };
        let norm = match norm {
            None => None,
            Some((of_all, q, k)) => match (q.step()?, k.step()?) {
                (Some(q), Some(k)) => Some(HeadNorm { of_all, weights: [q.weight, k.weight], eps: q.eps }),
                _ => return Ok(None),
            },
        };
        let Scoring { scale, softcap, window, rotation } = self.scoring;
        let width = self.width()?;
        let heads = Heads {
            heads: self.heads,
            kv_heads: self.kv_heads,
            width,
            scale,
            softcap,
            window,
            rotation,
            norm,
        };
        Ok(Some(AttentionStep { inputs, heads, output }))
    }

    /// Counts a token that went through its linear layers elsewhere.
    #[cfg(feature = "cuda")]
    pub(crate) fn count_token(&self) {
        match &self.projections {
            Projections::Separate { q, k, v } => [q, k, v].into_iter().for_each(Linear::count_token),
            Projections::Joined(joined) => joined.count_token(),
        }
        self.out.count_token();
    }

    /// Elements of a head.
    fn width(&self) -> Result<usize> {
        let (_, outputs) = self.out.weight().dims2()?;
        Ok(outputs / self.heads)
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

/// Queries taken at once where all scores are held: of a window, a few keys more than it has.
const QUERIES: usize = 128;
/// Scores of a head that are held at once, but for those of so many queries.
const SCORES: usize = 1 << 21;

/// `softmax(cap(scale q k') + mask) v`: this crate's op where it takes the tensors and what is asked of them, composed
/// elsewhere. Memory is linear in the sequence: of a head's scores no more are held than [`SCORES`], or those of [`QUERIES`].
fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scoring: Scoring,
    mask: &AttentionMask,
    masks: &mut CausalMasks,
) -> Result<Tensor> {
    let (seq, total) = (q.dim(2)?, k.dim(2)?);
    let causal = matches!(mask, AttentionMask::Causal);
    let window = scoring.window.filter(|&window| causal && window < total);
    let scoring = Scoring { window, ..scoring };
    let is_plain = window.is_none() && scoring.softcap.is_none();
    if is_plain && has_op(q) {
        return ops::attention(q, k, v, scoring.scale, mask);
    }
    if !causal || (is_plain && seq * total <= SCORES) {
        return composed(q, k, v, scoring, mask, masks);
    }
    let past = total - seq;
    let at_once = if is_plain { (SCORES / total).max(QUERIES) } else { QUERIES };
    let mut part = |first: usize| {
        let count = at_once.min(seq - first);
        // The keys that any of these queries sees.
        let end = past + first + count;
        let begin = window.map_or(0, |window| (past + first + 1).saturating_sub(window));
        let keys = |x: &Tensor| x.narrow(2, begin, end - begin);
        let (q, k, v) = (q.narrow(2, first, count)?.contiguous()?, keys(k)?, keys(v)?);
        match window.filter(|&window| window < end - begin) {
            None if scoring.softcap.is_none() && has_op(&q) => {
                ops::attention(&q, &k, &v, scoring.scale, mask)
            }
            window => composed(&q, &k, &v, Scoring { window, ..scoring }, mask, masks),
        }
    };
    let parts = (0..seq).step_by(at_once).map(&mut part).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&parts, 1)
}

/// Attention out of Candle's operations, the softmax in F32 for half types: for other devices and F64, for windows and for
/// capped scores.
///
/// Heads that share a key are stacked as rows of one product, so that keys and values are read once and never repeated in
/// memory.
fn composed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scoring: Scoring,
    mask: &AttentionMask,
    masks: &mut CausalMasks,
) -> Result<Tensor> {
    let (batch, heads, seq, head_dim) = q.dims4()?;
    let (_, kv_heads, total, _) = k.dims4()?;
    let dtype = if q.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let mask = match mask {
        AttentionMask::Full => None,
        AttentionMask::Causal if seq == 1 && scoring.window.is_none() => None,
        AttentionMask::Causal => {
            let window = scoring.window.unwrap_or(total);
            Some(masks.get(CausalMask { queries: seq, keys: total, window, dtype }, q.device())?)
        }
        AttentionMask::Keys(keys) => Some(hidden(&keys.ne(0u32)?.reshape((batch, 1, 1, total))?, dtype)?),
    };
    // Scaled before the product: a sum of 128 products of large queries and keys overflows F16.
    let queries = (q * scoring.scale)?.reshape((batch, kv_heads, heads / kv_heads * seq, head_dim))?;
    let scores = queries.matmul(&k.t()?)?.to_dtype(dtype)?;
    let scores = match scoring.softcap {
        None => scores,
        Some(cap) => ((scores / cap)?.tanh()? * cap)?,
    };
    let scores = match mask {
        None => scores,
        Some(mask) => {
            let masked = scores.reshape((batch, heads, seq, total))?.broadcast_add(&mask)?;
            masked.reshape((batch, kv_heads, (), total))?
        }
    };
    let weights = match has_kernel(&scores) {
        true => candle_nn::ops::softmax_last_dim(&scores)?,
        false => candle_nn::ops::softmax(&scores, D::Minus1)?,
    };
    let mixed = weights.to_dtype(v.dtype())?.matmul(v)?;
    mixed.reshape((batch, heads, seq, head_dim))?.transpose(1, 2)?.reshape((batch, seq, heads * head_dim))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, one query at a time in F64.
    fn textbook(q: &Tensor, k: &Tensor, v: &Tensor, scoring: Scoring) -> Result<Vec<f64>> {
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
            let end = total - seq + i + 1;
            let seen = end.saturating_sub(scoring.window.unwrap_or(total))..end;
            let dot = |j| query.iter().zip(row(&k, j)).map(|(q, k)| q * k).sum::<f64>();
            let capped = |s: f64| scoring.softcap.map_or(s, |cap| cap * (s / cap).tanh());
            let weights: Vec<f64> = seen.clone().map(|j| capped(dot(j) * scoring.scale).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for (j, weight) in seen.zip(weights) {
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
                [(1, 4, 4, 0, 5), (2, 6, 2, 0, 7), (2, 6, 2, 9, 3), (3, 4, 1, 4, 1), (1, 2, 1, 130, 170)]
            {
                let random = |heads, seq| {
                    Tensor::randn(0f32, 1., (batch, heads, seq, 8), &Device::Cpu)?.to_dtype(dtype)
                };
                let (q, k, v) =
                    (random(heads, seq)?, random(kv_heads, past + seq)?, random(kv_heads, past + seq)?);
                for (window, softcap) in
                    [(None, None), (Some(3), None), (None, Some(0.8)), (Some(150), None), (Some(7), Some(2.))]
                {
                    let scoring = Scoring { window, softcap, ..Scoring::from(0.35) };
                    let ours =
                        attention(&q, &k, &v, scoring, &AttentionMask::Causal, &mut CausalMasks::default())?;
                    assert_eq!((ours.dims(), ours.dtype()), (&[batch, seq, heads * 8][..], dtype));
                    let ours = ours.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
                    let exact = textbook(&q, &k, &v, scoring)?;
                    let error = ours.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0., f64::max);
                    assert!(
                        error < tolerance,
                        "{dtype:?} {batch} {heads} {kv_heads} {past} {seq} {scoring:?}: {error}"
                    );
                }
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
    fn a_long_sequence_goes_in_parts() -> Result<()> {
        let (seq, past) = (1100, 1000);
        assert!(seq * (seq + past) > SCORES);
        let random = |heads, seq| Tensor::randn(0f64, 1., (1, heads, seq, 4), &Device::Cpu);
        let (q, k, v) = (random(2, seq)?, random(1, past + seq)?, random(1, past + seq)?);
        let mut masks = CausalMasks::default();
        let ours = attention(&q, &k, &v, 0.5.into(), &AttentionMask::Causal, &mut masks)?;
        let whole = composed(&q, &k, &v, 0.5.into(), &AttentionMask::Causal, &mut masks)?;
        let error = (ours - whole)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?;
        assert!(error < 1e-12, "{error}");
        Ok(())
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
                let (ours, theirs) = (
                    ops::attention(&q, &k, &v, 0.35, &mask)?,
                    composed(&q, &k, &v, Scoring::from(0.35), &mask, &mut CausalMasks::default())?,
                );
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
