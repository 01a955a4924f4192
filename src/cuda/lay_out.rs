//! Scale groups in the order in which threads read them: see `groups.cuh`.

use super::blocks::WARP;
use crate::error::{Error, Result};
use rayon::prelude::*;
use rbe_core::codec::term::trellis::{GROUP_COLS, scale_groups};
use rbe_core::codec::{Block, Layout};

/// Rows of a piece.
pub(super) const PIECE: usize = 32;

/// Threads that share a column of so many rows.
pub(super) fn lanes_of(height: usize) -> usize {
    let pieces = height / PIECE;
    if height.is_multiple_of(PIECE) && pieces.is_power_of_two() {
        pieces
    } else {
        // Sixteen bits of the cycle's beginning follow its end.
        (height + 16).div_ceil(PIECE).next_power_of_two()
    }
}

/// The piece of its column that a lane of a warp has, and which of the columns at once.
fn piece_and_slot(lane: usize, lanes: usize) -> (usize, usize) {
    (lane / 4 % lanes, lane / 4 / lanes * 4 + lane % 4)
}

/// One scale group on its way to the device.
#[derive(Default)]
pub(super) struct Source {
    pub bits: u8,
    pub scale: f32,
    /// The code's own number.
    pub number: u32,
}

/// The codes of the block whose scale groups are at hand.
#[derive(Default)]
pub(super) struct BlockCodes {
    block: Option<usize>,
    codes: Vec<u8>,
}

impl BlockCodes {
    /// The codes of a block, which `fill` writes where they are another's.
    pub(super) fn of(&mut self, block: Block, fill: impl FnOnce(&mut [u8])) -> &[u8] {
        if self.block != Some(block.index) {
            self.block = Some(block.index);
            self.codes.resize(block.len(), 0);
            fill(&mut self.codes);
        }
        &self.codes
    }
}

/// The scale groups' table and words, block rows on all cores; `fill` writes the fields of one, `(32 columns, rows filled up to
/// whole pieces)`; what it keeps in its first argument it finds again at the block row's next scale group.
pub(super) fn lay_out(
    layout: Layout,
    fill: impl Fn(&mut BlockCodes, Block, &mut [u8]) -> Source + Sync,
) -> Result<(Vec<u32>, Vec<u32>)> {
    let scale_groups: Vec<_> = scale_groups(layout).collect();
    let block_rows: Vec<_> = scale_groups
        .par_chunks(layout.cols().div_ceil(GROUP_COLS))
        .map(|scale_groups| {
            let (mut held, mut fields, mut data) = (BlockCodes::default(), Vec::new(), Vec::new());
            let entry = |scale_group: &Block| {
                let lanes = lanes_of(scale_group.height);
                fields.resize(GROUP_COLS * lanes * PIECE, 0);
                let source = fill(&mut held, *scale_group, &mut fields);
                let start = data.len();
                push_words(&fields, lanes, usize::from(source.bits), &mut data);
                (start, source)
            };
            let entries: Vec<_> = scale_groups.iter().map(entry).collect();
            (entries, data)
        })
        .collect();
    let (mut table, mut data) = (Vec::with_capacity(4 * scale_groups.len()), Vec::new());
    for (entries, own) in block_rows {
        for (start, source) in entries {
            let start = u32::try_from(data.len() + start).map_err(|_| {
                Error::shape("a term of more than 16 GiB on a CUDA device: split the weight by its rows")
            })?;
            table.extend([start, u32::from(source.bits), source.scale.to_bits(), source.number]);
        }
        data.extend(own);
    }
    Ok((table, data))
}

/// The words of one scale group in the order in which threads load them.
fn push_words(fields: &[u8], lanes: usize, bits: usize, data: &mut Vec<u32>) {
    let together = if lanes >= 4 { 4 } else { 1 };
    let slots = WARP / lanes;
    for group in 0..lanes / together {
        for load in 0..bits {
            for lane in 0..WARP {
                let (piece, slot) = piece_and_slot(lane, lanes);
                for element in 0..together {
                    let column = (group * slots + slot) * together + element;
                    let piece = &fields[(column * lanes + piece) * PIECE..][..PIECE];
                    data.push(word(piece, bits, load));
                }
            }
        }
    }
}

/// Word `index` of the stream of 32 fields of `bits` bits.
fn word(fields: &[u8], bits: usize, index: usize) -> u32 {
    let first = index * 32 / bits;
    let fields = fields.iter().enumerate().skip(first).take(32 / bits + 2);
    fields.fold(0, |word, (n, field)| {
        let at = (n * bits).cast_signed() - (index * 32).cast_signed();
        let field = u64::from(*field);
        word | if at < 0 { field >> -at } else { field << at } as u32
    })
}
