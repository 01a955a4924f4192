//! The bytes of one compressed tensor: write, read, check. FORMAT.md states every byte.
//!
//! A payload is untrusted input. Every count is checked against the bytes that are left before anything is
//! allocated for it; unknown codes are refused by name; a checksum covers all bytes; nothing may follow it.

use super::axis::Axis;
use super::bytes::{Reader, Writer};
use super::entropy::LARGEST_RATIO;
use super::errors::Errors;
use super::layout::Layout;
use super::matrix::{Matrix, Orientation, may_follow};
use super::scales::{AxisScales, MAX_STEP};
use super::term::Term;
use super::term::summand::Compression;
use super::transform::Transform;
use crate::error::{Error, Result};

const MAGIC: [u8; 4] = *b"RBET";
const VERSION: u16 = 2;
/// Bytes before the first term.
const HEADER_BYTES: usize = 40;
/// Bytes of the CRC-32 at the end.
const CHECKSUM_BYTES: usize = 4;

impl Matrix {
    /// Reads and checks a payload.
    ///
    /// # Errors
    /// [`Error::Payload`] with the first thing found wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<(Self, Orientation)> {
        from_bytes(bytes)
    }

    /// The payload of this matrix seen through `orientation`, each term entropy coded where that takes fewer bytes.
    ///
    /// # Panics
    /// When readers would refuse it: [`expect_payload`](Self::expect_payload).
    pub fn to_bytes(&self, orientation: Orientation) -> Vec<u8> {
        to_bytes(self, orientation, Compression::Entropy)
    }

    /// The payload with every term as it is: read the fastest, and cut after any bit-plane.
    ///
    /// # Panics
    /// As [`to_bytes`](Self::to_bytes).
    pub fn to_plain_bytes(&self, orientation: Orientation) -> Vec<u8> {
        to_bytes(self, orientation, Compression::None)
    }

    /// Whether [`to_bytes`](Self::to_bytes) has something to write that readers take.
    ///
    /// # Errors
    /// When there are no terms, a vector has more than one row, or a matrix of more than 2^24 elements has less than a byte
    /// for each 2^13 more, as one of nearly nothing but zeros in blocks of 256 has.
    pub fn expect_payload(&self, orientation: Orientation) -> Result<()> {
        expect_payload(self, orientation)
    }

    /// Bytes of the payload that [`to_bytes`](Self::to_bytes) makes. It takes as long to know.
    pub fn size_in_bytes(&self) -> usize {
        size_in_bytes(self, Compression::Entropy)
    }

    /// Bytes of the payload that [`to_plain_bytes`](Self::to_plain_bytes) makes.
    pub fn plain_size_in_bytes(&self) -> usize {
        size_in_bytes(self, Compression::None)
    }
}

/// Elements that a payload of any size may have.
const FREE_ELEMENTS: usize = 1 << 24;
/// And how many more for each of its bytes: what blocks of edge 128 have of which nothing is stored but a count.
const ELEMENTS_PER_BYTE: usize = 1 << 13;

/// Refuses a payload of so few bytes that decoding it is out of proportion to them.
fn expect_proportion(layout: Layout, bytes: usize) -> Result<(), String> {
    let (rows, cols) = (layout.rows(), layout.cols());
    if is_in_proportion(layout.elements(), bytes) {
        return Ok(());
    }
    Err(format!(
        "{rows}x{cols} elements in {bytes} bytes; a payload has at most {FREE_ELEMENTS}, and {ELEMENTS_PER_BYTE} more for \
         each byte, as all have with blocks of edge 128 or less"
    ))
}

/// Whether so many bytes may stand for so many elements.
pub(super) fn is_in_proportion(elements: usize, bytes: usize) -> bool {
    elements <= bytes.saturating_mul(ELEMENTS_PER_BYTE).saturating_add(FREE_ELEMENTS)
}

/// Whether a matrix seen through a view has a payload that its own reader takes.
///
/// # Errors
/// What is wrong with it: there are no terms, a vector has more than one row, or so little is stored of so many elements
/// that readers refuse it.
fn expect_payload(matrix: &Matrix, orientation: Orientation) -> Result<()> {
    let layout = matrix.layout();
    if matrix.terms().is_empty() {
        return Err(Error::config("a matrix without terms has no payload; it needs at least one"));
    }
    if orientation == Orientation::Vector && layout.rows() != 1 {
        return Err(Error::shape(format!("a vector with {} rows", layout.rows())));
    }
    expect_proportion(layout, size_in_bytes(matrix, Compression::None)).map_err(Error::config)
}

