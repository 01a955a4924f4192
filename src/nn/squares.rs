//! What one forward shows of a layer: the squares of its inputs.

use crate::Result;
use candle_core::{D, DType, Device, Tensor};
use rbe_core::encode::LayerStatistics;
use std::collections::BTreeMap;

/// Sums over the tokens of one forward of a layer.
#[derive(Debug)]
pub(super) struct Squares {
    name: String,
    outputs: usize,
    sums: Vec<f32>,
    count: u64,
}

impl Squares {
    /// Of a layer's input `x` `(.., in)` and output `y` `(.., out)`.
    pub(super) fn new(name: &str, x: &Tensor, y: &Tensor) -> candle_core::Result<Self> {
        let x = x.reshape(((), x.dim(D::Minus1)?))?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let (outputs, count) = (y.dim(D::Minus1)?, x.dim(0)? as u64);
        Ok(Self { name: name.to_owned(), outputs, sums: x.sqr()?.sum(0)?.to_vec1()?, count })
    }

    /// Adds them to what is known of the layer.
    pub(super) fn add_to(&self, layers: &mut BTreeMap<String, LayerStatistics>) -> Result<()> {
        let new = || LayerStatistics::of_squares(self.outputs, self.sums.len());
        let layer = layers.entry(self.name.clone()).or_insert_with(new);
        layer
            .add_squares(&self.sums, self.count)
            .map_err(|error| crate::Error::from(error).in_tensor(self.name.clone()))
    }
}
