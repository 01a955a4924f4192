//! How an entry of the sparse term lies in memory and on disk: its position, and its value as a field of a few bits.

use crate::codec::layout::Block;
use half::f16;
use std::ops::Range;
use std::sync::LazyLock;

/// How an entry lies in memory and on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 32 bits an entry, F16 value.
    Word32,
    /// 24 bits an entry, 10-bit value, blocks of edge 64 or less.
    Word24,
    /// 24 bits an entry, 8-bit logarithmic value.
    Word24Mu,
    /// A bit mask per row, F16 values.
    RowMask,
}

/// Every format, in the order of their codes.
pub const FORMATS: [Format; 4] = [Format::Word32, Format::Word24, Format::Word24Mu, Format::RowMask];

/// The companding constant of the mu-law (ITU-T G.711's for eight bits).
const MU: f32 = 255.0;

/// The largest fraction of `Word24`.
pub(crate) const LARGEST_FRACTION: u16 = 511;

/// The value in `-1..=1` of each mu-law code: `((1 + mu)^(level / 127) - 1) / mu`, the sign above seven bits of level.
pub static MU_LAW: LazyLock<[f32; 256]> = LazyLock::new(|| {
    std::array::from_fn(|code| {
        let magnitude = ((code & 127) as f32 / 127.0 * MU.ln_1p()).exp_m1() / MU;
        if code >> 7 == 1 { -magnitude } else { magnitude }
    })
});

impl Format {
    /// Whether blocks of this edge can be written.
    pub fn allows(self, block: usize) -> bool {
        self != Format::Word24 || block <= 64
    }

    /// Whether the format has one scale per block.
    pub(super) fn has_scales(self) -> bool {
        matches!(self, Format::Word24 | Format::Word24Mu)
    }

    /// Bits of one entry, positions in masks not counted.
    pub(crate) fn entry_bits(self) -> usize {
        match self {
            Format::Word32 => 32,
            Format::Word24 | Format::Word24Mu => 24,
            Format::RowMask => 16,
        }
    }

    /// Bits of the magnitude in a field; the sign is the bit above them.
    pub(super) fn magnitude_bits(self) -> u32 {
        match self {
            Format::Word32 | Format::RowMask => 15,
            Format::Word24 => 9,
            Format::Word24Mu => 7,
        }
    }

    /// Bits of a block beyond its entries: count, scale, masks.
    pub(crate) fn block_bits(self, block: Block) -> usize {
        let mask = if self == Format::RowMask { 8 * block.height * block.mask_bytes() } else { 0 };
        16 + if self.has_scales() { 16 } else { mask }
    }

    pub(super) fn block_bytes(self, block: Block, count: usize) -> usize {
        match self {
            Format::RowMask => block.height * block.mask_bytes() + 2 * count,
            words => count * words.entry_bits() / 8,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Format::Word32 => "word32",
            Format::Word24 => "word24",
            Format::Word24Mu => "word24mu",
            Format::RowMask => "rowmask",
        }
    }

    /// The field of a value: the bits of an F16, `[sign:1][fraction:9]`, or `[sign:1][level:7]`. `scale` is the block's
    /// largest magnitude in the formats that have scales, and the term's unit in the others.
    pub(crate) fn field(self, value: f32, scale: f32) -> u16 {
        let share = if scale > 0.0 { (value.abs() / scale).min(1.0) } else { 0.0 };
        let sign = u16::from(value.is_sign_negative());
        match self {
            Format::Word32 | Format::RowMask => f16::from_f32(value / scale).to_bits(),
            Format::Word24 => sign << 9 | (share * f32::from(LARGEST_FRACTION)).round() as u16,
            Format::Word24Mu => sign << 7 | (127.0 * (MU * share).ln_1p() / MU.ln_1p()).round() as u16,
        }
    }

