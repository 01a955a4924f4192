//! Little-endian numbers on their way into a payload and out of one.
//!
//! What is read is untrusted: a count is checked against the bytes that are left before anything is allocated for it, and
//! F16 and F32 numbers are finite.

use crate::error::{Error, Result};
use half::f16;

/// Appends little-endian numbers.
#[derive(Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes) }
    }

    pub(super) fn written(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(super) fn append(&mut self, other: Writer) {
        self.bytes(&other.bytes);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    /// Seven bits a byte, from the least significant; the highest bit of all but the last is set.
    pub(super) fn varint(&mut self, mut value: usize) {
        while value >= 1 << 7 {
            self.u8(value as u8 | 1 << 7);
            value >>= 7;
        }
        self.u8(value as u8);
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn f32(&mut self, value: f32) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn f16s(&mut self, values: &[f16]) {
        values.iter().for_each(|value| self.bytes(&value.to_le_bytes()));
    }
}

/// Takes little-endian numbers off the front; `what` names them in errors.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(super) fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8]> {
        let Some((taken, rest)) = self.bytes.split_at_checked(count) else {
            let left = self.bytes.len();
            return Err(Error::payload(format!("{what} need {count} bytes, {left} are left")));
        };
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    /// Bytes that are left.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// `count` elements of `N` bytes.
    pub(super) fn arrays<const N: usize>(&mut self, count: usize, what: &str) -> Result<&'a [[u8; N]]> {
        let bytes = count.checked_mul(N).ok_or_else(|| Error::payload(format!("{count} {what}")))?;
        Ok(self.take(bytes, what)?.as_chunks().0)
    }

    pub(super) fn u8(&mut self, what: &str) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u16(&mut self, what: &str) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    /// A number of up to 28 bits, seven a byte, from the least significant; the highest bit of all but the last is set.
    pub(super) fn varint(&mut self, what: &str) -> Result<usize> {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.u8(what)?;
            value |= usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Error::payload(format!("{what} of more than 28 bits")))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    pub(super) fn f32(&mut self, what: &str) -> Result<f32> {
        Ok(f32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u16s(&mut self, count: usize, what: &str) -> Result<Vec<u16>> {
        Ok(self.arrays(count, what)?.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect())
    }

    pub(super) fn f32s(&mut self, count: usize, what: &str) -> Result<Vec<f32>> {
        let values: Vec<f32> =
            self.arrays(count, what)?.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        match values.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(Error::payload(format!("{what} hold {value}"))),
            None => Ok(values),
        }
    }

    pub(super) fn f16s(&mut self, count: usize, what: &str) -> Result<Vec<f16>> {
        let values: Vec<f16> =
            self.arrays(count, what)?.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect();
        match values.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(Error::payload(format!("{what} hold {value}"))),
            None => Ok(values),
        }
    }

    /// F16 numbers that are finite and not negative.
    pub(super) fn scales(&mut self, count: usize, what: &str) -> Result<Vec<f16>> {
        let scales = self.f16s(count, what)?;
        match scales.iter().find(|scale| scale.is_sign_negative()) {
            Some(scale) => Err(Error::payload(format!("{what} hold {scale}"))),
            None => Ok(scales),
        }
    }
}
