//! Causal attention with a cache, shared by every model, and the bookkeeping of a forward pass.

use super::{KvCache, fused};
use crate::Error;
use candle_core::{DType, Device, Result, Tensor};
use std::ops::Range;

/// What all layers of one forward pass share: where its tokens stand, what they may look at, and the cache.
#[derive(Debug)]
pub(super) struct Pass<'c> {
    past: usize,
    seq: usize,
    mask: Option<Tensor>,
    cache: Option<&'c mut KvCache>,
}

impl<'c> Pass<'c> {
    /// Checks the ids `(batch, seq)` and that their positions and the cache fit a model of `layers` layers.
    pub(super) fn begin(
        input_ids: &Tensor,
        cache: Option<&'c mut KvCache>,
        layers: usize,
        context_length: usize,
    ) -> Result<Self> {
        if !matches!(input_ids.dtype(), DType::U32 | DType::I64 | DType::U8) {
            let what = format!("token ids of type {:?}; they are U32, I64 or U8", input_ids.dtype());
            return Err(Error::Unsupported { what }.into());
        }
        let &[batch, seq] = input_ids.dims() else {
            let reason = format!("token ids have shape {:?}, they must be (batch, seq)", input_ids.dims());
            return Err(Error::shape(reason).into());
        };
        if batch == 0 || seq == 0 {
            return Err(
                Error::shape(format!("token ids have shape ({batch}, {seq}); there is no token")).into()
            );
        }
        if let Some(held) = cache.as_ref().map(|cache| cache.layer_count()).filter(|&held| held != layers) {
            let reason = format!("the key/value cache was made for {held} layers and the model has {layers}");
            return Err(Error::shape(reason).into());
        }
        let past = cache.as_ref().map_or(0, |cache| cache.len());
        if past + seq > context_length {
            let reason = format!(
                "{past} positions in the cache and {seq} new ones exceed the model's context of {context_length}"
            );
            return Err(Error::shape(reason).into());
        }
        let mask = causal_mask(past, seq, input_ids.device())?;
        Ok(Self { past, seq, mask, cache })
    }

    /// The positions of this pass's tokens.
    pub(super) fn positions(&self) -> Range<usize> {
        self.past..self.past + self.seq
    }

    /// Attention of this pass's queries to all keys so far.
    ///
    /// `q` `(batch, heads, seq, head_dim)`; `k`, `v` `(batch, kv_heads, seq, head_dim)`, `heads` a multiple of
    /// `kv_heads`; all contiguous. Returns `(batch, seq, heads * head_dim)`.
    pub(super) fn attend(
        &mut self,
        layer: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        scale: f64,
    ) -> Result<Tensor> {
        match &mut self.cache {
            None => attention(q, k, v, scale, self.mask.as_ref()),
            Some(cache) => {
                let (k, v) = cache.append(layer, k, v)?;
                attention(q, &k, &v, scale, self.mask.as_ref())
            }
        }
    }

    /// Every layer is done: the cache now counts this pass's tokens.
    pub(super) fn finish(self) {
        if let Some(cache) = self.cache {
            cache.advance(self.seq);
        }
    }
}

/// Cuts `(batch, seq, heads * head_dim)` into heads: `(batch, heads, seq, head_dim)`, contiguous.
pub(super) fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, seq, width) = x.dims3()?;
    x.reshape((batch, seq, heads, width / heads))?.transpose(1, 2)?.contiguous()
}

/// 0 where query `past + i` sees key `j <= past + i`, minus infinity elsewhere: `(seq, past + seq)`. One
/// query sees everything and needs none.
fn causal_mask(past: usize, seq: usize, device: &Device) -> Result<Option<Tensor>> {
    if seq == 1 {
        return Ok(None);
    }
    let row = |i| (0..past + seq).map(move |j| if j <= past + i { 0f32 } else { f32::NEG_INFINITY });
    let mask: Vec<f32> = (0..seq).flat_map(row).collect();
    Tensor::from_vec(mask, (seq, past + seq), device).map(Some)
}

/// `softmax(scale q k' + mask) v` (Vaswani et al., arXiv 1706.03762), the softmax in F32 for half types.
///
/// Heads that share a key (GQA, arXiv 2305.13245) are stacked as rows of one product, so that keys and
/// values are read once and never repeated in memory.
fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64, mask: Option<&Tensor>) -> Result<Tensor> {
    let (batch, heads, seq, head_dim) = q.dims4()?;
    let (_, kv_heads, total, _) = k.dims4()?;
    // Scaled before the product: a sum of 128 products of large queries and keys overflows F16.
    let queries = (q * scale)?.reshape((batch, kv_heads, heads / kv_heads * seq, head_dim))?;
    let scores = queries.matmul(&k.t()?)?.to_dtype(fused::accumulation_dtype(q.dtype()))?;
    let scores = match mask {
        None => scores,
        Some(mask) => {
            let per_head = scores.reshape((batch, heads, seq, total))?;
            let masked = per_head.broadcast_add(&mask.to_dtype(per_head.dtype())?)?;
            masked.reshape((batch, kv_heads, (), total))?
        }
    };
    let weights = fused::softmax(&scores)?.to_dtype(v.dtype())?;
    let mixed = weights.matmul(v)?;
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
                [(1, 4, 4, 0, 5), (2, 6, 2, 0, 7), (2, 6, 2, 9, 3), (3, 4, 1, 4, 1)]
            {
                let random = |heads, seq| {
                    Tensor::randn(0f32, 1., (batch, heads, seq, 8), &Device::Cpu)?.to_dtype(dtype)
                };
                let (q, k, v) =
                    (random(heads, seq)?, random(kv_heads, past + seq)?, random(kv_heads, past + seq)?);
                let ours = attention(&q, &k, &v, 0.35, causal_mask(past, seq, &Device::Cpu)?.as_ref())?;
                assert_eq!((ours.dims(), ours.dtype()), (&[batch, seq, heads * 8][..], dtype));
                let ours = ours.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
                let exact = textbook(&q, &k, &v, 0.35)?;
                let error = ours.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0., f64::max);
                assert!(error < tolerance, "{dtype:?} {batch} {heads} {kv_heads} {past} {seq}: {error}");
            }
        }
        Ok(())
    }
}
