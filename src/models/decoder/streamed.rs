//! A decoder whose layers are read as a forward comes to them.

use super::{Config, Model, body, load_layer};
use crate::Result;
use crate::models::{CausalLm, KvCache};
use crate::nn::Recorder;
use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use rbe_core::encode::LayerStatistics;
use std::collections::BTreeMap;

/// A dense model of which only the tables, the head and the layer that a forward is in are in memory: for a few forwards of many
/// windows at once, as every forward reads the layers again.
pub struct StreamedModel {
    /// Its layers are none.
    frame: Model,
    inside: VarBuilder<'static>,
}

impl std::fmt::Debug for StreamedModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StreamedModel({} layers)", self.frame.config.layers.len())
    }
}

impl StreamedModel {
    /// A model of this configuration with the weights in `vb`.
    ///
    /// # Errors
    /// The configuration contradicts itself; a table, a norm or the head is missing or has another shape than it says. Of
    /// layers that is found when they are read.
    pub fn new(config: Config, vb: VarBuilder<'static>) -> Result<Self> {
        let frame = Model::without_layers(config, &vb)?;
        let (_, inside) = body(&frame.config.names, &vb);
        Ok(Self { frame, inside })
    }

    /// How large the inputs of all linear layers are while the model reads token ids, by the names of their weights: squares alone
    /// ([`LayerStatistics::of_squares`]), of one forward for each tensor `(batch, seq)`. An expert that no token came to is left out.
    ///
    /// # Errors
    /// What [`CausalLm`] says of a forward; a tensor is missing or has another shape; an input is not finite.
    pub fn input_squares(&self, texts: &[Tensor]) -> Result<BTreeMap<String, LayerStatistics>> {
        let Self { frame, inside } = self;
        let mut recorder = Recorder::of_squares();
        let head = frame.tied_table().unwrap_or_else(|| format!("{}.weight", frame.config.names.head));
        for input_ids in texts {
            let hidden = frame.through(input_ids, None, |index, h, pass| {
                let mut layer = load_layer(&frame.config, index, &frame.ropes, inside)?;
                for (name, linear) in
                    frame.config.linears_of(index, frame.body).iter().zip(layer.linears_mut())
                {
                    recorder.watch(name, linear);
                }
                layer.forward(h, index, pass)
            })?;
            // Of the outputs, their number alone is looked at.
            let outputs = Tensor::zeros((1, frame.config.vocab_size), hidden.dtype(), hidden.device())?;
            recorder.layer(&head, &hidden, outputs)?;
        }
        Ok(recorder.into_statistics())
    }
}

impl CausalLm for StreamedModel {
    fn hidden_states(&self, input_ids: &Tensor, cache: Option<&mut KvCache>) -> candle_core::Result<Tensor> {
        let Self { frame, inside } = self;
        frame.through(input_ids, cache, |index, h, pass| {
            load_layer(&frame.config, index, &frame.ropes, inside)?.forward(h, index, pass)
        })
    }

    fn head(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        self.frame.head(hidden)
    }

    fn new_cache(&self) -> KvCache {
        KvCache::new(self.frame.config.layers.len(), self.context_length())
    }

    fn vocab_size(&self) -> usize {
        self.frame.vocab_size()
    }

    fn context_length(&self) -> usize {
        self.frame.context_length()
    }

    fn eos_token_ids(&self) -> &[u32] {
        self.frame.eos_token_ids()
    }

    fn device(&self) -> &Device {
        self.frame.device()
    }
}
