//! A trellis times few vectors: scale groups are multiplied as they are decoded, without a way through memory.
//!
//! A register has the codes of one row of some periods ([`trellis`](crate::cpu::layout::trellis)): of some of a column's where a
//! column fills several registers, of several groups' where it does not fill one. Groups add up, so the dot products of a row of
//! the periods are sums over bundles and over the registers, and in the end the lanes, that have the same periods.

use super::trellis::GroupSlices;
use super::windows::{MOST_AHEAD, PeriodBytes, WindowCode, Windows, rows_ahead};
use crate::codec::term::trellis::GROUP_COLS;
use crate::cpu::kernels::unroll::each;
use crate::cpu::layout::planes::{Line, QUAD, TILE_ROWS};
use crate::cpu::layout::trellis::{BIAS, PERIOD, PackedGroup, PackedTrellis, Packing};
use crate::cpu::layout::{QuantizedRows, RowSums};
use std::hint::black_box;
use std::ops::Range;

/// The most digits: for more, decoding through memory takes less than to decode in several passes.
pub(in crate::cpu) const MAX_DIGITS: usize = 2;

/// Products of codes in registers.
pub(in crate::cpu) trait Multiply: Windows {
    /// Whether registers hold the dot products of a pass. Where they do not, these lie in memory whatever the optimiser thinks.
    const HOLDS_DOTS: bool;

    /// Asks for lines ahead, where that helps: called with a bundle's in each pass over them.
    fn ask_ahead(self, _lines: &[Line], _pass: &Pass) {}
    /// In each lane the four activations of its group: `x` begins with the bundle's, and columns have so many `tiles`.
    fn activations(self, x: &[i8], part: usize, tiles: usize) -> Self::Register;
    /// Adds to each lane of `sums` the four products of its codes, at most 127, and activations.
    fn add_products(self, sums: Self::Register, codes: Self::Register, x: Self::Register) -> Self::Register;
    /// `sums += (dots - bias) * factor`, in this order of operations on every level; of `dots`, lanes that have the same period of as
    /// many groups as `sums` is shorter are added first.
    fn add_share(self, sums: &mut [f32], dots: Self::Register, bias: i32, factor: f32);
}

/// A pass over the lines of a scale group.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(in crate::cpu) struct Pass {
    /// Which of how many.
    pub index: usize,
    pub count: usize,
    /// Lines of the scale group; the next one's follow.
    pub lines: usize,
}

/// Whether products of a block row with these vectors are made so: columns of 256, 128 or 64 rows, and few digits.
#[inline(always)]
pub(in crate::cpu) fn fuses(term: &PackedTrellis, i: usize, x: QuantizedRows) -> bool {
    let packing = Packing::new(term.layout().row_range(i).len());
    x.slices() <= MAX_DIGITS && packing.is_full() && packing.groups() <= 4
}

/// What [`add_group`] takes.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Fused<'a> {
    pub scale_group: PackedGroup<'a>,
    pub x: QuantizedRows<'a>,
    pub digits: &'a GroupSlices<'a, MAX_DIGITS>,
}

/// The macro-kernel: some scale groups of a block row one after another. `add` is [`add_group`], compiled for the level.
#[inline(always)]
pub(in crate::cpu) fn product(
    term: &PackedTrellis,
    i: usize,
    groups: Range<usize>,
    x: QuantizedRows,
    mut add: impl FnMut(Fused),
) {
    assert!((1..=MAX_DIGITS).contains(&x.slices()));
    for (j, scale_groups) in term.blocks_across(i, groups) {
        for (first, scale_group) in scale_groups {
            let digits = &GroupSlices::new(x, j, first, scale_group.scale, BIAS);
            add(Fused { scale_group, x, digits });
        }
    }
}

/// Adds a scale group's products with `DIGITS` digits to the sums of each vector's `TILES` tiles, `ROWS` rows of each period in a
/// pass. More passes make some windows again, and need fewer registers.
#[inline(always)]
pub(in crate::cpu) fn add_group<
    I: Multiply,
    const BITS: usize,
    const STATE: usize,
    const TILES: usize,
    const ROWS: usize,
    const DIGITS: usize,
