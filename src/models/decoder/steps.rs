//! What takes single tokens through a model, kept with it.

#[cfg(feature = "cuda")]
use crate::cuda::{CudaMachine, DeviceDecoder};
use crate::nn::RbeLinear;
use crate::step::Decoder;
use candle_core::Result;
use std::sync::{Arc, Mutex, PoisonError};

/// What takes a token through a model, where anything does.
#[derive(Clone, Debug, Default)]
pub(super) struct Steps {
    pub on_the_cpu: Found<Decoder<RbeLinear>>,
    #[cfg(feature = "cuda")]
    pub on_a_card: Found<DeviceDecoder<CudaMachine>>,
}

/// What takes tokens through a model, which its clones share: found when it is first asked for, and then nothing where there is none.
#[derive(Debug)]
pub(super) struct Found<T>(Arc<Mutex<Option<Option<Arc<T>>>>>);

impl<T> Default for Found<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Clone for Found<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Found<T> {
    pub(super) fn get_or_find(&self, find: impl FnOnce() -> Result<Option<T>>) -> Result<Option<Arc<T>>> {
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = &*found {
            return Ok(found.clone());
        }
        let new = find()?.map(Arc::new);
        Ok(found.insert(new).clone())
    }
}
