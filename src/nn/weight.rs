//! A weight as models hold and pass it on: dense, or compressed until somebody looks at it as a tensor.

use super::decoded::{DecodeReason, note};
use crate::{Error, RbeTensor, Result};
use candle_core::shape::Dim;
use candle_core::{DType, Device, Shape, Tensor, TensorId};
use std::borrow::Borrow;
use std::ops::Deref;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

/// A dense tensor, or a compressed one that behaves as the tensor it decodes to.
///
/// [`Linear::weight`](super::Linear::weight) and [`Embedding::embeddings`](super::Embedding::embeddings) return it, and
/// their constructors take it, so that `Linear::new(embeddings.embeddings().clone(), None)`, Candle's way to tie a head to
/// its token table, shares the compressed table. Clones share the weight and what it decodes to.
///
/// Shape, type and device are known without decoding. Any other method is [`Tensor`]'s, by `Deref`: the first of them
/// decodes the weight, and the dense copy is kept as long as a clone of the weight. Each is counted
/// ([`decoded_weights`](super::decoded_weights)).
///
/// ```
/// use candle_core::{Device, Result, Tensor};
/// use candle_nn::Module;
/// use candle_rbe::nn::{Embedding, Linear, Weight};
/// use candle_rbe::{Encoder, EncoderConfig, Rate};
///
/// # fn main() -> Result<()> {
/// let table = Tensor::randn(0f32, 0.1, (96, 64), &Device::Cpu)?;
/// let compressed = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(4.2)))?.encode(&table)?;
/// let embeddings = Embedding::new(compressed, 64);
/// let head = Linear::new(embeddings.embeddings().clone(), None);
/// let states = embeddings.forward(&Tensor::new(&[3u32, 95], &Device::Cpu)?)?;
/// assert_eq!(head.forward(&states)?.dims(), [2, 96]);
/// assert!(head.weight().rbe().is_some()); // nothing was decoded but two rows
///
/// let norms = head.weight().sqr()?.sum(1)?; // a tensor's method: here it is
/// # assert_eq!(norms.dims(), [96]);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Weight(Form);

#[derive(Clone, Debug)]
enum Form {
    Dense(Tensor),
    Compressed(Arc<Compressed>),
}

struct Compressed {
    tensor: RbeTensor,
    /// The tensor's, or one of as many elements whose first side is the matrix' rows.
    shape: Shape,
    /// The type of the dense copy.
    dtype: DType,
    /// The path in the model; empty where the weight came from nowhere.
    name: String,
    dense: OnceLock<Tensor>,
}

impl std::fmt::Debug for Compressed {
    /// A line, not the dense copy.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let decoded = if self.dense.get().is_some() { ", decoded" } else { "" };
        write!(f, "{:?} as {:?}{decoded}", self.tensor, self.dtype)
    }
}

impl Compressed {
    fn dense(&self, reason: DecodeReason) -> Result<&Tensor> {
        if let Some(dense) = self.dense.get() {
            return Ok(dense);
        }
        let dense = self.tensor.dequantize()?.reshape(&self.shape)?.to_dtype(self.dtype)?;
        note(&self.name, &dense, reason);
        Ok(self.dense.get_or_init(|| dense))
    }
}

/// What was read from which payload and is still there: a builder gives the same tensor for names that are tied.
static READ: Mutex<Vec<(TensorId, Weak<Compressed>)>> = Mutex::new(Vec::new());

impl Weight {
    /// What was read from this payload before, on this device, while a weight has it.
    pub(super) fn read_before(payload: &Tensor, device: &Device) -> Option<RbeTensor> {
        let read = READ.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |(id, weight): &(TensorId, Weak<Compressed>)| {
            weight
                .upgrade()
                .filter(|weight| *id == payload.id() && weight.tensor.device().same_device(device))
        };
        read.iter().find_map(same).map(|weight| weight.tensor.clone())
    }

    /// Remembers which payload the weight was read from, unless it is a variable, which can change.
    pub(super) fn was_read_from(&self, payload: &Tensor) {
        let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
        read.retain(|(_, weight)| weight.strong_count() > 0);
        if let Form::Compressed(weight) = &self.0
            && !payload.is_variable()
        {
            read.push((payload.id(), Arc::downgrade(weight)));
        }
    }

    /// A compressed weight that decodes to a tensor of this type.
    pub fn compressed(tensor: RbeTensor, dtype: DType) -> Self {
        Self::named(tensor, dtype, String::new())
    }

    /// The same with its path in the model.
    pub(super) fn named(tensor: RbeTensor, dtype: DType, name: String) -> Self {
        let shape = tensor.shape().clone();
        Self::of(Compressed { tensor, shape, dtype, name, dense: OnceLock::new() })
    }

    fn of(compressed: Compressed) -> Self {
        Self(Form::Compressed(Arc::new(compressed)))
    }

