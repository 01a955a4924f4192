//! A forward that looks before it leaps.

use super::RbeLinear;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use candle_nn::Module;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What [`RbeLinear::forward_checked`] allows, and how often what happened. One serves all layers of a model.
#[derive(Debug)]
pub struct ForwardChecks {
    /// The largest magnitude of an input.
    pub largest_input: f32,
    /// Bytes that a forward may take beyond what is held; `None` is what the system says is available, where it does
    /// (Linux), and else no limit.
    pub memory_limit: Option<usize>,
    /// Whether a product that is not supported in the compressed domain, or whose result is not finite there, is done with the
    /// decoded weight instead. Counted in [`ForwardCounts::decoded`].
    pub decode_on_failure: bool,
    counters: [AtomicU64; 3],
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardCounts {
    /// Forwards.
    pub calls: u64,
    /// Those that ended in an error.
    pub refused: u64,
    /// Those that were done with the decoded weight.
    pub decoded: u64,
}

impl Default for ForwardChecks {
    /// Inputs up to 1e15, what memory there is, and no decoding.
    fn default() -> Self {
        Self {
            largest_input: 1e15,
            memory_limit: None,
            decode_on_failure: false,
            counters: Default::default(),
        }
    }
}

impl ForwardChecks {
    /// What has happened so far.
    pub fn counts(&self) -> ForwardCounts {
        let [calls, refused, decoded] = &self.counters;
        ForwardCounts {
            calls: calls.load(Relaxed),
            refused: refused.load(Relaxed),
            decoded: decoded.load(Relaxed),
        }
    }
}

impl RbeLinear {
    /// `(.., in)` to `(.., out)` as `forward`, after looking for what would make it fail or mislead.
    ///
    /// # Errors
    /// Before anything is computed: [`CodecError::Shape`](crate::CodecError::Shape) where the last side is not `in`; [`CodecError::Unsupported`](crate::CodecError::Unsupported) where type or device
    /// are not; [`Error::Memory`] where the product would take more than there is; [`Error::Input`] where an element is not finite or
    /// too large. After: [`Error::NonFiniteOutput`] where an output is not finite in its type.
    pub fn forward_checked(&self, x: &Tensor, checks: &ForwardChecks) -> Result<Tensor> {
        let [calls, refused, decoded] = &checks.counters;
        calls.fetch_add(1, Relaxed);
        let result = self.check(x, checks, false).and_then(|()| finite(self.forward(x)?, false));
        let result = match result {
            Err(Error::Codec(rbe_core::Error::Unsupported { .. }) | Error::NonFiniteOutput { .. })
                if checks.decode_on_failure =>
            {
                decoded.fetch_add(1, Relaxed);
                self.check(x, checks, true).and_then(|()| finite(self.decoded(x)?, true))
            }
            result => result,
        };
        if result.is_err() {
            refused.fetch_add(1, Relaxed);
        }
        result
    }

    fn check(&self, x: &Tensor, checks: &ForwardChecks, decoded: bool) -> Result<()> {
        let (out, input) = self.weight().shape().dims2()?;
        if x.dims().last() != Some(&input) {
            let reason = format!("input of shape {:?} with a weight of shape ({out}, {input})", x.shape());
            return Err(Error::shape(reason));
        }
        let has_product = matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16)
            && x.device().same_device(self.weight().device());
        if !decoded && !has_product {
            let what = format!(
                "a compressed product with {:?} on {:?}; it takes F32, F16 or BF16 on the weight's device",
                x.dtype(),
                x.device().location()
            );
            return Err(Error::unsupported(what));
        }
        let tokens = x.elem_count() / input;
        let needed = needed_bytes(tokens, out, input, decoded);
        let available = checks.memory_limit.or_else(available_bytes);
        match (needed, available) {
            (None, _) => {
                return Err(Error::Memory { needed: usize::MAX, available: available.unwrap_or(usize::MAX) });
            }
            (Some(needed), Some(available)) if needed > available => {
                return Err(Error::Memory { needed, available });
            }
            _ => {}
        }
        let largest = f64::from(checks.largest_input);
        let wrong = first(x, |value| value.is_nan() || value.abs() > largest)?;
        match wrong {
            Some((index, value)) => Err(Error::Input { index, value, largest: checks.largest_input }),
            None => Ok(()),
        }
    }

    /// The product with the decoded weight, in the input's type and on its device.
    fn decoded(&self, x: &Tensor) -> Result<Tensor> {
        let weight = self.weight().dequantize()?.to_dtype(x.dtype())?.to_device(x.device())?;
        let bias = match self.bias() {
            Some(bias) => Some(bias.to_dtype(x.dtype())?.to_device(x.device())?),
            None => None,
        };
        Ok(candle_nn::Linear::new(weight, bias).forward(x)?)
    }
}

/// Bytes that a product takes at once at most: input and output in F32, both in the coefficient domain, the input in three digits; and
/// the weight where it is decoded.
fn needed_bytes(tokens: usize, out: usize, input: usize, decoded: bool) -> Option<usize> {
    let vectors = input.checked_mul(3)?.checked_add(out.checked_mul(3)?)?.checked_mul(tokens)?;
    let weight = if decoded { out.checked_mul(input)?.checked_mul(2)? } else { 0 };
    vectors.checked_add(weight)?.checked_mul(size_of::<f32>())
}

/// What the system could give without swapping.
fn available_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

