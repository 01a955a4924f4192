//! Which compressed weights were decoded, and why: where a model has not been swapped, or not wholly.

use candle_core::{DType, Tensor};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Why a compressed weight was decoded as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum DecodeReason {
    /// A `VarBuilder` was asked for it by its plain name, as Candle's own layers do: the layer was not swapped.
    AskedByName,
    /// A model used the weight of a layer as a tensor ([`Weight`](super::Weight)): it multiplies by itself, adds an adapter,
    /// or cuts the weight.
    LookedAt,
    /// The model computes in F64, which compressed products do not: Candle's product with the decoded weight does.
    DoublePrecision,
    /// A convolution whose patches overlap, or in groups: Candle's with the decoded weight does it.
    Convolution,
    /// A builder of shards was asked for a part of it.
    Shard,
}

impl fmt::Display for DecodeReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AskedByName => "asked for by its plain name: is the layer Candle's own, not swapped?",
            Self::LookedAt => "the model used its layer's weight as a tensor",
            Self::DoublePrecision => "products in F64 are Candle's",
            Self::Convolution => "convolutions whose patches overlap, or in groups, are Candle's",
            Self::Shard => "asked for in shards",
        })
    }
}

/// A compressed weight that was decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodedWeight {
    /// Its name in the file; empty where the weight came from no file.
    pub name: String,
    /// Why.
    pub reason: DecodeReason,
    /// The shape decoded, a shard's of a shard.
    pub shape: Vec<usize>,
    /// The type it was asked for in.
    pub dtype: DType,
    /// How often.
    pub times: u64,
}

impl DecodedWeight {
    /// Bytes that one dense copy takes.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size_in_bytes()
    }
}

impl fmt::Display for DecodedWeight {
    /// `model.embed_tokens.weight [96, 64] decoded to 24576 bytes of F32, once: ...`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.name.is_empty() { "a weight without a name" } else { &self.name };
        let times = match self.times {
            1 => "once".to_owned(),
            times => format!("{times} times"),
        };
        let (shape, bytes, dtype, reason) = (&self.shape, self.bytes(), self.dtype, self.reason);
        write!(f, "{name} {shape:?} decoded to {bytes} bytes of {dtype:?}, {times}: {reason}")
    }
}

type Key = (String, DecodeReason);

/// Of all models in the process: a `VarBuilder` is Candle's type and can be asked for tensors alone.
static DECODED: Mutex<BTreeMap<Key, DecodedWeight>> = Mutex::new(BTreeMap::new());

fn lock() -> MutexGuard<'static, BTreeMap<Key, DecodedWeight>> {
    DECODED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes note of a weight that was decoded to `dense`.
pub(crate) fn note(name: &str, dense: &Tensor, reason: DecodeReason) {
    let new = || DecodedWeight {
        name: name.to_owned(),
        reason,
        shape: dense.dims().to_vec(),
        dtype: dense.dtype(),
        times: 0,
    };
    lock().entry((name.to_owned(), reason)).or_insert_with(new).times += 1;
}

/// The compressed weights that were decoded as a whole in this process, in the order of their names, and why. A model that
/// is wholly swapped decodes none, and takes the memory of the compressed form alone.
///
/// Rows that an [`Embedding`](super::Embedding) decodes are not counted, nor what is decoded on purpose: by
/// [`RbeTensor::dequantize`](crate::RbeTensor::dequantize), [`archive::decode`](crate::archive::decode()), a
/// [`DecodeMode`](super::DecodeMode).
pub fn decoded_weights() -> Vec<DecodedWeight> {
    lock().values().cloned().collect()
}

/// Forgets what was decoded so far, to begin a count.
pub fn reset_decoded_weights() {
    lock().clear();
}
