//! Continuing a text token by token.

use super::pass::not_finite;
use super::{CausalLm, KvCache};
use candle_core::{CpuStorage, D, DType, Result, Storage, Tensor};

/// Continues `prompt` by at most `max_new_tokens` tokens, each chosen by `sampler` from the logits `(vocab)`
/// in F32 that follow the tokens before it. The prompt is one text, of at least one token.
///
/// The iterator yields the new tokens and ends before an end-of-text token. An error, such as a context that
/// is full or a logit that is not finite, is its last item. Nothing runs until the first token is asked for; the prompt then goes through
/// the model at once and every later token alone.
///
/// Sampling with a temperature is a closure over `candle_transformers`' `LogitsProcessor`:
/// `generate(&model, &prompt, 100, |logits| processor.sample(logits))`.
pub fn generate<'m, S>(
    model: &'m dyn CausalLm,
    prompt: &[u32],
    max_new_tokens: usize,
    sampler: S,
) -> Generation<'m, S>
where
    S: FnMut(&Tensor) -> Result<u32>,
{
    let cache = model.new_cache();
    Generation { model, cache, input: prompt.to_vec(), remaining: max_new_tokens, sampler }
}

/// The sampler that always takes the likeliest token of logits `(vocab)`.
///
/// # Errors
/// Candle's, where the logits have another rank.
pub fn greedy(logits: &Tensor) -> Result<u32> {
    let (storage, layout) = logits.storage_and_layout();
    if let (Storage::Cpu(CpuStorage::F32(values)), Some((first, end)), 1) =
        (&*storage, layout.contiguous_offsets(), logits.rank())
        && let Some(likeliest) = likeliest(&values[first..end])
    {
        return Ok(u32::try_from(likeliest)?);
    }
    // Candle looks at one after another.
    logits.argmax(D::Minus1)?.to_scalar()
}

/// The first of the largest; `None` where none is a number.
fn likeliest(values: &[f32]) -> Option<usize> {
    const LANES: usize = 32;
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut largest = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (largest, value) in largest.iter_mut().zip(chunk) {
            *largest = if *value > *largest { *value } else { *largest };
        }
    }
    let largest = largest.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
    values.iter().position(|value| *value == largest)
}

/// The tokens that continue a text; see [`generate`].
pub struct Generation<'m, S> {
    model: &'m dyn CausalLm,
    cache: KvCache,
    /// What the model has not seen yet: the prompt, then the last token.
    input: Vec<u32>,
    remaining: usize,
    sampler: S,
}

impl<S: FnMut(&Tensor) -> Result<u32>> Generation<'_, S> {
    fn step(&mut self) -> Result<u32> {
        let input = Tensor::new(self.input.as_slice(), self.model.device())?.unsqueeze(0)?;
        let logits = self.model.forward_last(&input, Some(&mut self.cache))?;
        let logits = logits.squeeze(0)?;
        check_finite(&logits)?;
        let token = (self.sampler)(&logits)?;
        self.input = vec![token];
        Ok(token)
    }
}

/// Refuses logits `(vocab)` of which one is not finite: a sampler would take any token.
fn check_finite(logits: &Tensor) -> Result<()> {
    // The sum is not finite where a logit is not, and one number to bring from the device.
    if logits.sum_all()?.to_dtype(DType::F32)?.to_scalar::<f32>()?.is_finite() {
        return Ok(());
    }
    let values = logits.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    match values.iter().position(|logit| !logit.is_finite()) {
        Some(token) => Err(not_finite(token, values[token]).into()),
        None => Ok(()),
    }
}

impl<S: FnMut(&Tensor) -> Result<u32>> Iterator for Generation<'_, S> {
    type Item = Result<u32>;

    fn next(&mut self) -> Option<Self::Item> {
        self.remaining = self.remaining.checked_sub(1)?;
        let token = self.step();
        let ended = token.as_ref().is_ok_and(|token| self.model.eos_token_ids().contains(token));
        if ended || token.is_err() {
            self.remaining = 0;
        }
        (!ended).then_some(token)
    }
}

impl<S: FnMut(&Tensor) -> Result<u32>> std::iter::FusedIterator for Generation<'_, S> {}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_likeliest_is_the_first_of_the_largest() -> Result<()> {
        for count in [1, 31, 32, 33, 1000] {
            let values: Vec<f32> = (0..count).map(|n| ((n * 37) % 101) as f32 - 200.).collect();
            let logits = Tensor::new(values.as_slice(), &Device::Cpu)?;
            let expected = logits.argmax(0)?.to_scalar::<u32>()?;
            assert_eq!(greedy(&logits)?, expected, "{count}");
            let part = Tensor::cat(&[&logits, &logits], 0)?.narrow(0, count / 2, count)?;
            assert_eq!(greedy(&part)?, part.argmax(0)?.to_scalar::<u32>()?, "{count}, a part");
        }
        assert_eq!(likeliest(&[]), None);
        assert_eq!(likeliest(&[1., f32::NAN, 5., 2., f32::NAN]), Some(2));
        assert_eq!(greedy(&Tensor::new(&[1f32, 3., 3.], &Device::Cpu)?.to_dtype(DType::F64)?)?, 1);
        assert!(greedy(&Tensor::zeros((2, 3), DType::F32, &Device::Cpu)?).is_err());
        Ok(())
    }
}
