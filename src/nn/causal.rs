//! The masks of causal attention where all scores are held.

use candle_core::{DType, Device, Result, Tensor};

/// Elements that are kept of all masks together.
const MOST_KEPT: usize = 1 << 24;

/// What a mask is of: the last `queries` of `keys` positions, of which each sees those before it and itself, `window` at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct CausalMask {
    pub queries: usize,
    pub keys: usize,
    pub window: usize,
    /// Of the scores that it is added to.
    pub dtype: DType,
}

impl CausalMask {
    /// Zero where a query sees a key, else minus infinity: `(1, 1, queries, keys)`. It is made on the device.
    fn tensor(&self, device: &Device) -> Result<Tensor> {
        let &Self { queries, keys, window, dtype } = self;
        let positions = Tensor::arange(0u32, u32::try_from(keys)?, device)?;
        let (at, key) = (
            positions.narrow(0, keys - queries, queries)?.reshape((queries, 1))?,
            positions.reshape((1, keys))?,
        );
        let mut seen = at.broadcast_ge(&key)?;
        if window < keys {
            let first_unseen = (&key + window as f64)?;
            seen = (seen * at.broadcast_lt(&first_unseen)?)?;
        }
        hidden(&seen.reshape((1, 1, queries, keys))?, dtype)
    }
}

/// Zero where a mask is not, minus infinity where it is zero.
pub(super) fn hidden(seen: &Tensor, dtype: DType) -> Result<Tensor> {
    let infinity = Tensor::full(f32::NEG_INFINITY, seen.shape(), seen.device())?;
    seen.where_cond(&infinity.zeros_like()?, &infinity)?.to_dtype(dtype)
}

/// Masks that the layers of one pass have in common.
#[derive(Debug, Default)]
pub(super) struct CausalMasks(Vec<(CausalMask, Tensor)>);

impl CausalMasks {
    /// The mask, which is made where no layer before has had it.
    pub(super) fn get(&mut self, mask: CausalMask, device: &Device) -> Result<Tensor> {
        if let Some((_, tensor)) = self.0.iter().find(|(kept, _)| *kept == mask) {
            return Ok(tensor.clone());
        }
        let tensor = mask.tensor(device)?;
        let kept: usize = self.0.iter().map(|(_, tensor)| tensor.elem_count()).sum();
        if kept + tensor.elem_count() <= MOST_KEPT {
            self.0.push((mask, tensor.clone()));
        }
        Ok(tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_sees_what_is_before_it_within_its_window() -> Result<()> {
        let mut masks = CausalMasks::default();
        for (queries, keys, window) in [(1, 1, 1), (3, 3, 9), (2, 7, 3), (5, 9, 1), (4, 4, usize::MAX)] {
            let mask = CausalMask { queries, keys, window, dtype: DType::F32 };
            for _ in 0..2 {
                let ours = masks.get(mask, &Device::Cpu)?.reshape((queries, keys))?.to_vec2::<f32>()?;
                for (query, row) in ours.iter().enumerate() {
                    let at = keys - queries + query;
                    for (key, value) in row.iter().enumerate() {
                        let seen = key <= at && at - key < window;
                        assert_eq!(
                            *value,
                            if seen { 0. } else { f32::NEG_INFINITY },
                            "{mask:?} {query} {key}"
                        );
                    }
                }
            }
        }
        assert_eq!(masks.0.len(), 5);
        Ok(())
    }
}
