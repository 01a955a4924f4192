//! Frequencies of symbols: from counts, to and from bytes, and as the coder wants them.

use crate::codec::bytes::{Reader, Writer};
use crate::error::{Error, Result};
use constriction::stream::model::{DecoderModel, EncoderModel, EntropyModel};
use std::borrow::Borrow;
use std::num::NonZeroU16;
use std::sync::LazyLock;

/// Symbols are bytes.
pub(in crate::codec) const SYMBOLS: usize = 256;
/// Bits of a frequency.
pub(super) const PRECISION: usize = 12;
/// What all frequencies sum to.
const TOTAL: u16 = 1 << PRECISION;

/// How often each symbol occurs.
pub(in crate::codec) type Counts = [u64; SYMBOLS];

/// The frequency of each symbol, in parts of 2^12.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::codec) struct Table {
    frequencies: [u16; SYMBOLS],
}

/// `2^16 log2(n)`, rounded down, of every frequency: in integers, so that all machines choose alike.
static LOG2: LazyLock<[u32; TOTAL as usize + 1]> = LazyLock::new(|| {
    std::array::from_fn(|n| {
        let n = (n as u32).max(1);
        let mut mantissa = u64::from(n) << (31 - n.ilog2());
        (0..16).fold(n.ilog2(), |log, _| {
            mantissa = (mantissa * mantissa) >> 31;
            let bit = mantissa >> 32;
            mantissa >>= bit;
            log << 1 | bit as u32
        })
    })
});

impl Table {
    /// The frequencies nearest to these counts by what coding costs; none that occurs has none.
    pub(in crate::codec) fn new(counts: &Counts) -> Self {
        let total: u64 = counts.iter().sum();
        let mut frequencies = [0; SYMBOLS];
        if total == 0 {
            frequencies[0] = TOTAL;
            return Self { frequencies };
        }
        for (frequency, count) in frequencies.iter_mut().zip(counts) {
            let share = u128::from(*count) * u128::from(TOTAL) / u128::from(total);
            *frequency = (share as u16).max(u16::from(*count > 0));
        }
        let log2 = |frequency: u16| u64::from(LOG2[usize::from(frequency)]);
        let mut sum: u16 = frequencies.iter().sum();
        // Rounding left some over, or took too many: one after another where it saves the most, or costs the least.
        while sum != TOTAL {
            let occurring = (0..SYMBOLS).filter(|symbol| frequencies[*symbol] > 0);
            let rises = sum < TOTAL;
            let best = if rises {
                let saves = |s: &usize| counts[*s] * (log2(frequencies[*s] + 1) - log2(frequencies[*s]));
                occurring.max_by_key(saves)
            } else {
                let costs = |s: &usize| counts[*s] * (log2(frequencies[*s]) - log2(frequencies[*s] - 1));
                occurring.filter(|symbol| frequencies[*symbol] > 1).min_by_key(costs)
            };
            let Some(best) = best else { unreachable!("at most 256 symbols share 4096") };
            if rises {
                (frequencies[best], sum) = (frequencies[best] + 1, sum + 1);
            } else {
                (frequencies[best], sum) = (frequencies[best] - 1, sum - 1);
            }
        }
        Self { frequencies }
    }

    /// What coding these symbols comes to, in parts of 2^16 bits.
    pub(in crate::codec) fn cost(&self, counts: &Counts) -> u64 {
        let cost = |(count, frequency): (&u64, &u16)| {
            count * ((PRECISION as u64) << 16).saturating_sub(u64::from(LOG2[usize::from(*frequency)]))
        };
        counts.iter().zip(&self.frequencies).map(cost).sum()
    }

    /// The first and the last symbol that can occur.
    fn ends(&self) -> (usize, usize) {
        let occurs = |frequency: &u16| *frequency > 0;
        let first = self.frequencies.iter().position(occurs).unwrap_or(0);
        (first, self.frequencies.iter().rposition(occurs).unwrap_or(0))
    }