    /// The value of a field, the reverse of [`field`](Self::field).
    #[inline(always)]
    pub(crate) fn value(self, field: u16, scale: f32) -> f32 {
        let in_units = match self {
            Format::Word32 | Format::RowMask => f16::from_bits(field).to_f32(),
            Format::Word24 => {
                let magnitude = f32::from(field & LARGEST_FRACTION) / f32::from(LARGEST_FRACTION);
                if field >> 9 == 1 { -magnitude } else { magnitude }
            }
            Format::Word24Mu => MU_LAW[usize::from(field & 255)],
        };
        in_units * scale
    }

    /// Writes entry `n` of a block's bytes, zero so far.
    #[inline(always)]
    pub(super) fn put(self, data: &mut [u8], block: Block, n: usize, (row, col): (usize, usize), field: u16) {
        let (row_bits, col_bits, field_bits) = (row as u32, col as u32, u32::from(field));
        match self {
            Format::Word32 => {
                let word = row_bits << 24 | col_bits << 16 | field_bits;
                data[4 * n..4 * n + 4].copy_from_slice(&word.to_le_bytes());
            }
            Format::Word24 => {
                let word = row_bits << 18 | col_bits << 12 | field_bits << 2;
                data[3 * n..3 * n + 3].copy_from_slice(&word.to_le_bytes()[..3]);
            }
            Format::Word24Mu => {
                data[3 * n..3 * n + 3].copy_from_slice(&[field as u8, col as u8, row as u8]);
            }
            Format::RowMask => {
                data[row * block.mask_bytes() + col / 8] |= 1 << (col % 8);
                let fields = block.height * block.mask_bytes();
                data[fields + 2 * n..fields + 2 * n + 2].copy_from_slice(&field.to_le_bytes());
            }
        }
    }

    /// Calls `f(row, column, field)` for each entry of a block's bytes in these rows, in row-major order.
    #[inline]
    pub(super) fn for_each(
        self,
        data: &[u8],
        block: Block,
        rows: Range<usize>,
        mut f: impl FnMut(usize, usize, u16),
    ) {
        match self {
            Format::Word32 => {
                let (words, _) = data.as_chunks::<4>();
                let row_of = |word: &[u8; 4]| usize::from(word[3]);
                for word in &words[words.partition_point(|word| row_of(word) < rows.start)..] {
                    if row_of(word) >= rows.end {
                        break;
                    }
                    f(row_of(word), word[2].into(), u16::from_le_bytes([word[0], word[1]]));
                }
            }
            Format::Word24 => {
                let (words, _) = data.as_chunks::<3>();
                let row_of = |word: &[u8; 3]| usize::from(word[2] >> 2);
                for word in &words[words.partition_point(|word| row_of(word) < rows.start)..] {
                    if row_of(word) >= rows.end {
                        break;
                    }
                    let bits = u32::from_le_bytes([word[0], word[1], word[2], 0]);
                    f(row_of(word), (bits >> 12 & 63) as usize, (bits >> 2 & 0x3ff) as u16);
                }
            }
            Format::Word24Mu => {
                let (words, _) = data.as_chunks::<3>();
                let row_of = |word: &[u8; 3]| usize::from(word[2]);
                for word in &words[words.partition_point(|word| row_of(word) < rows.start)..] {
                    if row_of(word) >= rows.end {
                        break;
                    }
                    f(row_of(word), word[1].into(), word[0].into());
                }
            }
            Format::RowMask => {
                let (masks, fields) = data.split_at(block.height * block.mask_bytes());
                let ones = |masks: &[u8]| masks.iter().map(|mask| mask.count_ones() as usize).sum::<usize>();
                let (fields, _) = fields.as_chunks::<2>();
                let mut fields = fields[ones(&masks[..rows.start * block.mask_bytes()])..].iter();
                let masks = masks.chunks_exact(block.mask_bytes());
                for (row, masks) in masks.enumerate().take(rows.end).skip(rows.start) {
                    for (byte, &mask) in masks.iter().enumerate() {
                        let mut mask = mask;
                        while mask != 0 {
                            let Some(field) = fields.next() else { return };
                            f(row, 8 * byte + mask.trailing_zeros() as usize, u16::from_le_bytes(*field));
                            mask &= mask - 1;
                        }
                    }
                }
            }
        }
    }
}