    /// The weight with its elements in another shape: as a kernel `(out, in, height, width)` a compressed matrix
    /// `(out, in height width)`, which is shared.
    ///
    /// # Errors
    /// When the shape has another number of elements; when a compressed weight's has not as many elements in its first side.
    pub fn reshaped(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        match &self.0 {
            Form::Dense(tensor) => Ok(tensor.reshape(shape)?.into()),
            Form::Compressed(compressed) => {
                let own = &compressed.shape;
                if (own.dims().first(), own.elem_count()) != (shape.dims().first(), shape.elem_count()) {
                    return Err(Error::shape(format!(
                        "a compressed weight of shape {own:?} is none of {shape:?}"
                    )));
                }
                let Compressed { tensor, dtype, name, .. } = &**compressed;
                let (tensor, name) = (tensor.clone(), name.clone());
                Ok(Self::of(Compressed { tensor, shape, dtype: *dtype, name, dense: OnceLock::new() }))
            }
        }
    }

    /// A compressed weight in the shape of its matrix; `None` of a dense one.
    pub(super) fn matrix(&self) -> Option<Self> {
        self.rbe().and_then(|tensor| self.reshaped(tensor.shape().clone()).ok())
    }

    /// The compressed tensor; `None` of a dense weight.
    pub fn rbe(&self) -> Option<&RbeTensor> {
        match &self.0 {
            Form::Dense(_) => None,
            Form::Compressed(compressed) => Some(&compressed.tensor),
        }
    }

    /// The dense tensor; a compressed weight is decoded once and keeps it.
    ///
    /// # Errors
    /// When there is no memory for it; Candle's.
    pub fn tensor(&self) -> Result<&Tensor> {
        self.tensor_for(DecodeReason::LookedAt)
    }

    /// The dense tensor, for this reason.
    pub(super) fn tensor_for(&self, reason: DecodeReason) -> Result<&Tensor> {
        match &self.0 {
            Form::Dense(tensor) => Ok(tensor),
            Form::Compressed(compressed) => compressed.dense(reason),
        }
    }

    /// The shape, as that of a tensor.
    pub fn shape(&self) -> &Shape {
        match &self.0 {
            Form::Dense(tensor) => tensor.shape(),
            Form::Compressed(compressed) => &compressed.shape,
        }
    }

    /// The sides, as those of a tensor.
    pub fn dims(&self) -> &[usize] {
        self.shape().dims()
    }

    /// One side, as that of a tensor.
    ///
    /// # Errors
    /// When there is no such side.
    pub fn dim<D: Dim>(&self, dim: D) -> candle_core::Result<usize> {
        Ok(self.dims()[dim.to_index(self.shape(), "dim")?])
    }

    /// Both sides of a matrix.
    ///
    /// # Errors
    /// When the weight is none.
    pub fn dims2(&self) -> candle_core::Result<(usize, usize)> {
        self.shape().dims2()
    }

    /// Number of sides, as that of a tensor.
    pub fn rank(&self) -> usize {
        self.shape().rank()
    }

    /// Number of elements, as that of a tensor.
    pub fn elem_count(&self) -> usize {
        self.shape().elem_count()
    }

    /// The type of the tensor, dense or once decoded.
    pub fn dtype(&self) -> DType {
        match &self.0 {
            Form::Dense(tensor) => tensor.dtype(),
            Form::Compressed(compressed) => compressed.dtype,
        }
    }

    /// The device, as that of a tensor.
    pub fn device(&self) -> &Device {
        match &self.0 {
            Form::Dense(tensor) => tensor.device(),
            Form::Compressed(compressed) => compressed.tensor.device(),
        }
    }
}

impl Deref for Weight {
    type Target = Tensor;

    /// The tensor, as [`tensor`](Weight::tensor).
    ///
    /// # Panics
    /// When a compressed weight cannot be decoded, for want of memory.
    fn deref(&self) -> &Tensor {
        self.tensor().unwrap_or_else(|error| panic!("a compressed weight used as a tensor: {error}"))
    }
}

impl AsRef<Tensor> for Weight {
    fn as_ref(&self) -> &Tensor {
        self
    }
}

impl Borrow<Tensor> for Weight {
    fn borrow(&self) -> &Tensor {
        self
    }
}

impl Borrow<Tensor> for &Weight {
    fn borrow(&self) -> &Tensor {
        self
    }
}

impl From<Tensor> for Weight {
    fn from(tensor: Tensor) -> Self {
        Self(Form::Dense(tensor))
    }
}

impl From<RbeTensor> for Weight {
    /// A weight that decodes to F32.
    fn from(tensor: RbeTensor) -> Self {
        Self::compressed(tensor, DType::F32)
    }
}

impl From<&Weight> for Weight {
    fn from(weight: &Weight) -> Self {
        weight.clone()
    }
}

impl From<Weight> for Tensor {
    fn from(weight: Weight) -> Self {
        (*weight).clone()
    }
}
