//! One token through a model, where all of its layers are compressed: this crate's kernels and nothing else. On a device they are launches,
//! which a CUDA graph holds; on the CPU calls, between which no tensor is made.

use super::Model;
use crate::RbeTensor;
use crate::cuda::{DeviceDecoder, DeviceMatrix, Element, Machine};
use crate::nn::{Find, Rope};
use crate::step::Decoder;
use candle_core::Result;
use std::sync::Arc;

/// Where a compressed tensor's matrix is on a device; `None` where it is not.
pub type OnDevice<'a, D> = dyn Fn(&RbeTensor) -> Option<Arc<DeviceMatrix<D>>> + 'a;

impl Model {
    /// The model as tokens go through it one by one, from the embedding to the state after the last norm; `find` finds what is multiplied
    /// with. `None` where a layer is not compressed, is decoded first, watched or trained, or has experts.
    pub(super) fn decoder<M>(&self, find: &Find<M>) -> Result<Option<Decoder<M>>> {
        let layers = self.layers.iter().map(|layer| layer.step(find)).collect::<Result<Vec<_>>>()?;
        let (Some(layers), Some(norm)) = (layers.into_iter().collect::<Option<Vec<_>>>(), self.norm.step()?)
        else {
            return Ok(None);
        };
        Ok(Some(Decoder {
            hidden: self.config.hidden_size,
            layers,
            norm,
            residual_multiplier: self.config.residual_multiplier.unwrap_or(1.),
            rotations: self.ropes.iter().map(|(rope, width)| rope.width(*width)).collect(),
        }))
    }

    /// The model as tokens go through it one by one on a device ([`TokenStep`](crate::cuda::TokenStep)). `on_device` finds the layers'
    /// matrices there.
    ///
    /// `None` where a layer is not compressed, is decoded first, watched or trained, or has experts, and where its sides do not
    /// fit the kernels ([`Decoder::fits`](crate::cuda::Decoder::fits)).
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn device_decoder<D: Machine + Clone>(
        &self,
        machine: D,
        element: Element,
        on_device: &OnDevice<D>,
    ) -> Result<Option<DeviceDecoder<D>>> {
        match self.decoder(&|layer| on_device(layer.weight()))? {
            Some(decoder) if decoder.fits(&machine) => {
                Ok(Some(DeviceDecoder::new(machine, decoder, element)?))
            }
            _ => Ok(None),
        }
    }

    /// Cosines and sines of every rotation at a position, as [`TokenStep::now`](crate::cuda::TokenStep::now) takes them.
    pub fn turns(&self, position: usize) -> Vec<f32> {
        let of = |(rope, width): &(Rope, usize)| {
            let (cos, sin) = rope.turns(*width, position..position + 1);
            [cos, sin].concat()
        };
        self.ropes.iter().flat_map(of).collect()
    }
}
