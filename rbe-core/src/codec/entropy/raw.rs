//! Bits that are written as they are, from the least significant of the first byte on.

use crate::codec::bytes::{Reader, Writer};
use crate::error::{Error, Result};

/// The most bits that are put or taken at once.
const MOST: u32 = 32;

/// Puts bits one after another.
#[derive(Default)]
pub(in crate::codec) struct RawWriter {
    bytes: Vec<u8>,
    buffer: u64,
    count: u32,
}

impl RawWriter {
    /// The low `count` bits of `bits`, which has no others.
    pub(in crate::codec) fn put(&mut self, bits: u32, count: u32) {
        debug_assert!(count <= MOST && u64::from(bits) >> count == 0);
        self.buffer |= u64::from(bits) << self.count;
        self.count += count;
        while self.count >= 8 {
            self.bytes.push(self.buffer as u8);
            self.buffer >>= 8;
            self.count -= 8;
        }
    }

    /// Writes the count of bytes, and them; bits after the last are 0.
    pub(in crate::codec) fn finish(mut self, writer: &mut Writer) {
        if self.count > 0 {
            self.bytes.push(self.buffer as u8);
        }
        writer.varint(self.bytes.len());
        writer.bytes(&self.bytes);
    }
}

/// Takes bits one after another; after the last they are 0, and [`finish`](Self::finish) tells.
pub(in crate::codec) struct RawBits<'a> {
    bytes: &'a [u8],
    buffer: u64,
    count: u32,
    /// Bits taken that were not there.
    missing: u64,
}

impl<'a> RawBits<'a> {
    /// # Errors
    /// When the bytes are not there.
    pub(in crate::codec) fn read(reader: &mut Reader<'a>) -> Result<Self> {
        let count = reader.varint("a count of raw bytes")?;
        Ok(Self { bytes: reader.take(count, "raw bits")?, buffer: 0, count: 0, missing: 0 })
    }

    #[inline(always)]
    pub(in crate::codec) fn take(&mut self, count: u32) -> u32 {
        debug_assert!(count <= MOST);
        if self.count < count {
            self.fill(count);
        }
        let bits = self.buffer & ((1 << count) - 1);
        self.buffer >>= count;
        self.count -= count;
        bits as u32
    }

    #[inline]
    fn fill(&mut self, count: u32) {
        if let Some((four, rest)) = self.bytes.split_first_chunk::<4>() {
            self.buffer |= u64::from(u32::from_le_bytes(*four)) << self.count;
            self.count += 32;
            self.bytes = rest;
            return;
        }
        while let [byte, rest @ ..] = self.bytes
            && self.count < count
        {
            self.buffer |= u64::from(*byte) << self.count;
            self.count += 8;
            self.bytes = rest;
        }
        if self.count < count {
            self.missing += u64::from(count - self.count);
            self.count = count;
        }
    }

    /// # Errors
    /// When there are bits left, or were too few.
    pub(in crate::codec) fn finish(self) -> Result<()> {
        match self.missing == 0 && self.bytes.is_empty() && self.count < 8 && self.buffer == 0 {
            true => Ok(()),
            false => Err(Error::payload("raw bits do not end where their bytes do")),
        }
    }
}