    /// The largest symbol that can occur.
    pub(in crate::codec) fn largest(&self) -> usize {
        self.ends().1
    }

    /// Bytes that [`write`](Self::write) makes.
    pub(in crate::codec) fn size_in_bytes(&self) -> usize {
        let (first, last) = self.ends();
        2 + self.frequencies[first..=last].iter().map(|f| if *f < 128 { 1 } else { 2 }).sum::<usize>()
    }

    pub(in crate::codec) fn write(&self, writer: &mut Writer) {
        let (first, last) = self.ends();
        writer.bytes(&[first as u8, last as u8]);
        self.frequencies[first..=last].iter().for_each(|frequency| writer.varint(usize::from(*frequency)));
    }

    /// # Errors
    /// When the frequencies do not sum to 2^12, or begin or end with none.
    pub(in crate::codec) fn read(reader: &mut Reader) -> Result<Self> {
        let (first, last) = (reader.u8("a table's first symbol")?, reader.u8("a table's last symbol")?);
        let mut frequencies = [0; SYMBOLS];
        let mut sum = 0;
        for symbol in first..=last {
            let frequency = reader.varint("frequencies")?;
            if frequency == 0 && (symbol == first || symbol == last) {
                return Err(Error::payload("a table of frequencies begins or ends with none"));
            }
            sum += frequency.min(usize::from(TOTAL) + 1);
            frequencies[usize::from(symbol)] = frequency as u16;
        }
        if sum != usize::from(TOTAL) {
            return Err(Error::payload(format!("a table of frequencies that sum to {sum}, not {TOTAL}")));
        }
        Ok(Self { frequencies })
    }

    pub(in crate::codec) fn encoder(&self) -> Encoder {
        let mut start = 0;
        Encoder(self.frequencies.map(|frequency| {
            start += frequency;
            (start - frequency, frequency)
        }))
    }

    pub(in crate::codec) fn decoder(&self) -> Decoder {
        let mut slots = Vec::with_capacity(usize::from(TOTAL));
        for (symbol, frequency) in (0u32..).zip(self.frequencies) {
            let start = slots.len() as u32;
            let slot = start << 20 | u32::from(frequency.saturating_sub(1)) << 8 | symbol;
            slots.resize(slots.len() + usize::from(frequency), slot);
        }
        let slots: Result<Box<[u32; TOTAL as usize]>, _> = slots.into_boxed_slice().try_into();
        Decoder(slots.unwrap_or_else(|_| unreachable!("frequencies sum to 4096")))
    }
}

/// For each symbol where its share of the 2^12 begins, and its frequency.
pub(in crate::codec) struct Encoder([(u16, u16); SYMBOLS]);

impl EntropyModel<PRECISION> for Encoder {
    type Symbol = u8;
    type Probability = u16;
}

impl EncoderModel<PRECISION> for Encoder {
    fn left_cumulative_and_probability(&self, symbol: impl Borrow<u8>) -> Option<(u16, NonZeroU16)> {
        let (start, frequency) = self.0[usize::from(*symbol.borrow())];
        NonZeroU16::new(frequency).map(|frequency| (start, frequency))
    }
}

/// For each of the 2^12 `[start:12][frequency - 1:12][symbol:8]` of the symbol whose share it is in.
pub(in crate::codec) struct Decoder(Box<[u32; TOTAL as usize]>);

impl EntropyModel<PRECISION> for Decoder {
    type Symbol = u8;
    type Probability = u16;
}

impl DecoderModel<PRECISION> for Decoder {
    #[inline(always)]
    fn quantile_function(&self, quantile: u16) -> (u8, u16, NonZeroU16) {
        let slot = self.0[usize::from(quantile % TOTAL)];
        (slot as u8, (slot >> 20) as u16, NonZeroU16::MIN.saturating_add((slot >> 8) as u16 % TOTAL))
    }
}
