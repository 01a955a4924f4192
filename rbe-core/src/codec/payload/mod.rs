//! The bytes of one compressed tensor: write, read, check. FORMAT.md states every byte.
//!
//! A payload is untrusted input. Every count is checked against the bytes that are left before anything is
//! allocated for it; unknown codes are refused by name; a checksum covers all bytes; nothing may follow it.

use super::axis::Axis;
use super::entropy::LARGEST_RATIO;
use super::errors::Errors;
use super::layout::Layout;
use super::matrix::{Matrix, may_follow};
use super::scales::{AxisScales, MAX_STEP};
use super::term::{LARGEST_UNIT, Term};
use super::transform::Transform;
use crate::error::{Error, Result};
use half::f16;

const MAGIC: [u8; 4] = *b"RBET";
const VERSION: u16 = 2;
/// Bytes before the first term.
const HEADER_BYTES: usize = 40;
/// Bytes of the CRC-32 at the end.
const CHECKSUM_BYTES: usize = 4;

/// How a tensor's elements lie in the stored matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orientation {
    /// A vector of `cols` elements, stored as one row.
    Vector,
    /// The matrix itself.
    Matrix,
    /// The transpose of the stored matrix: `(cols, rows)`.
    Transposed,
}

/// How terms are written. What is read is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    /// Each term as it is, or entropy coded where that takes fewer bytes.
    Entropy,
    /// Each term as it is.
    None,
}

/// Elements that a payload of any size may have.
const FREE_ELEMENTS: usize = 1 << 24;
/// And how many more for each of its bytes: what blocks of edge 128 have of which nothing is stored but a count.
const ELEMENTS_PER_BYTE: usize = 1 << 13;

/// Refuses a payload of so few bytes that decoding it is out of proportion to them.
fn expect_proportion(layout: Layout, bytes: usize) -> Result<(), String> {
    let (rows, cols) = (layout.rows(), layout.cols());
    if layout.elements() <= bytes.saturating_mul(ELEMENTS_PER_BYTE).saturating_add(FREE_ELEMENTS) {
        return Ok(());
    }
    Err(format!(
        "{rows}x{cols} elements in {bytes} bytes; a payload has at most {FREE_ELEMENTS}, and {ELEMENTS_PER_BYTE} more for \
         each byte, as all have with blocks of edge 128 or less"
    ))
}

/// Whether a matrix seen through a view has a payload that its own reader takes.
///
/// # Errors
/// What is wrong with it: there are no terms, a vector has more than one row, or so little is stored of so many elements
/// that readers refuse it.
pub(super) fn expect_payload(matrix: &Matrix, orientation: Orientation) -> Result<()> {
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
pub(super) fn size_in_bytes(matrix: &Matrix, compression: Compression) -> usize {
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
pub(super) fn to_bytes(matrix: &Matrix, orientation: Orientation, compression: Compression) -> Vec<u8> {
    let layout = matrix.layout();
    expect_payload(matrix, orientation).unwrap_or_else(|error| panic!("{error}"));
    let compression = allowed(matrix, compression);
    let mut writer = Writer { bytes: Vec::with_capacity(size_in_bytes(matrix, Compression::None)) };
    writer.bytes(&MAGIC);
    writer.u16(VERSION);
    writer.u8(match orientation {
        Orientation::Vector => 0,
        Orientation::Matrix => 1,
        Orientation::Transposed => 2,
    });
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
    let checksum = crc32fast::hash(&writer.bytes);
    writer.u32(checksum);
    writer.bytes
}

/// What lies between a payload's version and its checksum, both of which are right.
fn checked(bytes: &[u8]) -> Result<Reader<'_>> {
    let mut reader = Reader { bytes };
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
    Ok(Reader { bytes: &body[MAGIC.len() + size_of::<u16>()..] })
}

/// Reads and checks a payload.
///
/// # Errors
/// [`Error::Payload`] with the first thing found wrong.
pub(super) fn from_bytes(bytes: &[u8]) -> Result<(Matrix, Orientation)> {
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
    if !reader.bytes.is_empty() {
        return Err(Error::payload(format!("{} bytes follow the last term", reader.bytes.len())));
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

/// Appends little-endian numbers.
#[derive(Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    #[cfg(test)]
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

    fn u64(&mut self, value: u64) {
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
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    #[cfg(test)]
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

    /// Refuses to decode to so many bytes what is left.
    pub(super) fn expect_ratio(&self, decoded: usize, what: &str) -> Result<()> {
        let left = self.bytes.len();
        if decoded / LARGEST_RATIO > left {
            return Err(Error::payload(format!(
                "{what} would decode to {decoded} bytes, {left} are left; coded terms are at most {LARGEST_RATIO} times \
                 smaller"
            )));
        }
        Ok(())
    }

    /// `count` elements of `N` bytes.
    pub(super) fn arrays<const N: usize>(&mut self, count: usize, what: &str) -> Result<&'a [[u8; N]]> {
        let bytes = count.checked_mul(N).ok_or_else(|| Error::payload(format!("{count} {what}")))?;
        Ok(self.take(bytes, what)?.as_chunks().0)
    }

    pub(super) fn u8(&mut self, what: &str) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array(what)?))
    }

    fn u16(&mut self, what: &str) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
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

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn f32(&mut self, what: &str) -> Result<f32> {
        Ok(f32::from_le_bytes(self.array(what)?))
    }

    /// The power of two that multiplies a term's F16 numbers.
    pub(super) fn unit(&mut self, what: &str) -> Result<f32> {
        let unit = self.f32(what)?;
        if !(unit.is_normal() && unit > 0.0 && unit.to_bits() & 0x7f_ffff == 0) {
            return Err(Error::payload(format!("{what} is {unit}, not a power of two")));
        }
        if unit > LARGEST_UNIT {
            return Err(Error::payload(format!("{what} is {unit:e}; what it multiplies would overflow")));
        }
        Ok(unit)
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

#[cfg(test)]
mod coded_tests;
#[cfg(test)]
mod tests;
