//! F16 numbers that share an exponent: each term's scales or values are multiplied by one power of two, its **unit**, so that tiny
//! weights do not fall into F16's subnormals and huge ones do not overflow.

use super::bytes::Reader;
use crate::error::{Error, Result};
use half::f16;

/// The largest power of two that keeps 65504, F16's maximum, times 2^8 within F32: no decoded value overflows.
pub(crate) const LARGEST_UNIT: f32 = (1u128 << 103) as f32;

/// Whether F16 numbers may be multiplied by this: a power of two that is not too large.
fn is_unit(unit: f32) -> bool {
    unit.is_normal() && unit > 0.0 && unit.to_bits() & 0x7f_ffff == 0 && unit <= LARGEST_UNIT
}

/// A unit times `2^exponent`.
///
/// # Errors
/// When it leaves what a payload may hold.
pub(super) fn scaled_unit(unit: f32, exponent: i32) -> Result<f32> {
    let scaled = f64::from(unit) * 2f64.powi(exponent);
    if !(f64::from(f32::MIN_POSITIVE)..=f64::from(LARGEST_UNIT)).contains(&scaled) {
        let reason =
            format!("a unit of {scaled:e}; it must lie between {:e} and {LARGEST_UNIT:e}", f32::MIN_POSITIVE);
        return Err(Error::config(reason));
    }
    Ok(scaled as f32)
}

/// The power of two by which F16 numbers are multiplied so that the largest magnitude lies in
/// `2^top .. 2^(top + 1)`: tiny weights do not fall into F16's subnormals, huge ones do not overflow. Magnitudes of
/// `2^(104 + top)` and more are above that; [`in_units`] knows which are too large.
pub(crate) fn unit_for(values: impl Iterator<Item = f32>, top: i32) -> f32 {
    let largest = values.fold(0f32, |largest, value| largest.max(value.abs()));
    if largest == 0.0 {
        return 1.0;
    }
    let exponent = f64::from(largest).log2().floor() as i32 - top;
    2f32.powi(exponent.clamp(-126, LARGEST_UNIT.log2() as i32))
}

/// Values as F16 numbers times a unit; `what` names one of them.
///
/// # Errors
/// When one is not finite or too large.
pub(super) fn in_units(values: &[f32], unit: f32, what: &str) -> Result<Vec<f16>> {
    let half = |(index, value): (usize, &f32)| {
        let half = f16::from_f32(value / unit);
        match half.is_finite() {
            true => Ok(half),
            false => Err(too_large(&format!("{what} {index}"), *value)),
        }
    };
    values.iter().enumerate().map(half).collect()
}

/// The error of a number that no unit makes an F16 of.
pub(super) fn too_large(what: &str, value: f32) -> Error {
    let largest = f16::MAX.to_f32() * LARGEST_UNIT;
    Error::config(format!("{what} is {value:e}; it must be finite and at most {largest:e}"))
}

/// Scales as F16 numbers times the unit that suits them; `what` names one of them.
///
/// # Errors
/// When one is negative, not finite or too large.
pub(super) fn scales_in_units(scales: &[f32], what: &str) -> Result<(f32, Vec<f16>)> {
    if let Some(index) = scales.iter().position(|scale| *scale < 0.0) {
        return Err(Error::config(format!(
            "{what} {index} is {}; a scale cannot be negative",
            scales[index]
        )));
    }
    // A zero with a sign is one without.
    let scales: Vec<f32> = scales.iter().map(|scale| scale.abs()).collect();
    let unit = unit_for(scales.iter().copied().filter(|scale| scale.is_finite()), 7);
    Ok((unit, in_units(&scales, unit, what)?))
}

/// What payloads may hold as scales, and kernels rely on.
///
/// # Panics
/// When the unit or a scale is no such.
pub(super) fn expect_scales(what: &str, unit: f32, scales: impl IntoIterator<Item = f16>) {
    assert!(
        is_unit(unit),
        "the unit of the {what} is {unit:e}; it must be a power of two from 2^-126 to 2^103"
    );
    for scale in scales {
        assert!(
            scale.is_finite() && scale.is_sign_positive(),
            "a scale of the {what} is {scale}; it must be finite and have no sign"
        );
    }
}

/// Reads a unit.
pub(super) fn read_unit(reader: &mut Reader, what: &str) -> Result<f32> {
    let unit = reader.f32(what)?;
    if !(unit.is_normal() && unit > 0.0 && unit.to_bits() & 0x7f_ffff == 0) {
        return Err(Error::payload(format!("{what} is {unit}, not a power of two")));
    }
    if unit > LARGEST_UNIT {
        return Err(Error::payload(format!("{what} is {unit:e}; what it multiplies would overflow")));
    }
    Ok(unit)
}
