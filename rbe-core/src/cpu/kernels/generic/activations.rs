//! Activations to int8 digits.

use super::dense::halves;
use crate::cpu::layout::LANES;
use crate::cpu::layout::planes::TILE_COLS;
#[cfg(target_arch = "x86_64")]
use crate::cpu::layout::{FINER, planes::QUAD};

/// The largest magnitude; NaN where an element is not finite, so that the product shows it.
#[inline(always)]
pub(in crate::cpu) fn largest(x: &[f32]) -> f32 {
    let (mut largest, mut poison) = ([0f32; LANES], [0f32; LANES]);
    let (whole, rest) = x.as_chunks::<LANES>();
    let mut take = |lane: usize, value: f32| {
        largest[lane] = if value.abs() > largest[lane] { value.abs() } else { largest[lane] };
        poison[lane] += value * 0.0;
    };
    for chunk in whole {
        for (lane, value) in chunk.iter().enumerate() {
            take(lane, *value);
        }
    }
    for (lane, value) in rest.iter().enumerate() {
        take(lane, *value);
    }
    halves(largest, |a, b| if b > a { b } else { a }) + halves(poison, |a, b| a + b)
}

/// Takes the digit `round(x / scale)` of every element away from it.
///
/// Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits (`|x / scale|`
/// is below 2^22). A scale of zero, or one that is not finite, gives zeros. Digits beyond `x` become zero; `sums` are those of each tile's
/// digits.
#[inline(always)]
pub(in crate::cpu) fn quantize_slice(x: &mut [f32], scale: f32, digits: &mut [i8], sums: &mut [i32]) {
    const TO_INTEGER: f32 = (3 << 22) as f32;
    let inverse = scale.recip();
    if !inverse.is_finite() || inverse == 0.0 {
        digits.fill(0);
        sums.fill(0);
        return;
    }
    let (used, padding) = digits.split_at_mut(x.len());
    padding.fill(0);
    for (digit, x) in used.iter_mut().zip(x) {
        let shifted = *x * inverse + TO_INTEGER;
        let integer = shifted.to_bits().wrapping_sub(TO_INTEGER.to_bits());
        *digit = (integer as u8).cast_signed();
        *x -= (shifted - TO_INTEGER) * scale;
    }
    for (sum, tile) in sums.iter_mut().zip(digits.as_chunks::<TILE_COLS>().0) {
        // 32 digits of at most 127: the sum fits.
        *sum = i32::from(tile.iter().map(|digit| i16::from(*digit)).sum::<i16>());
    }
}

/// The digits of one slice or two as one integer of each column, of each four columns the first and the third before the others.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(in crate::cpu) fn pair_digits(first: &[i8], second: Option<&[i8]>, pairs: &mut [i16]) {
    let order = |four: [i16; QUAD]| [four[0], four[2], four[1], four[3]];
    let (first, pairs) = (first.as_chunks::<QUAD>().0, pairs.as_chunks_mut::<QUAD>().0);
    let Some(second) = second else {
        first.iter().zip(pairs).for_each(|(first, pairs)| *pairs = order(first.map(i16::from)));
        return;
    };
    for ((first, second), pairs) in first.iter().zip(second.as_chunks::<QUAD>().0).zip(pairs) {
        let joined = |n: usize| FINER as i16 * i16::from(first[n]) + i16::from(second[n]);
        *pairs = order([joined(0), joined(1), joined(2), joined(3)]);
    }
}
