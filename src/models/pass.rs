//! The beginning of every causal forward pass.

use super::KvCache;
use crate::Error;
use crate::nn::AttentionPass;
use candle_core::{DType, Result, Tensor};

/// Checks the ids `(batch, seq)` and that their positions and the cache fit a model of `layers` layers.
pub(super) fn begin<'c>(
    input_ids: &Tensor,
    cache: Option<&'c mut KvCache>,
    layers: usize,
    context_length: usize,
) -> Result<AttentionPass<'c>> {
    let (_, seq) = check_ids(input_ids)?;
    if let Some(held) = cache.as_ref().map(|cache| cache.layer_count()).filter(|&held| held != layers) {
        let reason = format!("the key/value cache was made for {held} layers and the model has {layers}");
        return Err(Error::shape(reason).into());
    }
    let past = cache.as_ref().map_or(0, |cache| cache.len());
    if past + seq > context_length {
        return Err(Error::Context { context: context_length, past, new: seq }.into());
    }
    Ok(AttentionPass::causal(seq, cache))
}

/// The shape of token ids, of which there is at least one.
pub(super) fn check_ids(input_ids: &Tensor) -> Result<(usize, usize)> {
    if !matches!(input_ids.dtype(), DType::U32 | DType::I64 | DType::U8) {
        let what = format!("token ids of type {:?}; they are U32, I64 or U8", input_ids.dtype());
        return Err(Error::unsupported(what).into());
    }
    let &[batch, seq] = input_ids.dims() else {
        let reason = format!("token ids have shape {:?}, they must be (batch, seq)", input_ids.dims());
        return Err(Error::shape(reason).into());
    };
    if batch == 0 || seq == 0 {
        return Err(Error::shape(format!("token ids have shape ({batch}, {seq}); there is no token")).into());
    }
    Ok((batch, seq))
}

/// What is said of a logit that no sampler and no measure can use.
pub(super) fn not_finite(token: usize, logit: f32) -> Error {
    Error::config(format!(
        "the model's logit of token {token} is {logit}; a weight is not finite, or states overflow: verify the model"
    ))
}
