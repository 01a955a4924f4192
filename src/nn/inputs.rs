//! What forwards show of layers, without going back from what they predict: moments of inputs.

use crate::Result;
use candle_core::{D, DType, Device, Tensor, TensorId};
use rbe_core::encode::LayerStatistics;
use std::collections::BTreeMap;

/// Moments of the layers that a model has run.
#[derive(Debug)]
pub(super) struct Inputs {
    /// Products of inputs with each other, not squares alone.
    products: bool,
    /// Of layers that take the same input the first alone has sums.
    layers: BTreeMap<String, LayerStatistics>,
    /// The others: the first one's name, and their own outputs.
    others: BTreeMap<String, (String, usize)>,
    /// The last input and the layer that took it.
    last: Option<(TensorId, String)>,
}

impl Inputs {
    pub(super) fn new(products: bool) -> Self {
        Self { products, layers: BTreeMap::new(), others: BTreeMap::new(), last: None }
    }

    /// What the sums of a layer take, in bytes.
    pub(super) fn bytes(&self, inputs: usize) -> u64 {
        if self.products { 4 * (inputs as u64).pow(2) } else { 8 * inputs as u64 }
    }

    /// Whether a layer takes what the one before took.
    pub(super) fn is_shared(&self, x: &Tensor) -> bool {
        self.last.as_ref().is_some_and(|(id, _)| *id == x.id())
    }

    /// Adds a layer's input `x` `(.., in)`, of which it makes so many outputs.
    ///
    /// # Errors
    /// An input is not finite; Candle's.
    pub(super) fn add(&mut self, name: &str, x: &Tensor, outputs: usize) -> Result<()> {
        if let Some((_, first)) = self.last.as_ref().filter(|(id, _)| *id == x.id())
            && first != name
        {
            self.others.insert(name.to_owned(), (first.clone(), outputs));
            return Ok(());
        }
        self.last = Some((x.id(), name.to_owned()));
        let x = x.reshape(((), x.dim(D::Minus1)?))?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let (count, inputs) = x.dims2()?;
        let products = self.products;
        let new = || match products {
            true => LayerStatistics::new(outputs, inputs),
            false => LayerStatistics::of_squares(outputs, inputs),
        };
        let layer = self.layers.entry(name.to_owned()).or_insert_with(new);
        let added = match products {
            true => layer.add_products(&x.t()?.matmul(&x)?.flatten_all()?.to_vec1()?, count as u64),
            false => layer.add_squares(&x.sqr()?.sum(0)?.to_vec1()?, count as u64),
        };
        added.map_err(|error| crate::Error::from(error).in_tensor(name))
    }

    /// The statistics of every layer.
    pub(super) fn into_layers(self) -> BTreeMap<String, LayerStatistics> {
        let mut layers = self.layers;
        for (name, (first, outputs)) in self.others {
            if let Some(first) = layers.get(&first) {
                let own = first.of_outputs(outputs);
                layers.insert(name, own);
            }
        }
        layers
    }
}
