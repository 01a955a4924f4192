//! A decoder in a device's memory.

use super::decoder::{Decoder, DecoderLayer, Projection};
use crate::cuda::machine::{Element, Machine};
use crate::error::Result;
use crate::step::NormWeights;

/// A norm in the device's memory.
pub(super) struct Norm<M> {
    pub weight: M,
    pub bias: Option<M>,
    pub eps: f32,
}

/// What a layer has there beside its matrices.
pub(super) struct LayerMemory<M> {
    pub norms: [Option<Norm<M>>; 4],
    pub input_biases: Vec<Option<M>>,
    pub output_bias: Option<M>,
    pub inner_biases: Vec<Option<M>>,
    pub down_bias: Option<M>,
    pub head_norm: Option<[M; 2]>,
}

/// A decoder in the device's memory, for whatever threads take tokens through it.
pub struct DeviceDecoder<D: Machine> {
    pub(super) machine: D,
    pub(super) element: Element,
    pub(super) decoder: Decoder<D>,
    pub(super) layers: Vec<LayerMemory<D::Memory>>,
    pub(super) norm: Norm<D::Memory>,
    /// Blocks that share the keys of a head, of each layer.
    pub(super) splits: Vec<usize>,
}

impl<D: Machine> std::fmt::Debug for DeviceDecoder<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceDecoder({} layers, {:?})", self.layers.len(), self.element)
    }
}

impl<D: Machine> Drop for DeviceDecoder<D> {
    fn drop(&mut self) {
        // Another thread's launches may not have run yet.
        let _ = self.machine.wait_for_all();
    }
}

impl<D: Machine> DeviceDecoder<D> {
    /// Lays out what a decoder has beside its matrices; a token's vectors are of `element`. Matrices of one input become one where they can be.
    ///
    /// # Errors
    /// When it does not fit the kernels ([`Decoder::fits`]), sides do not fit together, or the device has not enough memory.
    pub fn new(machine: D, mut decoder: Decoder<D>, element: Element) -> Result<Self>
    where
        D: Clone,
    {
        decoder.check(&machine)?;
        for layer in &mut decoder.layers {
            for projections in [&mut layer.inputs, &mut layer.inner] {
                if let Some(stacked) = Projection::stacked(projections)? {
                    *projections = vec![stacked];
                }
            }
        }
        let numbers = |values: &[f32]| machine.upload(&Element::F32.encode(values));
        let norm = |norm: &NormWeights| -> Result<Norm<D::Memory>> {
            let bias = norm.bias.as_deref().map(numbers).transpose()?;
            Ok(Norm { weight: numbers(&norm.weight)?, bias, eps: norm.eps as f32 })
        };
        let bias = |projection: &Projection<D>| -> Result<Option<D::Memory>> {
            projection.bias.as_ref().map(|bias| machine.upload(&element.encode(bias))).transpose()
        };
        let memory_of = |layer: &DecoderLayer<D>| -> Result<LayerMemory<D::Memory>> {
            let [a, b, c, d] = layer.norms.each_ref().map(|weights| weights.as_ref().map(norm).transpose());
            let head_norm =
                layer.heads.norm.as_ref().map(|norm| -> Result<_> {
                    Ok([numbers(&norm.weights[0])?, numbers(&norm.weights[1])?])
                });
            Ok(LayerMemory {
                norms: [a?, b?, c?, d?],
                input_biases: layer.inputs.iter().map(bias).collect::<Result<_>>()?,
                output_bias: bias(&layer.output)?,
                inner_biases: layer.inner.iter().map(bias).collect::<Result<_>>()?,
                down_bias: bias(&layer.down)?,
                head_norm: head_norm.transpose()?,
            })
        };
        let layers = decoder.layers.iter().map(memory_of).collect::<Result<Vec<_>>>()?;
        let last = norm(&decoder.norm)?;
        let splits: Vec<_> =
            decoder.layers.iter().map(|layer| layer.heads.splits(machine.multiprocessors())).collect();
        for projection in decoder.layers.iter().flat_map(DecoderLayer::projections) {
            projection.matrix.prepare(projection.transposed)?;
        }
        machine.wait()?;
        Ok(Self { machine, element, decoder, layers, norm: last, splits })
    }

    /// The device.
    pub fn machine(&self) -> &D {
        &self.machine
    }

    /// What vectors are made of.
    pub fn element(&self) -> Element {
        self.element
    }

    /// What was laid out.
    pub fn decoder(&self) -> &Decoder<D> {
        &self.decoder
    }
}
