//! One token through a model on a device, where all of its layers are compressed: launches of this crate's kernels and nothing else, which a
//! CUDA graph holds.

use super::Model;
use crate::cuda::{Decoder, Element, Machine, TokenStep};
use crate::nn::OnDevice;
use candle_core::Result;
use std::ops::Range;

impl Model {
    /// What takes one token through the model on a device, from its embedding to the state after the last norm. `on_device` finds the
    /// layers' matrices there.
    ///
    /// `None` where a layer is not compressed, is decoded first, watched or trained, or has experts, and where heads are wider than 256
    /// elements or no multiple of 8 wide.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn token_step<D: Machine + Clone>(
        &self,
        machine: D,
        element: Element,
        on_device: &OnDevice<D>,
    ) -> Result<Option<TokenStep<D>>> {
        let layers = self.layers.iter().map(|layer| layer.step(on_device)).collect::<Result<Vec<_>>>()?;
        let (Some(layers), Some(norm)) = (layers.into_iter().collect::<Option<Vec<_>>>(), self.norm.step()?)
        else {
            return Ok(None);
        };
        if !layers.iter().all(|layer| layer.heads.fit()) {
            return Ok(None);
        }
        let decoder = Decoder {
            hidden: self.config.hidden_size,
            layers,
            norm,
            residual_multiplier: self.config.residual_multiplier.unwrap_or(1.),
            rotations: self.ropes.iter().map(|(rope, width)| rope.width(*width)).collect(),
        };
        Ok(Some(TokenStep::new(machine, decoder, element)?))
    }

    /// Cosines and sines of every rotation at a position, as [`TokenStep::now`] takes them.
    pub fn turns(&self, position: usize) -> Vec<f32> {
        let at: Range<usize> = position..position + 1;
        let of = |(rope, width): &(crate::nn::Rope, usize)| {
            let (cos, sin) = rope.turns(*width, at.clone());
            [cos, sin].concat()
        };
        self.ropes.iter().flat_map(of).collect()
    }
}

#[cfg(feature = "cuda")]
mod on_a_card {
    use super::super::{Model, embed};
    use crate::cuda::{CapturedStep, CudaMachine, Element};
    use crate::models::{CausalLm, KvCache, pass};
    use crate::nn::AttentionPass;
    use candle_core::{Device, Result, Tensor};

    impl Model {
        /// The state of the one token of `input_ids` `(1, 1)` after those in the cache: `(1, 1, hidden)`; `None` where that is to be had by
        /// Candle's operations alone.
        pub(in super::super) fn take_token(
            &self,
            input_ids: &Tensor,
            cache: &mut KvCache,
        ) -> Result<Option<Tensor>> {
            let Device::Cuda(device) = &self.device else { return Ok(None) };
            if input_ids.dims() != [1, 1] || cache.is_empty() {
                return Ok(None);
            }
            pass::begin(input_ids, Some(cache), self.config.layers.len(), self.context_length())?;
            let make = || {
                let Some(element) = Element::of(self.tokens.embeddings().dtype()) else { return Ok(None) };
                let machine = CudaMachine::new(device)?;
                let step = self.token_step(machine, element, &|weight| weight.on_cuda().ok().cloned())?;
                Ok(step.map(CapturedStep::new))
            };
            if cache.step(&self.identity, make)?.is_none() {
                return Ok(None);
            }
            let position = cache.len();
            let at = AttentionPass::causal(1, Some(cache));
            let embedding = embed(&self.config, &self.tokens, self.positions.as_ref(), input_ids, &at)?;
            let Some(caches) = cache.with_room()? else { return Ok(None) };
            let Some(step) = cache.step(&self.identity, || Ok(None))? else { return Ok(None) };
            let Some(state) = step.token(&embedding, position, &self.turns(position), &caches)? else {
                return Ok(None);
            };
            cache.advance(1);
            self.layers.iter().for_each(super::super::layer::Layer::count_token);
            Ok(Some(state))
        }
    }
}
