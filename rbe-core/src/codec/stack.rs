//! Several matrices of one shape in one payload, each with its own bytes and checksum: a layer's experts, any of which is read alone.

use super::bytes::{Reader, Writer};
use super::payload::is_in_proportion;
use crate::error::{Error, Result};
use std::ops::Range;

const MAGIC: [u8; 4] = *b"RBES";
const VERSION: u16 = 1;
/// Bytes before the lengths.
const HEADER_BYTES: usize = 20;
/// Bytes of the CRC-32 after the lengths.
const CHECKSUM_BYTES: usize = 4;

/// A stack whose header has been read: where the payload of each matrix lies. None of them has been looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack<'b> {
    rows: usize,
    cols: usize,
    parts: Vec<&'b [u8]>,
}

impl<'b> Stack<'b> {
    /// Whether bytes begin as a stack does.
    pub fn begins(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }

    /// Reads and checks the header.
    ///
    /// # Errors
    /// [`Error::Payload`] with the first thing found wrong.
    pub fn from_bytes(bytes: &'b [u8]) -> Result<Self> {
        let refuse = |reason: String| Err(Error::payload(format!("a stack: {reason}")));
        let mut reader = Reader::new(bytes);
        if reader.take(MAGIC.len(), "magic")? != MAGIC {
            return refuse("it does not begin with RBES".into());
        }
        match (reader.u16("version")?, reader.u16("reserved field")?) {
            (VERSION, 0) => {}
            (VERSION, other) => return refuse(format!("the reserved field is {other}, not 0")),
            (version, _) => return refuse(format!("version {version}; this build reads version {VERSION}")),
        }
        let [count, rows, cols] = ["matrices", "rows", "columns"].map(|what| reader.u32(what));
        let (count, rows, cols) = (count? as usize, rows? as usize, cols? as usize);
        let elements = count.checked_mul(rows).and_then(|all| all.checked_mul(cols)).unwrap_or(usize::MAX);
        if elements == 0 {
            return refuse(format!("{count} matrices of {rows}x{cols}; nothing is there"));
        }
        let lengths = reader.arrays::<8>(count, "lengths")?;
        let header = &bytes[..HEADER_BYTES + 8 * count];
        if reader.u32("checksum")? != crc32fast::hash(header) {
            return refuse(
                "the checksum of its header does not match; the bytes are damaged or cut short".into(),
            );
        }
        if !is_in_proportion(elements, bytes.len()) {
            let bytes = bytes.len();
            return refuse(format!("{count} matrices of {rows}x{cols} in {bytes} bytes, out of proportion"));
        }
        let mut parts = Vec::with_capacity(count);
        for length in lengths {
            let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
            parts.push(reader.take(length, "the payload of a matrix")?);
        }
        match reader.len() {
            0 => Ok(Self { rows, cols, parts }),
            left => refuse(format!("{left} bytes follow the last payload")),
        }
    }

    /// The stack of these payloads, each of which decodes to `rows` and `cols`.
    ///
    /// # Errors
    /// When there is none; when a number does not fit its field; when readers would refuse it, as so little is stored of so
    /// many elements.
    pub fn to_bytes(rows: usize, cols: usize, payloads: &[Vec<u8>]) -> Result<Vec<u8>> {
        let field = |value: usize, what: &str| {
            u32::try_from(value)
                .map_err(|_| Error::shape(format!("{value} {what}; a stack has fewer than 2^32")))
        };
        let bytes: usize = payloads.iter().map(Vec::len).sum();
        let mut writer = Writer::with_capacity(Self::header_bytes(payloads.len()) + bytes);
        writer.bytes(&MAGIC);
        writer.u16(VERSION);
        writer.u16(0);
        writer.u32(field(payloads.len(), "matrices")?);
        writer.u32(field(rows, "rows")?);
        writer.u32(field(cols, "columns")?);
        payloads.iter().for_each(|payload| writer.u64(payload.len() as u64));
        let checksum = crc32fast::hash(writer.written());
        writer.u32(checksum);
        payloads.iter().for_each(|payload| writer.bytes(payload));
        let bytes = writer.into_bytes();
        Stack::from_bytes(&bytes).map_err(|error| Error::config(error.to_string()))?;
        Ok(bytes)
    }

    /// Bytes that a stack of so many matrices takes beside their payloads.
    pub fn header_bytes(count: usize) -> usize {
        HEADER_BYTES + 8 * count + CHECKSUM_BYTES
    }

    /// The shape of the whole: how many matrices, and what each decodes to.
    pub fn shape(&self) -> [usize; 3] {
        [self.parts.len(), self.rows, self.cols]
    }

    /// Where the payload of each matrix lies in the stack's bytes.
    pub fn ranges(&self) -> Vec<Range<usize>> {
        let mut end = Self::header_bytes(self.parts.len());
        let range = |part: &&[u8]| {
            let start = end;
            end += part.len();
            start..end
        };
        self.parts.iter().map(range).collect()
    }

    /// The payload of each matrix.
    pub fn parts(&self) -> &[&'b [u8]] {
        &self.parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack() -> Vec<u8> {
        Stack::to_bytes(3, 5, &[vec![1, 2, 3], vec![], vec![4]]).unwrap()
    }

    fn refusal(bytes: &[u8]) -> String {
        Stack::from_bytes(bytes).unwrap_err().to_string()
    }

    /// With the checksum of a header that was changed.
    fn changed(at: usize, value: u8) -> Vec<u8> {
        let mut bytes = stack();
        bytes[at] = value;
        let checksum = crc32fast::hash(&bytes[..44]).to_le_bytes();
        bytes[44..48].copy_from_slice(&checksum);
        bytes
    }

    #[test]
    fn parts_are_what_was_put_in() {
        let bytes = stack();
        let stack = Stack::from_bytes(&bytes).unwrap();
        assert_eq!(stack.shape(), [3, 3, 5]);
        assert_eq!(stack.parts(), [&[1, 2, 3][..], &[], &[4]]);
        assert_eq!(stack.ranges(), [48..51, 51..51, 51..52]);
        assert!(Stack::begins(&bytes) && !Stack::begins(b"RBET"));
    }

    #[test]
    fn what_is_damaged_is_refused_in_words() {
        for (at, value, words) in [
            (0, b'X', "does not begin with RBES"),
            (4, 9, "version 9; this build reads version 1"),
            (6, 1, "reserved field is 1"),
            (8, 0, "nothing is there"),
            (12, 0, "nothing is there"),
            (20, 4, "the payload of a matrix"),
            (20, 2, "1 bytes follow the last payload"),
            (27, 255, "the payload of a matrix"),
            (15, 1, "out of proportion"),
        ] {
            let error = refusal(&changed(at, value));
            assert!(error.contains(words), "{at}: {error}");
        }
        // More matrices than lengths.
        assert!(refusal(&changed(11, 255)).contains("lengths"), "{}", refusal(&changed(11, 255)));
        let mut bytes = stack();
        bytes[21] ^= 1;
        assert!(refusal(&bytes).contains("checksum of its header"));
        for end in 0..bytes.len() {
            assert!(Stack::from_bytes(&stack()[..end]).is_err(), "{end}");
        }
        assert!(Stack::to_bytes(3, 5, &[]).is_err());
        assert!(
            Stack::to_bytes(1 << 13, 1 << 13, &[vec![0; 9]])
                .unwrap_err()
                .to_string()
                .contains("out of proportion")
        );
    }
}