/// The form to write: the smallest, unless it is so small that readers refuse it.
fn allowed(matrix: &Matrix, compression: Compression) -> Compression {
    // To know how small it is takes as long as to write it: seldom is it so small that it matters.
    let least = bytes_of(matrix, Compression::None) / LARGEST_RATIO;
    if compression == Compression::None || expect_proportion(matrix.layout(), least).is_ok() {
        return compression;
    }
    match expect_proportion(matrix.layout(), bytes_of(matrix, compression)) {
        Ok(()) => compression,
        Err(_) => Compression::None,
    }
}

/// Bytes that [`to_bytes`] makes.
fn size_in_bytes(matrix: &Matrix, compression: Compression) -> usize {
    bytes_of(matrix, allowed(matrix, compression))
}

fn bytes_of(matrix: &Matrix, compression: Compression) -> usize {
    let terms = matrix.terms().iter().map(match compression {
        Compression::Entropy => Term::coded_size_in_bytes,
        Compression::None => Term::size_in_bytes,
    });
    HEADER_BYTES
        + scales_of(matrix).flatten().map(AxisScales::size_in_bytes).sum::<usize>()
        + terms.sum::<usize>()
        + CHECKSUM_BYTES
}

/// Bits of the flags: random signs, scales of rows, scales of columns.
const SIGNS: u8 = 1;
const ROW_SCALES: u8 = 2;
const COL_SCALES: u8 = 4;

/// The scales of rows and of columns.
fn scales_of(matrix: &Matrix) -> impl Iterator<Item = Option<&AxisScales>> {
    [&matrix.axes().rows, &matrix.axes().cols].into_iter().map(Axis::scales)
}

/// The payload of a matrix seen through `orientation`.
///
/// # Panics
/// When it would be one that readers refuse ([`expect_payload`]).
fn to_bytes(matrix: &Matrix, orientation: Orientation, compression: Compression) -> Vec<u8> {
    let layout = matrix.layout();
    expect_payload(matrix, orientation).unwrap_or_else(|error| panic!("{error}"));
    let compression = allowed(matrix, compression);
    let mut writer = Writer::with_capacity(size_in_bytes(matrix, Compression::None));
    writer.bytes(&MAGIC);
    writer.u16(VERSION);
    writer.u8(code(orientation));
    writer.u8(matrix.transform().code());
    writer.u32(layout.rows() as u32);
    writer.u32(layout.cols() as u32);
    writer.u16(layout.block() as u16);
    let scaled = scales_of(matrix).zip([ROW_SCALES, COL_SCALES]);
    let flags = scaled.map(|(scales, flag)| if scales.is_some() { flag } else { 0 });
    writer.u8(if matrix.seed().is_some() { SIGNS } else { 0 } | flags.sum::<u8>());
    writer.u8(matrix.terms().len() as u8);
    writer.u64(matrix.seed().unwrap_or(0));
    let Errors { relative, worst_row, worst_block } = matrix.errors();
    [relative, worst_row, worst_block].into_iter().for_each(|error| writer.f32(error));
    for scales in scales_of(matrix).flatten() {
        writer.u8(scales.step());
        writer.bytes(scales.codes());
    }
    matrix.terms().iter().for_each(|term| term.write(&mut writer, compression));
    let checksum = crc32fast::hash(writer.written());
    writer.u32(checksum);
    writer.into_bytes()
}

fn code(orientation: Orientation) -> u8 {
    match orientation {
        Orientation::Vector => 0,
        Orientation::Matrix => 1,
        Orientation::Transposed => 2,
    }
}

/// The payload of the same matrix seen through another view, a matrix or its transpose: all other bytes are as they are.
///
/// # Errors
/// [`Error::Payload`] when its checksum is not right; when one of the views is a vector's.
pub fn seen_through(mut bytes: Vec<u8>, orientation: Orientation) -> Result<Vec<u8>> {
    let (stored, wanted) = (checked(&bytes)?.u8("orientation")?, code(orientation));
    if stored == wanted {
        return Ok(bytes);
    }
    if [stored, wanted].contains(&code(Orientation::Vector)) {
        return Err(Error::shape("a vector has no transpose"));
    }
    bytes[MAGIC.len() + size_of::<u16>()] = wanted;
    let body = bytes.len() - CHECKSUM_BYTES;
    let checksum = crc32fast::hash(&bytes[..body]);
    bytes[body..].copy_from_slice(&checksum.to_le_bytes());
    Ok(bytes)
}

