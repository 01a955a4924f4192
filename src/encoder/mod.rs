//! The encoder of Candle tensors.

mod block_size;

pub use block_size::{BlockSizeScore, BlockSizeWeights};

use crate::{Error, RbeTensor, Result};
use candle_core::{DType, Device, Tensor};
use rbe_core::codec::matrix::Orientation;
use rbe_core::encode::{
    EncoderConfig, Importance, LayerStatistics, MatrixEncoder, MatrixRef, Offer, check_largest,
};
use std::ops::Deref;

/// Turns tensors into compressed ones; for matrices in slices it is the [`MatrixEncoder`] that it derefs to.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_rbe::{Encoder, EncoderConfig, Rate};
///
/// # fn main() -> candle_rbe::Result<()> {
/// let weight = Tensor::randn(0f32, 0.02, (256, 512), &Device::Cpu)?;
/// let encoder = Encoder::new(EncoderConfig::from(Rate::RelativeError(0.1)))?;
/// let compressed = encoder.encode(&weight)?;
/// assert!(compressed.relative_error() <= 0.1);
/// // A Gaussian needs 4.2 bits for that with a uniform quantiser.
/// assert!(compressed.bits_per_weight() < 4.25);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Encoder(MatrixEncoder);

impl Deref for Encoder {
    type Target = MatrixEncoder;

    fn deref(&self) -> &MatrixEncoder {
        &self.0
    }
}

impl Encoder {
    /// An encoder with these settings.
    ///
    /// # Errors
    /// When the settings contradict themselves or are out of range, and as
    /// [`requested_level`](rbe_core::cpu::requested_level).
    pub fn new(config: EncoderConfig) -> Result<Self> {
        Ok(Self(MatrixEncoder::new(config)?))
    }

    /// Compresses a tensor of rank 1 or 2 of any float type and layout.
    ///
    /// # Errors
    /// When the rank is another, a weight is not finite, the largest is beyond 1.1e30 or, not being zero, below 1e-30, or the
    /// rate cannot be reached.
    pub fn encode(&self, weight: &Tensor) -> Result<RbeTensor> {
        self.encode_for(weight, &Importance::default())
    }

    /// Compresses a weight `(out, in)` of a layer of which calibration knows these statistics: the model's predictions,
    /// not the weights, are kept as close as the rate allows.
    ///
    /// # Errors
    /// As [`encode`](Self::encode); when the statistics are those of a weight of another shape or of no token; when the
    /// rate is no number of bits, or the term sparse.
    pub fn encode_calibrated(&self, weight: &Tensor, statistics: &LayerStatistics) -> Result<RbeTensor> {
        self.encode_for(weight, &Importance::of(statistics))
    }

    /// What sizes a weight `(out, in)` can have when it is calibrated, and what each is expected to cost.
    ///
    /// # Errors
    /// When the weight is no matrix or the statistics are those of a weight of another shape.
    pub fn offers(&self, weight: &Tensor, statistics: &LayerStatistics) -> Result<Vec<Offer>> {
        let (rows, cols) = weight.dims2()?;
        let values = weights(weight)?;
        Ok(self.offers_of_matrix(MatrixRef::new(&values, rows, cols), statistics)?)
    }

    /// Compresses a weight of which this is known beside its numbers.
    ///
    /// # Errors
    /// As [`encode_calibrated`](Self::encode_calibrated); when scales are those of another number of columns.
    pub fn encode_for(&self, weight: &Tensor, importance: &Importance<'_>) -> Result<RbeTensor> {
        let (rows, cols, view) = match *weight.dims() {
            [len] => (1, len, Orientation::Vector),
            [rows, cols] => (rows, cols, Orientation::Matrix),
            _ => {
                return Err(Error::shape(format!(
                    "{:?}; only vectors and matrices can be compressed",
                    weight.shape()
                )));
            }
        };
        let values = weights(weight)?;
        let matrix = self.encode_matrix_for(MatrixRef::new(&values, rows, cols), importance)?;
        RbeTensor::from_matrix(&matrix, view)
    }
}

/// A tensor's values in F32, row-major.
///
/// # Errors
/// When they are F64 of a size that F32 makes infinities or zeros of.
fn weights(weight: &Tensor) -> Result<Vec<f32>> {
    let weight = weight.to_device(&Device::Cpu)?;
    if weight.dtype() == DType::F64 {
        let values = weight.flatten_all()?.to_vec1::<f64>()?;
        let magnitudes = values.iter().map(|value| value.abs()).filter(|value| value.is_finite());
        check_largest(magnitudes.fold(0.0, f64::max))?;
    }
    Ok(weight.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}
