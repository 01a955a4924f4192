//! Payloads that go through a `VarBuilder` without a copy.
//!
//! A builder gives tensors, and the elements of a tensor are its own: of a payload that lies in a file they are a copy. So beside
//! `NAME.rbe` an archive has `NAME.rbe.handle`, a tensor without elements, by which this crate's layers find the payload where it
//! lies. A builder that has no handles has payloads, which are read as any tensor is.

use crate::tensor::Unread;
use candle_core::{Device, Result, Tensor, TensorId};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// What the name of a handle ends with, after that of the payload.
pub(crate) const HANDLE_SUFFIX: &str = ".handle";

/// What the handles that are there stand for.
static PAYLOADS: LazyLock<Mutex<HashMap<TensorId, Arc<Unread>>>> = LazyLock::new(Mutex::default);

fn payloads() -> MutexGuard<'static, HashMap<TensorId, Arc<Unread>>> {
    PAYLOADS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A tensor that stands for a payload, as long as this lives.
pub(crate) struct Handle(Tensor);

impl Handle {
    pub(crate) fn new(payload: Unread) -> Result<Self> {
        let tensor = Tensor::from_vec(Vec::<u8>::new(), 0, &Device::Cpu)?;
        payloads().insert(tensor.id(), Arc::new(payload));
        Ok(Self(tensor))
    }

    pub(crate) fn tensor(&self) -> &Tensor {
        &self.0
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        payloads().remove(&self.0.id());
    }
}

/// The payload that a tensor stands for, where it is a handle.
pub(super) fn payload_of(tensor: &Tensor) -> Option<Arc<Unread>> {
    payloads().get(&tensor.id()).cloned()
}