>(
    isa: I,
    Fused { scale_group, x, digits }: Fused,
    sums: &mut [RowSums],
) {
    let groups = const { TILE_ROWS / TILES };
    assert!(digits.values.len() >= (DIGITS - 1) * x.stride() + GROUP_COLS);
    let code = WindowCode::<I, BITS, STATE>::new(isa, scale_group.code);
    // Registers of a column, and lanes of one that are the same group's.
    let lanes = const { if TILES * I::PARTS < TILE_ROWS { TILES } else { TILE_ROWS / I::PARTS } };
    let apart = const { if TILES * I::PARTS < TILE_ROWS { 1 } else { TILES * I::PARTS / TILE_ROWS } };
    each!(PASS in [0 1 2 3] if PASS * ROWS < PERIOD {
        for of_column in 0..apart {
            let mut dots = [[isa.splat(0); DIGITS]; ROWS];
            let pass = Pass {
                index: PASS * apart + of_column,
                count: PERIOD / ROWS * apart,
                lines: 2 * BITS * scale_group.bundles().len(),
            };
            let dots = if I::HOLDS_DOTS { &mut dots } else { black_box(&mut dots) };
            for (n, bundle) in scale_group.bundles().enumerate() {
                let lines = &bundle.lines[..2 * BITS];
                isa.ask_ahead(lines, &pass);
                for part in (of_column..I::PARTS).step_by(apart) {
                    let mut fours = [isa.splat(0); DIGITS];
                    for (digit, fours) in fours.iter_mut().enumerate() {
                        let at = digit * x.stride() + n * groups * QUAD;
                        *fours = isa.activations(&digits.values[at..][..groups * QUAD], part, TILES);
                    }
                    let bytes = PeriodBytes::of_full(isa, lines, part, TILES);
                    let first = PASS * ROWS;
                    let mut windows = [isa.splat(0); PERIOD + MOST_AHEAD];
                    each!(N in [0 1 2 3 4 5 6 7 8 9 10 11] if N < rows_ahead(BITS, STATE) {
                        windows[first + N] = code.window(&bytes, first + N);
                    });
                    each!(S in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] if S < ROWS {
                        let ahead = first + S + const { rows_ahead(BITS, STATE) };
                        windows[ahead] = code.window(&bytes, ahead);
                        let codes = code.codes(&windows, first + S);
                        for (dot, fours) in dots[S].iter_mut().zip(fours) {
                            *dot = isa.add_products(*dot, codes, fours);
                        }
                    });
                }
            }
            for digit in 0..DIGITS {
                let sums = &mut sums[digit / x.slices_per_row() * TILES..][..TILES];
                let (bias, factor) = (digits.biases[digit], digits.factors[digit]);
                for (dots, s) in dots.iter().zip(PASS * ROWS..) {
                    let first = s % groups * TILES + of_column * lanes;
                    isa.add_share(&mut sums[s / groups].0[first..][..lanes], dots[digit], bias, factor);
                }
            }
        }
    });
}

/// Calls `$f::<BITS, STATE, TILES>` for a scale group's code and the kind of its columns.
macro_rules! dispatch_columns {
    ($scale_group:expr, $f:ident $args:tt) => {
        match $scale_group.packing.tiles() {
            16 => $crate::cpu::kernels::generic::fused::dispatch_columns!(16, $scale_group, $f $args),
            8 => $crate::cpu::kernels::generic::fused::dispatch_columns!(8, $scale_group, $f $args),
            4 => $crate::cpu::kernels::generic::fused::dispatch_columns!(4, $scale_group, $f $args),
            other => unreachable!("columns of {other} periods"),
        }
    };
    ($tiles:literal, $scale_group:expr, $f:ident $args:tt) => {
        match ($scale_group.code.bits(), $scale_group.code.state_bits()) {
            (1, 12) => $f::<1, 12, $tiles> $args,
            (2, 12) => $f::<2, 12, $tiles> $args,
            (3, 12) => $f::<3, 12, $tiles> $args,
            (4, 12) => $f::<4, 12, $tiles> $args,
            (1, _) => $f::<1, 16, $tiles> $args,
            (2, _) => $f::<2, 16, $tiles> $args,
            (3, _) => $f::<3, 16, $tiles> $args,
            (4, _) => $f::<4, 16, $tiles> $args,
            (other, _) => unreachable!("a trellis of {other} bits"),
        }
    };
}
pub(in crate::cpu::kernels) use dispatch_columns;
