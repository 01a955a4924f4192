//! Runs of symbols in lanes, each a coder of its own.

use super::table::{Decoder, Encoder, PRECISION};
use crate::codec::bytes::{Reader, Writer};
use crate::error::{Error, Result};
use constriction::Stack;
use constriction::backends::ReadWords;
use constriction::stream::stack::AnsCoder;
use constriction::stream::{Code, Decode, Encode};
use std::convert::Infallible;

/// A lane's words, little-endian, in the order in which they are read.
struct Words<'a>(&'a [[u8; 4]]);

impl ReadWords<u32, Stack> for Words<'_> {
    type ReadError = Infallible;

    #[inline(always)]
    fn read(&mut self) -> Result<Option<u32>, Infallible> {
        Ok(self.0.split_first().map(|(word, rest)| {
            self.0 = rest;
            u32::from_le_bytes(*word)
        }))
    }
}

type Lane<'a> = AnsCoder<u32, u64, Words<'a>>;

/// The decoders of `N` lanes. Of every run, lane `n` has the symbols `n, n + N, n + 2N, ...`: the next state of a coder
/// waits for its last, the lanes do not wait for each other.
pub(in crate::codec) struct Lanes<'a, const N: usize>([Lane<'a>; N]);

impl<'a, const N: usize> Lanes<'a, N> {
    /// # Errors
    /// When the words are not there.
    pub(in crate::codec) fn read(reader: &mut Reader<'a>) -> Result<Self> {
        let mut counts = [0; N];
        for count in &mut counts {
            *count = reader.varint("a lane's word count")?;
        }
        let mut lanes = Vec::with_capacity(N);
        for count in counts {
            let words = Words(reader.arrays(count, "a lane's words")?);
            let lane = Lane::from_compressed(words);
            lanes.push(lane.map_err(|_| Error::payload("a lane's first word is 0"))?);
        }
        let lanes: Result<[Lane; N], _> = lanes.try_into();
        Ok(Self(lanes.unwrap_or_else(|_| unreachable!("one is pushed for each of the counts"))))
    }

    /// The next run. Whatever the words are, there are symbols; [`finish`](Self::finish) says whether they were meant.
    #[inline]
    pub(in crate::codec) fn decode(&mut self, table: &Decoder, run: &mut [u8]) {
        let (groups, rest) = run.as_chunks_mut::<N>();
        for group in groups {
            for (lane, symbol) in self.0.iter_mut().zip(group) {
                Ok(*symbol) = lane.decode_symbol(table);
            }
        }
        for (lane, symbol) in self.0.iter_mut().zip(rest) {
            Ok(*symbol) = lane.decode_symbol(table);
        }
    }

    /// # Errors
    /// When something is left: a coder ends in the state 0 that it began with, its words used up.
    pub(in crate::codec) fn finish(self) -> Result<()> {
        match self.0.iter().all(|lane| lane.state() == 0 && lane.bulk().0.is_empty()) {
            true => Ok(()),
            false => Err(Error::payload("coded symbols do not end where their lane does")),
        }
    }
}

impl Lanes<'_, 1> {
    /// The next symbol.
    #[inline(always)]
    pub(in crate::codec) fn next(&mut self, table: &Decoder) -> u8 {
        let Ok(symbol) = self.0[0].decode_symbol(table);
        symbol
    }
}

/// Writes runs, each under a table of its own, for [`Lanes`] of the same `N`.
pub(in crate::codec) fn encode<const N: usize>(runs: &[(&[u8], &Encoder)], writer: &mut Writer) {
    let mut lanes: [AnsCoder<u32, u64>; N] = std::array::from_fn(|_| AnsCoder::new());
    let put = |lane: &mut AnsCoder<u32, u64>, symbol: &u8, table: &Encoder| {
        let put = Encode::<PRECISION>::encode_symbol(lane, symbol, table);
        put.unwrap_or_else(|_| unreachable!("a table has every symbol that was counted"));
    };
    // The last that is put is the first that is got.
    for (run, table) in runs.iter().rev() {
        let (groups, rest) = run.as_chunks::<N>();
        lanes.iter_mut().zip(rest).for_each(|(lane, symbol)| put(lane, symbol, table));
        for group in groups.iter().rev() {
            lanes.iter_mut().zip(group).for_each(|(lane, symbol)| put(lane, symbol, table));
        }
    }
    let words = lanes.map(|lane| {
        let Ok(words) = lane.into_compressed();
        words
    });
    words.iter().for_each(|words| writer.varint(words.len()));
    for words in &words {
        words.iter().rev().for_each(|word| writer.u32(*word));
    }
}
