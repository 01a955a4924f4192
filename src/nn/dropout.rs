//! Dropout with a generator of its own.

use crate::{Error, Result};
use candle_core::Tensor;
use candle_nn::ModuleT;
use rbe_core::codec::signs::split_mix_64;
use std::sync::{Arc, Mutex};

/// Sets each element to zero with probability `p` while training, and multiplies the others by `1 / (1 - p)` (Srivastava et
/// al., 2014). Each layer draws from its own seed, so a run is repeated by seeds and order alone, whatever else draws.
///
/// Clones share the generator.
#[doc(alias = "RBEDropout")]
#[derive(Clone, Debug)]
pub struct RbeDropout {
    p: f32,
    state: Arc<Mutex<u64>>,
}

impl RbeDropout {
    /// A layer that drops with probability `p`, at least 0 and less than 1.
    ///
    /// # Errors
    /// When `p` is outside.
    pub fn new(p: f32, seed: u64) -> Result<Self> {
        if !(0.0..1.0).contains(&p) {
            return Err(Error::config(format!(
                "dropout with probability {p}; it must be at least 0 and below 1"
            )));
        }
        Ok(Self { p, state: Arc::new(Mutex::new(seed)) })
    }
}

impl ModuleT for RbeDropout {
    /// The same shape; the tensor itself where `train` is not set.
    fn forward_t(&self, x: &Tensor, train: bool) -> candle_core::Result<Tensor> {
        if !train || self.p == 0.0 {
            return Ok(x.clone());
        }
        let keep = 1.0 / (1.0 - self.p);
        // A word's high 24 bits as a number in 0..1.
        let threshold = (self.p * (1 << 24) as f32) as u64;
        let mask: Vec<f32> = {
            let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let mut draw = || if split_mix_64(&mut state) >> 40 < threshold { 0.0 } else { keep };
            (0..x.elem_count()).map(|_| draw()).collect()
        };
        x * Tensor::from_vec(mask, x.shape(), x.device())?.to_dtype(x.dtype())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn drops_the_share_asked_for_the_same_at_every_run_and_nothing_else() -> Result<()> {
        let x = Tensor::ones((100, 100), DType::F32, &Device::Cpu)?;
        let values = |layer: &RbeDropout| layer.forward_t(&x, true)?.flatten_all()?.to_vec1::<f32>();
        for p in [0.1, 0.5, 0.9] {
            let (a, b) = (RbeDropout::new(p, 3)?, RbeDropout::new(p, 3)?);
            let (first, second) = (values(&a)?, values(&a)?);
            assert_eq!(first, values(&b)?);
            assert_ne!(first, second);
            let dropped = first.iter().filter(|x| **x == 0.0).count() as f32 / 1e4;
            // Five standard deviations of 10,000 draws.
            assert!((dropped - p).abs() < 0.025, "{dropped} of {p}");
            assert!(first.iter().all(|x| *x == 0.0 || (*x - 1.0 / (1.0 - p)).abs() < 1e-6));
            assert_eq!(a.forward_t(&x, false)?.to_vec2::<f32>()?, x.to_vec2::<f32>()?);
        }
        for p in [-0.1, 1.0, f32::NAN] {
            assert!(RbeDropout::new(p, 0).is_err());
        }
        Ok(())
    }
}
