//! What attention remembers of the tokens it has seen.

use crate::Error;
#[cfg(feature = "cuda")]
use crate::cuda::{CapturedStep, CudaMachine, DeviceDecoder};
use candle_core::{Result, Tensor};
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// Positions allocated at first; the buffers double from there, so that appending costs O(1) per token
/// and a short text on a model of 128k positions does not pay for all of them.
const FIRST_CAPACITY: usize = 64;

/// Keys and values of every layer for the tokens seen so far, owned by the caller.
///
/// Made by a model, or by [`new`](Self::new), and grown by the model's forwards. A forward
/// that fails leaves it as it was. It is not `Clone`: Candle's tensors share their storage, and two caches
/// would write into the same one.
#[derive(Debug)]
pub struct KvCache {
    /// Per layer `(batch, kv_heads, capacity, head_dim)`, keys and values; `None` before the first token.
    layers: Vec<Option<(Tensor, Tensor)>>,
    len: usize,
    context_length: usize,
    /// What takes the next token through a model on a card.
    #[cfg(feature = "cuda")]
    step: Option<CapturedStep<CudaMachine>>,
}

impl KvCache {
    /// An empty cache for a model of `layers` layers and at most `context_length` positions.
    pub fn new(layers: usize, context_length: usize) -> Self {
        Self {
            layers: vec![None; layers],
            len: 0,
            context_length,
            #[cfg(feature = "cuda")]
            step: None,
        }
    }

    /// Number of positions remembered.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keys and values of a layer for the positions remembered, `(batch, kv_heads, len, head_dim)` each; `None` where there are none.
    ///
    /// # Errors
    /// When the layer is not one of those it was made for.
    pub fn layer(&self, layer: usize) -> Result<Option<(Tensor, Tensor)>> {
        let Some(held) = self.layers.get(layer) else {
            let reason = format!("layer {layer} of a key/value cache of {} layers", self.layers.len());
            return Err(Error::shape(reason).into());
        };
        let Some((keys, values)) = held.as_ref().filter(|_| self.len > 0) else { return Ok(None) };
        Ok(Some((keys.narrow(2, 0, self.len)?, values.narrow(2, 0, self.len)?)))
    }

    /// Forgets everything and frees the memory; the next text may have another batch size.
    pub fn reset(&mut self) {
        self.layers.fill(None);
        self.len = 0;
    }

    /// Number of layers it was made for.
    pub(crate) fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// Stores the keys and values `(batch, kv_heads, seq, head_dim)` of new positions and returns those of
    /// all positions. They count only after [`advance`](Self::advance), once every layer has come so far.
    pub(super) fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (past, total) = (self.len, self.len + k.dim(2)?);
        let capacity = self.capacity(total);
        let (keys, values) = match &self.layers[layer] {
            None => (allocate(k, capacity)?, allocate(v, capacity)?),
            Some((keys, values)) => (grow(keys, k, past, capacity)?, grow(values, v, past, capacity)?),
        };
        keys.slice_set(&k.detach(), 2, past)?;
        values.slice_set(&v.detach(), 2, past)?;
        let all = (join(&keys, k, past)?, join(&values, v, past)?);
        self.layers[layer] = Some((keys, values));
        Ok(all)
    }

    /// What takes a token through this decoder.
    #[cfg(feature = "cuda")]
    pub(crate) fn step(
        &mut self,
        decoder: &Arc<DeviceDecoder<CudaMachine>>,
    ) -> crate::Result<&mut CapturedStep<CudaMachine>> {
        match self.step.take().filter(|held| Arc::ptr_eq(held.step().device(), decoder)) {
            Some(step) => Ok(self.step.insert(step)),
            None => Ok(self.step.insert(CapturedStep::new(decoder.clone())?)),
        }
    }

    /// Every layer's buffers `(batch, kv_heads, capacity, head_dim)`, with room for one position more, which counts only after
    /// [`advance`](Self::advance); `None` before the first token.
    pub(crate) fn with_room(&mut self) -> Result<Option<Vec<(Tensor, Tensor)>>> {
        let (past, capacity) = (self.len, self.capacity(self.len + 1));
        let larger = |buffer: &Tensor| -> Result<Tensor> {
            if past < buffer.dim(2)? { Ok(buffer.clone()) } else { enlarged(buffer, past, capacity) }
        };
        for layer in &mut self.layers {
            let Some((keys, values)) = layer else { return Ok(None) };
            *layer = Some((larger(keys)?, larger(values)?));
        }
        Ok(self.layers.iter().cloned().collect())
    }

    /// Positions to allocate for so many.
    fn capacity(&self, total: usize) -> usize {
        total.next_power_of_two().max(FIRST_CAPACITY).min(self.context_length.max(total))
    }

    /// Counts `seq` positions that every layer has appended.
    pub(crate) fn advance(&mut self, seq: usize) {
        self.len += seq;
    }
}

