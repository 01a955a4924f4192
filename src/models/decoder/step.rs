//! One token through a model on a device, where all of its layers are compressed: launches of this crate's kernels and nothing else, which a
//! CUDA graph holds.

use super::Model;
use crate::cuda::{Decoder, DeviceDecoder, Element, Machine};
use crate::nn::{OnDevice, Rope};
use candle_core::Result;

impl Model {
    /// The model as tokens go through it one by one on a device, from the embedding to the state after the last norm
    /// ([`TokenStep`](crate::cuda::TokenStep)). `on_device` finds the layers' matrices there.
    ///
    /// `None` where a layer is not compressed, is decoded first, watched or trained, or has experts, and where its sides do not
    /// fit the kernels ([`Decoder::fits`]).
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn device_decoder<D: Machine + Clone>(
        &self,
        machine: D,
        element: Element,
        on_device: &OnDevice<D>,
    ) -> Result<Option<DeviceDecoder<D>>> {
        let layers = self.layers.iter().map(|layer| layer.step(on_device)).collect::<Result<Vec<_>>>()?;
        let (Some(layers), Some(norm)) = (layers.into_iter().collect::<Option<Vec<_>>>(), self.norm.step()?)
        else {
            return Ok(None);
        };
        let decoder = Decoder {
            hidden: self.config.hidden_size,
            layers,
            norm,
            residual_multiplier: self.config.residual_multiplier.unwrap_or(1.),
            rotations: self.ropes.iter().map(|(rope, width)| rope.width(*width)).collect(),
        };
        match decoder.fits(&machine) {
            true => Ok(Some(DeviceDecoder::new(machine, decoder, element)?)),
            false => Ok(None),
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
