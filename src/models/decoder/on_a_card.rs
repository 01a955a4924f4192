//! One token through a model that is on a CUDA card.

use super::layer::Layer;
use super::{Model, embed};
use crate::cuda::{self, CudaMachine, DeviceDecoder, Element};
use crate::models::{CausalLm, KvCache, pass};
use crate::nn::AttentionPass;
use candle_core::{Device, Result, Tensor};
use std::sync::{Arc, Mutex, PoisonError};

/// What was found when it was asked for: nothing where tokens go through by Candle's operations alone.
type Found = Option<Arc<DeviceDecoder<CudaMachine>>>;

/// The model on a card, which clones share.
#[derive(Clone, Debug, Default)]
pub(super) struct OnACard(Arc<Mutex<Option<Found>>>);

impl Model {
    /// The state of the one token of `input_ids` `(1, 1)` after those in the cache: `(1, 1, hidden)`; `None` where that is to be had by
    /// Candle's operations alone.
    pub(super) fn take_token(&self, input_ids: &Tensor, cache: &mut KvCache) -> Result<Option<Tensor>> {
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
