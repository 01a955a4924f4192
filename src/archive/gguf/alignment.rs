//! A file's alignment, looked at before Candle divides by it.

use std::io::{BufRead, BufReader, Read, Result, Seek};

/// How deep arrays of arrays are followed, as Candle does.
const DEPTH: usize = 64;

/// Whether `general.alignment` is 0. Of what is no GGUF file nothing is said: its reader says it.
pub(super) fn is_zero(file: impl Read + Seek) -> bool {
    find(&mut Walk { reader: BufReader::new(file), wide: true }).unwrap_or(false)
}

fn find(walk: &mut Walk<impl Read + Seek>) -> Result<bool> {
    walk.number(4)?;
    walk.wide = walk.number(4)? > 1;
    walk.length()?;
    for _ in 0..walk.length()? {
        let mut key = Vec::new();
        let length = walk.length()?;
        walk.reader.by_ref().take(length).read_to_end(&mut key)?;
        let kind = walk.number(4)?;
        if key != b"general.alignment" {
            walk.skip(kind, DEPTH)?;
        } else if let Some(width) = width(kind) {
            return Ok(walk.number(width)? == 0);
        }
    }
    Ok(false)
}

/// Bytes of a number of GGUF's type.
fn width(kind: u64) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

struct Walk<R> {
    reader: BufReader<R>,
    /// Whether lengths have 64 bits, from the second version on.
    wide: bool,
}

impl<R: Read + Seek> Walk<R> {
    fn number(&mut self, width: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.reader.read_exact(&mut bytes[..width as usize])?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn length(&mut self) -> Result<u64> {
        self.number(if self.wide { 8 } else { 4 })
    }

    fn pass(&mut self, bytes: u64) -> Result<()> {
        let bytes = i64::try_from(bytes).map_err(|_| std::io::ErrorKind::UnexpectedEof)?;
        self.reader.seek_relative(bytes)?;
        match self.reader.fill_buf()?.is_empty() {
            true => Err(std::io::ErrorKind::UnexpectedEof.into()),
            false => Ok(()),
        }
    }

    fn skip(&mut self, kind: u64, depth: usize) -> Result<()> {
        const TEXT: u64 = 8;
        const ARRAY: u64 = 9;
        match kind {
            TEXT => {
                let length = self.length()?;
                self.pass(length)
            }
            ARRAY if depth > 0 => {
                let (kind, length) = (self.number(4)?, self.length()?);
                match width(kind) {
                    Some(width) => self.pass(length.saturating_mul(width)),
                    None => (0..length).try_for_each(|_| self.skip(kind, depth - 1)),
                }
            }
            kind => match width(kind) {
                Some(width) => self.pass(width),
                None => Err(std::io::ErrorKind::InvalidData.into()),
            },
        }
    }
}
