//! One token through a model by a step of its own, without Candle's operations between its layers.

#[cfg(feature = "cuda")]
use super::layer::Layer;
use super::{Model, embed};
#[cfg(feature = "cuda")]
use crate::cuda::{self, CudaMachine, DeviceDecoder, Element};
use crate::models::{CausalLm, KvCache, pass};
use crate::nn::token::{self, Now};
use crate::nn::{AttentionPass, RbeLinear};
use crate::step::Decoder;
#[cfg(feature = "cuda")]
use candle_core::CudaDevice;
use candle_core::{DType, Device, Result, Tensor};
use std::sync::Arc;

/// A token that comes into the model, and where its keys and values go.
struct Token {
    /// `(1, 1, hidden)`.
    embedding: Tensor,
    position: usize,
    turns: Vec<f32>,
    /// Every layer's, `(1, kv_heads, capacity, width)`.
    caches: Vec<(Tensor, Tensor)>,
}

impl Model {
    /// The state of the one token of `input_ids` `(1, 1)` after those in the cache: `(1, 1, hidden)`; `None` where that is to be had by
    /// Candle's operations alone.
    pub(super) fn take_token(&self, input_ids: &Tensor, cache: &mut KvCache) -> Result<Option<Tensor>> {
        if input_ids.dims() != [1, 1] || cache.is_empty() {
            return Ok(None);
        }
        let state = match &self.device {
            Device::Cpu => self.on_the_cpu(input_ids, cache)?,
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => self.on_a_card(device, input_ids, cache)?,
            _ => None,
        };
        if state.is_some() {
            cache.advance(1);
        }
        Ok(state)
    }

    /// The token; `None` where it learns, or the cache has nothing yet.
    fn token(&self, input_ids: &Tensor, cache: &mut KvCache) -> Result<Option<Token>> {
        pass::begin(input_ids, Some(cache), self.config.layers.len(), self.context_length())?;
        let position = cache.len();
        let at = AttentionPass::causal(1, Some(cache));
        let embedding = embed(&self.config, &self.tokens, self.positions.as_ref(), input_ids, &at)?;
        if embedding.track_op() {
            return Ok(None);
        }
        let Some(caches) = cache.with_room()? else { return Ok(None) };
        Ok(Some(Token { embedding, position, turns: self.turns(position), caches }))
    }

    /// Whether tokens that come one by one after others in a cache go through by a step of their own: this crate's kernels one after another,
    /// without a tensor between them. That is so on the CPU in F32, and on a CUDA device, where every layer is compressed and multiplied as it
    /// is stored. It is not where a layer is dense, is decoded first, has a hook or is trained, where a layer has experts, or, on the CPU,
    /// where scores are capped: there Candle's operations do it, to the same numbers in more time.
    ///
    /// # Errors
    /// When a device has not enough memory to lay weights out.
    pub fn has_token_step(&self) -> Result<bool> {
        match &self.device {
            Device::Cpu => Ok(self.cpu_decoder()?.is_some()),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Ok(self.card_decoder(device)?.is_some()),
            _ => Ok(false),
        }
    }

    fn cpu_decoder(&self) -> Result<Option<Arc<Decoder<RbeLinear>>>> {
        self.steps.on_the_cpu.get_or_find(|| {
            if self.tokens.embeddings().dtype() != DType::F32 {
                return Ok(None);
            }
            let decoder = self.decoder(&|layer: &RbeLinear| Some(layer.clone()))?;
            Ok(decoder.filter(token::fits))
        })
    }

    fn on_the_cpu(&self, input_ids: &Tensor, cache: &mut KvCache) -> Result<Option<Tensor>> {
        let Some(decoder) = self.cpu_decoder()? else { return Ok(None) };
        let Some(Token { embedding, position, turns, caches }) = self.token(input_ids, cache)? else {
            return Ok(None);
        };
        let (shape, embedding) = (embedding.dims3()?, embedding.flatten_all()?.to_vec1()?);
        let state = token::token(&decoder, embedding, Now { position, turns: &turns }, &caches)?;
        state.map(|state| Tensor::from_vec(state, shape, &self.device)).transpose()
    }

    #[cfg(feature = "cuda")]
    fn card_decoder(&self, device: &CudaDevice) -> Result<Option<Arc<DeviceDecoder<CudaMachine>>>> {
        self.steps.on_a_card.get_or_find(|| {
            let Some(element) = Element::of(self.tokens.embeddings().dtype()) else { return Ok(None) };
            self.device_decoder(CudaMachine::new(device)?, element, &|weight| weight.on_cuda().ok().cloned())
        })
    }

    #[cfg(feature = "cuda")]
    fn on_a_card(
        &self,
        device: &CudaDevice,
        input_ids: &Tensor,
        cache: &mut KvCache,
    ) -> Result<Option<Tensor>> {
        let Some(decoder) = self.card_decoder(device)? else { return Ok(None) };
        let Some(Token { embedding, position, turns, caches }) = self.token(input_ids, cache)? else {
            return Ok(None);
        };
        let state = cuda::token(cache.step(&decoder)?, &embedding, position, &turns, &caches)?;
        if state.is_some() {
            self.layers.iter().for_each(Layer::count_token);
        }
        Ok(state)
    }
}
