//! Lossless entropy coding, for files alone: in memory everything has a fixed width, as products want it.
//!
//! A run of symbols, each a byte, is coded under a [`Table`] of frequencies, which travels with it, by asymmetric numeral
//! systems (Duda, arXiv 1311.2540) in the crate `constriction`: words of 32 bits, states of 64, frequencies of 12. Runs are
//! dealt out to [`Lanes`] of their own bytes, whose states a processor advances side by side. What has no shape to be
//! learnt (signs, low bits) is written as it is ([`RawBits`]).
//!
//! FORMAT.md states the arithmetic, so that a reader needs no more than it.

mod lanes;
mod raw;
mod table;

pub(super) use lanes::{Lanes, encode};
pub(super) use raw::{RawBits, RawWriter};
pub(super) use table::{Counts, Decoder, SYMBOLS, Table};

use super::bytes::Reader;
use crate::error::{Error, Result};
use std::ops::Range;

/// What has more bytes than so many times its coded form is written as it is, and such a form is refused: what a reader
/// allocates stays in proportion to what it is given.
pub(super) const LARGEST_RATIO: usize = 64;

/// Refuses to decode to so many bytes what is left.
pub(super) fn expect_ratio(reader: &Reader, decoded: usize, what: &str) -> Result<()> {
    let left = reader.len();
    if decoded / LARGEST_RATIO > left {
        return Err(Error::payload(format!(
            "{what} would decode to {decoded} bytes, {left} are left; coded terms are at most {LARGEST_RATIO} times smaller"
        )));
    }
    Ok(())
}

/// Neighbouring items in chunks that are decoded apart: a chunk ends with the item by which it has reached `least`.
pub(super) fn chunks(sizes: impl Iterator<Item = usize>, least: usize) -> Vec<Range<usize>> {
    let (mut chunks, mut start, mut size, mut end) = (Vec::new(), 0, 0, 0);
    for item in sizes {
        size += item;
        end += 1;
        if size >= least {
            chunks.push(start..end);
            (start, size) = (end, 0);
        }
    }
    if size > 0 {
        chunks.push(start..end);
    }
    chunks
}

/// Cuts `data` into the parts of these chunks; item `n` lies at `starts[n]..starts[n + 1]`.
pub(super) fn parts<'a>(
    mut data: &'a mut [u8],
    starts: &[usize],
    chunks: &[Range<usize>],
) -> Vec<&'a mut [u8]> {
    let mut at = 0;
    chunks
        .iter()
        .map(|chunk| {
            let rest = std::mem::take(&mut data);
            let (own, rest) =
                rest[starts[chunk.start] - at..].split_at_mut(starts[chunk.end] - starts[chunk.start]);
            (data, at) = (rest, starts[chunk.end]);
            own
        })
        .collect()
}

#[cfg(test)]
mod tests;
