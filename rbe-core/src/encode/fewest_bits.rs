//! The smallest size at which a measured loss stays within a bound.

use crate::error::Error;

/// Where the search begins: four bits and their scales.
const FIRST: f64 = 4.02;
/// The fewest and the most bits per weight that are tried.
const RANGE: [f64; 2] = [1.02, 8.06];
/// Bits that are not worth another try.
const CLOSE: f64 = 1.0 / 32.0;
/// The part of the bound that is aimed at, and the least that is good enough.
const AIM: f64 = 0.97;
const GOOD: f64 = 0.93;
/// What one bit more takes off the logarithm of a divergence: half the error, a quarter of its square, nearly.
const SLOPE: f64 = 1.3;

/// Bits and the logarithm of the loss over the bound.
type Try = (f64, f64);

/// The fewest bits per weight, to within a thirty-second or 7 % of the bound, at which `loss(bits)` (such as a model's
/// divergence) is at most `bound`; `loss` is tried three or four times, and at the bits returned.
///
/// ```
/// // What a model loses falls to about a quarter with every bit.
/// let loss = |bits: f64| -> rbe_core::Result<f64> { Ok(3.9f64.powf(-bits)) };
/// let bits = rbe_core::encode::fewest_bits(1e-3, loss)?;
/// assert!((5.0..5.15).contains(&bits));
/// # Ok::<(), rbe_core::Error>(())
/// ```
///
/// # Errors
/// What `loss` returns; [`Error::UnreachableRate`] when eight bits lose more; [`Error::InvalidConfig`] when the bound is not
/// positive.
pub fn fewest_bits<E: From<Error>>(
    bound: f64,
    mut loss: impl FnMut(f64) -> Result<f64, E>,
) -> Result<f64, E> {
    if !(bound > 0.0 && bound.is_finite()) {
        return Err(Error::config(format!("a bound of {bound}; it must be positive")).into());
    }
    let (mut failed, mut passed): (Option<Try>, Option<Try>) = (None, None);
    let mut bits = FIRST;
    loop {
        let found = loss(bits)?;
        let excess = (found / bound).ln();
        // Not a number is no pass.
        if excess <= 0.0 {
            passed = Some((bits, excess));
        } else if bits >= RANGE[1] {
            return Err(Error::UnreachableRate {
                asked: format!("a loss of {bound}"),
                best: format!("{bits} bits per weight lose {found:.3e}; ask for more"),
            }
            .into());
        } else {
            failed = Some((bits, excess));
        }
        let next = match (failed, passed) {
            (_, Some((bits, excess))) if excess >= GOOD.ln() || bits <= RANGE[0] => return Ok(bits),
            (Some((low, _)), Some((high, _))) if high - low <= CLOSE => return Ok(high),
            (Some((low, above)), Some((high, below))) => {
                let part = (above - AIM.ln()) / (above - below);
                let guess = low + part * (high - low);
                guess.clamp(low + CLOSE / 2.0, high - CLOSE / 2.0)
            }
            (None, Some((bits, excess))) | (Some((bits, excess)), None) => {
                let step = (excess - AIM.ln()) / SLOPE;
                // From a failure at least as far as would be worth another try.
                bits + if failed.is_some() { step.max(CLOSE) } else { step }
            }
            (None, None) => bits,
        };
        bits = if next.is_nan() { RANGE[1] } else { next.clamp(RANGE[0], RANGE[1]) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Result;

    #[test]
    fn the_bound_is_kept_in_few_tries() {
        for slope in [0.9f64, 1.3, 1.7] {
            for bound in [0.2, 3e-2, 4e-3, 5e-4, 6e-5] {
                // Loses a little more at few bits than the slope says.
                let loss = |bits: f64| (-slope * bits).exp() * (1.0 + 4.0 / bits.powi(4));
                if loss(RANGE[1]) > bound {
                    let found = fewest_bits(bound, |bits| -> Result<f64> { Ok(loss(bits)) });
                    assert!(matches!(found, Err(Error::UnreachableRate { .. })));
                    continue;
                }
                let mut tries = Vec::new();
                let bits = fewest_bits(bound, |bits| -> Result<f64> {
                    tries.push(bits);
                    Ok(loss(bits))
                })
                .unwrap();
                assert!(tries.contains(&bits) && tries.len() <= 5, "{slope} {bound}: {tries:?}");
                let few = loss(bits) >= GOOD * bound || loss(bits - CLOSE) > bound || bits == RANGE[0];
                assert!(loss(bits) <= bound && few, "{slope} {bound}: {bits}");
            }
        }
    }

    #[test]
    fn steps_are_found_and_nonsense_is_refused() {
        let step = |bits: f64| -> Result<f64> { Ok(if bits < 5.5 { 1.0 } else { 1e-6 }) };
        let bits = fewest_bits(1e-3, step).unwrap();
        assert!((5.5..5.6).contains(&bits), "{bits}");
        assert!(matches!(fewest_bits(0.0, step), Err(Error::InvalidConfig { .. })));
        assert!(matches!(fewest_bits(1.0, |_| Ok::<_, Error>(f64::NAN)), Err(Error::UnreachableRate { .. })));
        assert!(matches!(
            fewest_bits(1.0, |_| Err::<f64, _>(Error::config("x"))),
            Err(Error::InvalidConfig { .. })
        ));
    }
}
