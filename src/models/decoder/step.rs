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

#[cfg(feature = "cuda")]
mod on_a_card {
    use super::super::layer::Layer;
    use super::super::{Model, embed};
    use crate::cuda::{self, CudaMachine, DeviceDecoder, Element};
    use crate::models::{CausalLm, KvCache, pass};
    use crate::nn::AttentionPass;
    use candle_core::{Device, Result, Tensor};
    use std::sync::{Arc, Mutex, PoisonError};

    /// What was found when it was asked for: nothing where tokens go through by Candle's operations alone.
    type Found = Option<Arc<DeviceDecoder<CudaMachine>>>;

    /// The model on a card, which clones share.
    #[derive(Clone, Debug, Default)]
    pub(in super::super) struct OnACard(Arc<Mutex<Option<Found>>>);

    impl Model {
        /// The state of the one token of `input_ids` `(1, 1)` after those in the cache: `(1, 1, hidden)`; `None` where that is to be had by
        /// Candle's operations alone.
        pub(in super::super) fn take_token(
            &self,
            input_ids: &Tensor,
            cache: &mut KvCache,
        ) -> Result<Option<Tensor>> {
            if input_ids.dims() != [1, 1] || cache.is_empty() {
                return Ok(None);
            }
            let Some(decoder) = self.on_a_card()? else { return Ok(None) };
            pass::begin(input_ids, Some(cache), self.config.layers.len(), self.context_length())?;
            let position = cache.len();
            let at = AttentionPass::causal(1, Some(cache));
            let embedding = embed(&self.config, &self.tokens, self.positions.as_ref(), input_ids, &at)?;
            if embedding.track_op() {
                return Ok(None);
            }
            let Some(caches) = cache.with_room()? else { return Ok(None) };
            let step = cache.step(&decoder)?;
            let state = cuda::token(step, &embedding, position, &self.turns(position), &caches)?;
            let Some(state) = state else { return Ok(None) };
            cache.advance(1);
            self.layers.iter().for_each(Layer::count_token);
            Ok(Some(state))
        }

        /// Laid out when it is first asked for.
        fn on_a_card(&self) -> Result<Found> {
            let Device::Cuda(device) = &self.device else { return Ok(None) };
            let mut found = self.on_a_card.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(found) = &*found {
                return Ok(found.clone());
            }
            let decoder = match Element::of(self.tokens.embeddings().dtype()) {
                Some(element) => self.device_decoder(CudaMachine::new(device)?, element, &|weight| {
                    weight.on_cuda().ok().cloned()
                })?,
                None => None,
            };
            Ok(found.insert(decoder.map(Arc::new)).clone())
        }
    }
}

#[cfg(feature = "cuda")]
pub(super) use on_a_card::OnACard;