/// The first element that is wrong, and its place.
fn first(x: &Tensor, wrong: impl Fn(f64) -> bool) -> Result<Option<(usize, f64)>> {
    // One type for all: F64 holds every float exactly. A row at a time, so that the copy stays small.
    let rows = x.flatten_to(x.rank().saturating_sub(2))?;
    let rows = if rows.rank() < 2 { rows.unsqueeze(0)? } else { rows };
    let (count, len) = rows.dims2()?;
    for row in 0..count {
        let values = rows.get(row)?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        if let Some(n) = values.iter().position(|value| wrong(*value)) {
            return Ok(Some((row * len + n, values[n])));
        }
    }
    Ok(None)
}

fn finite(y: Tensor, decoded: bool) -> Result<Tensor> {
    match first(&y, |value| !value.is_finite())? {
        None => Ok(y),
        Some((index, value)) => {
            let dtype = format!("{:?}", y.dtype());
            Err(Error::NonFiniteOutput { index, value, dtype, decoded })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Encoder, EncoderConfig, Rate};
    use candle_core::Device;
    use rbe_core::cpu::Precision;

    /// Whose products are exact.
    fn layer(scale: f64) -> Result<RbeLinear> {
        let weight = (Tensor::randn(0f32, 1.0, (40, 96), &Device::Cpu)? * scale)?;
        let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(4.3)))?;
        Ok(RbeLinear::new(encoder.encode(&weight)?, None).with_precision(Precision::Exact))
    }

    #[test]
    fn what_is_sound_goes_through_unchanged() -> Result<()> {
        let (layer, checks) = (layer(0.1)?, ForwardChecks::default());
        for shape in [&[3, 96][..], &[96], &[2, 0, 96], &[2, 3, 96]] {
            let x = Tensor::randn(0f32, 1.0, shape, &Device::Cpu)?;
            let (ours, plain) = (layer.forward_checked(&x, &checks)?, layer.forward(&x)?);
            assert_eq!(ours.flatten_all()?.to_vec1::<f32>()?, plain.flatten_all()?.to_vec1::<f32>()?);
        }
        assert_eq!(checks.counts(), ForwardCounts { calls: 4, refused: 0, decoded: 0 });
        Ok(())
    }

    #[test]
    fn each_fault_has_its_error_and_is_counted() -> Result<()> {
        let (layer, checks) = (layer(0.1)?, ForwardChecks::default());
        let mut values = vec![1f32; 3 * 96];
        let mut refusal = |at: usize, value: f32| {
            values[at] = value;
            let x = Tensor::from_slice(&values, (3, 96), &Device::Cpu)?;
            values[at] = 1.0;
            Ok::<_, Error>(layer.forward_checked(&x, &checks).expect_err("must be refused"))
        };
        assert!(matches!(refusal(100, f32::NAN)?, Error::Input { index: 100, .. }));
        assert!(matches!(refusal(287, f32::INFINITY)?, Error::Input { index: 287, .. }));
        assert!(matches!(refusal(5, -1e16)?, Error::Input { index: 5, .. }));
        let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu);
        let error =
            |x: &Tensor, checks: &ForwardChecks| layer.forward_checked(x, checks).expect_err("refused");
        assert!(matches!(
            error(&zeros(&[3, 95], DType::F32)?, &checks),
            Error::Codec(crate::CodecError::Shape { .. })
        ));
        assert!(matches!(
            error(&zeros(&[3, 96], DType::F64)?, &checks),
            Error::Codec(rbe_core::Error::Unsupported { .. })
        ));
        assert_eq!(checks.counts(), ForwardCounts { calls: 5, refused: 5, decoded: 0 });
        let checks = ForwardChecks { memory_limit: Some(1000), ..ForwardChecks::default() };
        let memory = error(&zeros(&[3, 96], DType::F32)?, &checks);
        assert!(matches!(memory, Error::Memory { needed: 4896, available: 1000 }), "{memory}");
        Ok(())
    }

    #[test]
    fn outputs_beyond_their_type_are_found_and_decoding_helps_where_it_can() -> Result<()> {
        let layer = layer(30.0)?;
        let x = (Tensor::randn(0f32, 1.0, (4, 96), &Device::Cpu)? * 6e4)?.clamp(-6e4f32, 6e4f32)?;
        let (half, checks) = (x.to_dtype(DType::F16)?, ForwardChecks::default());
        let error = layer.forward_checked(&half, &checks).expect_err("F16 ends at 65504");
        assert!(matches!(error, Error::NonFiniteOutput { decoded: false, .. }), "{error}");
        assert!(layer.forward_checked(&x, &checks).is_ok());

        let checks = ForwardChecks { decode_on_failure: true, ..ForwardChecks::default() };
        let wide = layer.forward_checked(&x.to_dtype(DType::F64)?, &checks)?;
        assert_eq!(wide.dtype(), DType::F64);
        let (plain, norm) =
            (layer.forward(&x)?.to_dtype(DType::F64)?, wide.sqr()?.sum_all()?.to_scalar::<f64>()?);
        let difference = (wide - plain)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
        assert!(difference < 1e-10 * norm, "{difference} {norm}");
        let error = layer.forward_checked(&half, &checks).expect_err("no way to hold it");
        assert!(matches!(error, Error::NonFiniteOutput { decoded: true, .. }), "{error}");
        assert_eq!(checks.counts(), ForwardCounts { calls: 2, refused: 1, decoded: 2 });
        Ok(())
    }
}
