//! The micro-kernel of sets that broadcast four activations to all lanes: integer products of planes.

use super::planes::Digits;
use super::unpack::unpack;
use crate::cpu::kernels::isa::Bytes;
use crate::cpu::kernels::unroll::each;
use crate::cpu::layout::RowDots;
use crate::cpu::layout::planes::{Line, QUAD, TILE_COLS};

/// Products of codes with four activations, broadcast.
pub(in crate::cpu) trait Broadcast: Bytes {
    /// Sums for the products of one digit, where there are few digits, so that an instruction does not wait for the one before.
    /// At most four.
    const CHAINS: usize;

    /// Adds to each lane of `sums` the four products of its codes, of `PLANES` bits, and the bytes of `x`.
    fn dot<const PLANES: usize>(self, sums: Self::Register, codes: Self::Register, x: i32) -> Self::Register;
    /// Sums of lanes.
    fn add_lanes(self, a: Self::Register, b: Self::Register) -> Self::Register;
    /// Asks for what lies some way after line `n` of a tile, where that helps.
    #[inline(always)]
    fn ask_ahead<const PLANES: usize>(self, _tile: &[Line; PLANES], _n: usize) {}
    /// Writes a part of sixteen products.
    fn store_dots(self, sums: Self::Register, dots: &mut RowDots, part: usize);
}

/// Digits for which a tile's lines come from memory: more go through them several times.
const FEW: usize = 3;

/// [`dot_tile`](super::planes::DotTile::dot_tile) for numbers of planes and digits that are constants.
#[inline(always)]
pub(in crate::cpu) fn dot<I: Broadcast, const PLANES: usize, const BATCH: usize>(
    isa: I,
    lines: &[Line],
    x: Digits,
    dots: &mut [RowDots],
) -> usize {
    for part in 0..I::PARTS {
        let sums = dot_registers::<I, PLANES, BATCH>(isa, lines, x, part);
        for (sums, dots) in sums.into_iter().zip(&mut dots[..BATCH]) {
            isa.store_dots(sums, dots, part);
        }
    }
    BATCH
}

/// The integer products of one part's rows.
#[inline(always)]
pub(in crate::cpu) fn dot_registers<I: Broadcast, const PLANES: usize, const BATCH: usize>(
    isa: I,
    lines: &[Line],
    x: Digits,
    part: usize,
) -> [I::Register; BATCH] {
    let Digits { values, stride, .. } = x;
    let tiles = lines.as_chunks::<PLANES>().0;
    // The last read is four bytes at the end of the last tile of the last digit.
    assert!(values.len() >= (BATCH - 1) * stride + tiles.len() * TILE_COLS);
    let chains = const { if BATCH < I::CHAINS { I::CHAINS / BATCH } else { 1 } };
    let mut sums = [[isa.splat(0); 4]; BATCH];
    for (t, tile) in tiles.iter().enumerate() {
        let codes = unpack::<I, PLANES>(isa, tile, part);
        each!(GROUP_INDEX in [0 1 2 3 4 5 6 7] {
            if BATCH <= FEW {
                isa.ask_ahead(tile, GROUP_INDEX);
            }
            for (digit, sums) in sums.iter_mut().enumerate() {
                let at = digit * stride + t * TILE_COLS + GROUP_INDEX * QUAD;
                // SAFETY: four bytes inside `values`, by the assertion above.
                let x = unsafe { values.as_ptr().add(at).cast::<i32>().read_unaligned() };
                let sum = &mut sums[GROUP_INDEX % chains];
                *sum = isa.dot::<PLANES>(*sum, codes[GROUP_INDEX], x);
            }
        });
    }
    let mut totals = [isa.splat(0); BATCH];
    for (total, [a, b, c, d]) in totals.iter_mut().zip(sums) {
        *total = isa.add_lanes(isa.add_lanes(a, b), isa.add_lanes(c, d));
    }
    totals
}