fn allocate(like: &Tensor, capacity: usize) -> Result<Tensor> {
    let (batch, heads, _, width) = like.dims4()?;
    Tensor::zeros((batch, heads, capacity, width), like.dtype(), like.device())
}

/// The buffer itself where the new positions fit, else a larger one with the same `past` positions.
fn grow(buffer: &Tensor, new: &Tensor, past: usize, capacity: usize) -> Result<Tensor> {
    if past > 0 && buffer.dim(0)? != new.dim(0)? {
        let reason = format!(
            "the key/value cache holds a batch of {} and the input is a batch of {}; reset the cache between batches",
            buffer.dim(0)?,
            new.dim(0)?
        );
        return Err(Error::shape(reason).into());
    }
    // At `past == 0` the buffer is the leaving of a failed forward, of whatever batch that was.
    if past > 0 && past + new.dim(2)? <= buffer.dim(2)? {
        return Ok(buffer.clone());
    }
    if past > 0 { enlarged(buffer, past, capacity) } else { allocate(new, capacity) }
}

/// A buffer of this capacity with the same `past` positions.
fn enlarged(buffer: &Tensor, past: usize, capacity: usize) -> Result<Tensor> {
    let larger = allocate(buffer, capacity)?;
    larger.slice_set(&buffer.narrow(2, 0, past)?.contiguous()?, 2, 0)?;
    Ok(larger)
}

/// All positions: read from the buffer, or, where a gradient must reach the new ones, with those in person.
fn join(buffer: &Tensor, new: &Tensor, past: usize) -> Result<Tensor> {
    match (new.track_op(), past) {
        (false, _) => buffer.narrow(2, 0, past + new.dim(2)?),
        (true, 0) => Ok(new.clone()),
        (true, _) => Tensor::cat(&[&buffer.narrow(2, 0, past)?, new], 2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};

    fn positions(range: std::ops::Range<u32>) -> Result<Tensor> {
        let seq = range.len();
        Tensor::arange(range.start, range.end, &Device::Cpu)?.to_dtype(DType::F32)?.reshape((1, 1, seq, 1))
    }

    fn values(x: &Tensor) -> Result<Vec<f32>> {
        x.flatten_all()?.to_vec1()
    }

    #[test]
    fn pieces_of_every_size_come_back_in_order_across_growth() -> Result<()> {
        let mut cache = KvCache::new(1, 200);
        let mut seen = 0;
        for piece in [1, 62, 1, 1, 70, 1, 64] {
            let new = positions(seen..seen + piece)?;
            let (k, v) = cache.append(0, &new, &(&new * 2.)?)?;
            seen += piece;
            cache.advance(piece as usize);
            let expected: Vec<f32> = (0..seen).map(|p| p as f32).collect();
            assert_eq!(values(&k)?, expected);
            assert_eq!(values(&(v / 2.)?)?, expected);
        }
        assert_eq!(cache.len(), 200);
        let (keys, _) = cache.layer(0)?.expect("a layer with keys");
        assert_eq!(values(&keys)?, (0..200).map(|p| p as f32).collect::<Vec<_>>());
        assert!(cache.layer(1).is_err() && KvCache::new(1, 8).layer(0)?.is_none());
        let capacity = cache.layers[0].as_ref().map(|(keys, _)| keys.dims()[2]);
        assert_eq!(capacity, Some(200), "no larger than the context");
        Ok(())
    }

    #[test]
    fn an_uncounted_append_is_written_over() -> Result<()> {
        let mut cache = KvCache::new(1, 64);
        cache.append(0, &positions(0..2)?, &positions(0..2)?)?;
        cache.advance(2);
        cache.append(0, &positions(40..45)?, &positions(40..45)?)?;
        let (k, _) = cache.append(0, &positions(2..3)?, &positions(2..3)?)?;
        assert_eq!(values(&k)?, [0., 1., 2.]);
        Ok(())
    }

    #[test]
    fn gradients_reach_the_new_positions_and_stop_at_the_old() -> Result<()> {
        let mut cache = KvCache::new(1, 64);
        let first = Var::from_tensor(&positions(1..3)?)?;
        let second = Var::from_tensor(&positions(3..4)?)?;
        for (new, seen) in [(&first, 2), (&second, 3)] {
            let (k, v) = cache.append(0, new, new)?;
            cache.advance(new.dim(2)?);
            assert_eq!((k.dim(2)?, v.dim(2)?), (seen, seen));
            let grads = (k.sum_all()? + (v.sum_all()? * 2.)?)?.backward()?;
            let grad = grads.get(new).map(values).transpose()?;
            assert_eq!(grad, Some(vec![3.; new.elem_count()]));
            assert_eq!(grads.get(&first).is_some(), seen == 2);
        }
        Ok(())
    }
}