/// What lies between a payload's version and its checksum, both of which are right.
fn checked(bytes: &[u8]) -> Result<Reader<'_>> {
    let mut reader = Reader::new(bytes);
    if reader.take(4, "magic")? != MAGIC {
        return Err(Error::payload("it does not begin with RBET"));
    }
    let version = reader.u16("version")?;
    if version != VERSION {
        return Err(Error::payload(format!("version {version}; this build reads version {VERSION}")));
    }
    let body = bytes.len().checked_sub(CHECKSUM_BYTES).filter(|body| *body >= HEADER_BYTES);
    let Some((body, checksum)) = body.map(|body| bytes.split_at(body)) else {
        return Err(Error::payload(format!("{} bytes are less than a header", bytes.len())));
    };
    let computed = crc32fast::hash(body);
    if checksum != computed.to_le_bytes() {
        return Err(Error::payload("the checksum does not match; the bytes are damaged or cut short"));
    }
    Ok(Reader::new(&body[MAGIC.len() + size_of::<u16>()..]))
}

/// Reads and checks a payload.
///
/// # Errors
/// [`Error::Payload`] with the first thing found wrong.
fn from_bytes(bytes: &[u8]) -> Result<(Matrix, Orientation)> {
    let mut reader = checked(bytes)?;
    let orientation = match reader.u8("orientation")? {
        0 => Orientation::Vector,
        1 => Orientation::Matrix,
        2 => Orientation::Transposed,
        other => return Err(Error::payload(format!("unknown orientation {other}"))),
    };
    let code = reader.u8("transform")?;
    let transform =
        Transform::from_code(code).ok_or_else(|| Error::payload(format!("unknown transform {code}")))?;
    let (rows, cols) = (reader.u32("rows")? as usize, reader.u32("columns")? as usize);
    let block = usize::from(reader.u16("block edge")?);
    let layout = Layout::new(rows, cols, block).map_err(|error| Error::payload(error.to_string()))?;
    if orientation == Orientation::Vector && rows != 1 {
        return Err(Error::payload(format!("a vector with {rows} rows")));
    }
    expect_proportion(layout, bytes.len()).map_err(Error::payload)?;
    let flags = reader.u8("flags")?;
    if flags > SIGNS | ROW_SCALES | COL_SCALES {
        return Err(Error::payload(format!("unknown flags {flags:#04x}")));
    }
    let term_count = reader.u8("term count")?;
    let seed = reader.u64("seed")?;
    if flags & SIGNS == 0 && seed != 0 {
        return Err(Error::payload("a seed without random signs"));
    }
    let errors = read_errors(&mut reader)?;
    if term_count == 0 {
        return Err(Error::payload("no terms"));
    }
    let mut scales = |flag: u8, len: usize, what: &str| {
        (flags & flag != 0).then(|| read_scales(&mut reader, len, what)).transpose()
    };
    let row_scales = scales(ROW_SCALES, rows, "row scales")?;
    let col_scales = scales(COL_SCALES, cols, "column scales")?;
    let mut terms: Vec<Term> = Vec::new();
    for _ in 0..term_count {
        let term = Term::read(&mut reader, layout)?;
        if !may_follow(&term, &terms) {
            return Err(Error::payload("terms repeat or are out of order"));
        }
        terms.push(term);
    }
    if reader.len() > 0 {
        return Err(Error::payload(format!("{} bytes follow the last term", reader.len())));
    }
    let seed = (flags & SIGNS != 0).then_some(seed);
    let matrix = Matrix::new(layout, transform, seed, terms, errors).with_scales(row_scales, col_scales);
    Ok((matrix, orientation))
}

fn read_errors(reader: &mut Reader) -> Result<Errors> {
    let mut error = |what: &str| match reader.f32(what)? {
        error if error.is_finite() && error >= 0.0 => Ok(error),
        error => Err(Error::payload(format!("{what} {error}"))),
    };
    Ok(Errors {
        relative: error("relative error")?,
        worst_row: error("worst row's error")?,
        worst_block: error("worst block's error")?,
    })
}

fn read_scales(reader: &mut Reader, len: usize, what: &str) -> Result<AxisScales> {
    let step = reader.u8(what)?;
    let codes = reader.take(len.div_ceil(2), what)?.to_vec();
    AxisScales::from_codes(step, len, codes).ok_or_else(|| {
        let reason =
            format!("{what} of step {step}, which must be 1 to {MAX_STEP}, or with a code after the last");
        Error::payload(reason)
    })
}

#[cfg(test)]
mod coded_tests;
#[cfg(test)]
mod tests;
