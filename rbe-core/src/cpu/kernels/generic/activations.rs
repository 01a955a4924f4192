//! Activations to int8 digits.

use crate::cpu::layout::LANES;

/// The largest magnitude; NaN where an element is not finite, so that the product shows it.
#[inline(always)]
pub(in crate::cpu) fn largest(x: &[f32]) -> f32 {
    let (mut largest, mut poison) = ([0f32; LANES], [0f32; LANES]);
    for chunk in x.chunks(LANES) {
        for (lane, value) in chunk.iter().enumerate() {
            largest[lane] = if value.abs() > largest[lane] { value.abs() } else { largest[lane] };
            poison[lane] += value * 0.0;
        }
    }
    largest.into_iter().fold(0.0, f32::max) + poison.into_iter().sum::<f32>()
}

/// Takes the digit `round(x / scale)` of every element away from it.
///
/// Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits (`|x / scale|`
/// is below 2^22). A scale of zero, or one that is not finite, gives zeros.
#[inline(always)]
pub(in crate::cpu) fn quantize_slice(x: &mut [f32], scale: f32, digits: &mut [i8]) {
    const TO_INTEGER: f32 = (3 << 22) as f32;
    let inverse = scale.recip();
    if !inverse.is_finite() || inverse == 0.0 {
        digits.fill(0);
        return;
    }
    for (digit, x) in digits.iter_mut().zip(x) {
        let shifted = *x * inverse + TO_INTEGER;
        let integer = shifted.to_bits().wrapping_sub(TO_INTEGER.to_bits());
        *digit = (integer as u8).cast_signed();
        *x -= (shifted - TO_INTEGER) * scale;
    }
}
