//! A compressed matrix on a Candle device.
use candle_core::{Device, Shape, Tensor};
use crate::{Result, encode::Encoder};

/// A compressed tensor (rank 1 or 2).
#[derive(Clone, Debug)]
pub struct RbeTensor { shape: Shape, device: Device }

impl RbeTensor {
    /// The shape of the tensor that was compressed.
    pub fn shape(&self) -> &Shape { &self.shape }
    /// The same tensor with rows and columns exchanged (a view, nothing is moved).
    pub fn t(&self) -> Result<Self> { todo!() }
    /// The device.
    pub fn device(&self) -> &Device { &self.device }
    /// Moves to another device.
    pub fn to_device(&self, _device: &Device) -> Result<Self> { todo!() }
    /// Decodes into an F32 tensor on the same device.
    pub fn dequantize(&self) -> Result<Tensor> { todo!() }
    /// The self-describing payload (FORMAT.md).
    pub fn to_bytes(&self) -> Vec<u8> { todo!() }
    /// Reads and checks a payload; lives on the CPU.
    pub fn from_bytes(_bytes: &[u8]) -> Result<Self> { todo!() }
    /// Bytes of the payload.
    pub fn size_in_bytes(&self) -> usize { todo!() }
    /// 8 * size_in_bytes / elements.
    pub fn bits_per_weight(&self) -> f64 { todo!() }
    /// |W - W^| / |W| as the encoder measured it by decoding.
    pub fn relative_error(&self) -> f64 { todo!() }
    /// One line for people: terms, block, transform.
    pub fn summary(&self) -> String { todo!() }
}

impl Encoder {
    /// Compresses a tensor of rank 1 or 2 (F64, F32, F16 or BF16; any layout; moved to the CPU first).
    pub fn encode(&self, _weight: &Tensor) -> Result<RbeTensor> { todo!() }
}
