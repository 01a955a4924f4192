//! Products with a trellis, whose scale groups are decoded once for all vectors: as 8-bit codes for the integer products, as floats for
//! the transposed product.

use super::codes::{CodeTile, add_codes};
use super::columns::{COLUMN_SUMS_MAX_BATCH, add_column_sums, add_rows};
use super::planes::{Digits, DotTile, Tile};
use crate::codec::Block;
use crate::codec::term::trellis::GROUP_COLS;
use crate::cpu::kernels::isa::Isa;
use crate::cpu::layout::planes::{Line, QUAD, QUADS, TILE_ROWS};
use crate::cpu::layout::trellis::{
    BIAS, Bundle, GROUP_LINES, GroupCodes, PERIOD, PackedGroup, PackedTrellis, Packing,
};
use crate::cpu::layout::{EDGE, Input, QuantizedRows, RowDots, RowSums};
use std::cell::Cell;
use std::ops::Range;

/// Digits that decoded scale groups are multiplied with in one go: their values and the codes stay in the nearer caches.
pub(in crate::cpu) const DIGITS_AT_ONCE: usize = 16;
/// Scale groups of the widest block.
pub(in crate::cpu) const MOST_GROUPS: usize = EDGE / GROUP_COLS;

thread_local! {
    static BLOCK_CODES: Cell<Vec<GroupCodes>> = const { Cell::new(Vec::new()) };
}

/// Room for the widest block's scale groups: a thread's own, kept between products so that none clears 64 KiB.
pub(in crate::cpu) struct BlockCodes(Vec<GroupCodes>);

impl BlockCodes {
    pub(in crate::cpu) fn take() -> Self {
        let mut codes = BLOCK_CODES.take();
        codes.resize(MOST_GROUPS, [Line([0; 64]); GROUP_LINES]);
        Self(codes)
    }

    /// For as many scale groups as the widest block has. What was there before is there still.
    #[inline(always)]
    pub(in crate::cpu) fn codes(&mut self) -> &mut [GroupCodes; MOST_GROUPS] {
        // As many as `take` saw to.
        &mut self.0.as_chunks_mut().0[0]
    }

    pub(in crate::cpu) fn keep(self) {
        BLOCK_CODES.set(self.0);
    }
}

/// Digits that a scale group is to be multiplied with, at most `N`.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct GroupSlices<'a, const N: usize> {
    /// Those of the first digit from the scale group's first column on, the other digits' after them.
    pub values: &'a [i8],
    /// What is taken away from the scale group's product with each digit, and what multiplies the rest.
    pub biases: [i32; N],
    pub factors: [f32; N],
}

impl<'a, const N: usize> GroupSlices<'a, N> {
    const NONE: Self = Self { values: &[], biases: [0; N], factors: [0.0; N] };

    /// All digits of `x` for the scale group that begins with column `col` of block column `j`; `bias` is in each of its codes.
    #[inline(always)]
    pub(in crate::cpu) fn new(x: QuantizedRows<'a>, j: usize, col: usize, scale: f32, bias: i32) -> Self {
        let mut digits = Self { values: x.values(0, j, col), ..Self::NONE };
        for digit in 0..x.slices() {
            digits.biases[digit] = x.tile_sum(digit, j, col) * bias;
            digits.factors[digit] = scale * x.scale(digit, j);
        }
        digits
    }
}

/// Scale groups of a block, decoded, and the digits that they are to be multiplied with.
pub(in crate::cpu) struct DecodedStrips<'a> {
    pub codes: &'a [GroupCodes],
    pub x: QuantizedRows<'a>,
    /// For each scale group.
    pub digits: [GroupSlices<'a, DIGITS_AT_ONCE>; MOST_GROUPS],
}

impl<'a> DecodedStrips<'a> {
    /// `places` are the scale groups' first columns in block column `j` and their scales; `bias` is in every code.
    pub(in crate::cpu) fn new(
        codes: &'a [GroupCodes],
        places: &[(usize, f32); MOST_GROUPS],
        x: QuantizedRows<'a>,
        j: usize,
        bias: i32,
    ) -> Self {
        let mut digits = [GroupSlices::NONE; MOST_GROUPS];
        for (digits, (col, scale)) in digits.iter_mut().zip(&places[..codes.len()]) {
            *digits = GroupSlices::new(x, j, *col, *scale, bias);
        }
        Self { codes, x, digits }
    }
}

/// Which tile is multiplied, from which digit on, and how far apart the vectors' sums are.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Place {
    pub tile: usize,
    pub digit: usize,
    pub stride: usize,
}

/// A level's way through a trellis.
pub(in crate::cpu) trait Decode: Isa {
    /// The codes of one register's groups: `codes[s * stride]` has row `s` of each lane's period.
    fn decode_bundle(self, bundle: Bundle, codes: &mut [Line], stride: usize);
}

/// What multiplies decoded scale groups in [`product`].
pub(in crate::cpu) trait MultiplyTile: Decode {
    /// What codes have too much where they are multiplied.
    const CODE_BIAS: i32;

    /// Adds the products of one tile of decoded scale groups with all their digits to the vectors' sums, `stride` apart:
    /// [`multiply_tile`], or a faster way.
    fn multiply_tile(self, scale_groups: &DecodedStrips, tile: usize, sums: &mut [RowSums], stride: usize);
}

/// A scale group as codes.
#[inline(always)]
pub(in crate::cpu) fn decode_group<I: Decode>(isa: I, scale_group: &PackedGroup, codes: &mut GroupCodes) {
    let groups = scale_group.packing.groups();
    for (n, bundle) in scale_group.bundles().enumerate() {
        if groups == 1 {
            isa.decode_bundle(bundle, &mut codes[n..], QUADS);
        } else {
            let mut lines = [Line([0; 64]); PERIOD];
            isa.decode_bundle(bundle, &mut lines, 1);
            spread(&lines, groups, n * groups, codes);
        }
    }
}

/// The macro-kernel: a block is decoded once for all digits, and its codes are multiplied as planes of eight bits, row tile by row tile.
///
/// Each scale group's share is added to the sums in turn, digit by digit, however many are taken at once: the
/// sums have the same bits.
#[inline(always)]
pub(in crate::cpu) fn product<I: MultiplyTile>(
    isa: I,
    term: &PackedTrellis,
    i: usize,
    groups: Range<usize>,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    // Whole vectors, so that the digits of one come one after another.
    let batch_at_once = DIGITS_AT_ONCE / x.slices_per_row();
    let tiles = sums.len() / x.batch();
    if x.batch() <= batch_at_once {
        return product_of_few(isa, term, i, groups, x, sums);
    }
    let mut room = BlockCodes::take();
    let codes = room.codes();
    for (j, scale_groups) in term.blocks_across(i, groups) {
        let mut places = [(0, 0.0); MOST_GROUPS];
        let mut count = 0;
        for (first, scale_group) in scale_groups {
            decode_group(isa, &scale_group, &mut codes[count]);
            places[count] = (first, scale_group.scale);
            count += 1;
        }
        for (n, sums) in sums.chunks_mut(batch_at_once * tiles).enumerate() {
            let first = n * batch_at_once;
            let x = x.part(first..first + sums.len() / tiles);
            let scale_groups = DecodedStrips::new(&codes[..count], &places, x, j, I::CODE_BIAS);
            for tile in 0..tiles {
                isa.multiply_tile(&scale_groups, tile, sums, tiles);
            }
        }
    }
    room.keep();
}

/// [`product`] with digits that are taken at once: each scale group is multiplied while its codes are in the nearest cache.
#[inline(always)]
fn product_of_few<I: MultiplyTile>(
    isa: I,
    term: &PackedTrellis,
    i: usize,
    groups: Range<usize>,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    let tiles = sums.len() / x.batch();
    let mut codes = [Line([0; 64]); GROUP_LINES];
    for (j, scale_groups) in term.blocks_across(i, groups) {
        for (first, scale_group) in scale_groups {
            decode_group(isa, &scale_group, &mut codes);
            let places = [(first, scale_group.scale); MOST_GROUPS];
            let scale_groups = DecodedStrips::new(std::slice::from_ref(&codes), &places, x, j, I::CODE_BIAS);
            for tile in 0..tiles {
                isa.multiply_tile(&scale_groups, tile, sums, tiles);
            }
        }
    }
}

/// Where a tile of a scale group's codes goes in rows `stride` apart.
#[inline(always)]
pub(in crate::cpu) fn code_tile<'a>(
    scale_group: &PackedGroup,
    codes: &'a GroupCodes,
    tile: usize,
    stride: usize,
) -> CodeTile<'a> {
    CodeTile {
        codes: &codes.as_chunks().0[tile],
        bias: BIAS as f32,
        scales: [scale_group.scale; TILE_ROWS],
        width: scale_group.width,
        starts: std::array::from_fn(|lane| scale_group.packing.row(tile, lane) * stride),
    }
}

/// Scale group by scale group: decode it, sum its columns in the order of its codes.
#[inline(always)]
pub(in crate::cpu) fn transposed<I: Decode>(
    isa: I,
    term: &PackedTrellis,
    block: Block,
    g: Input,
    acc: &mut [f32],
) {
    if acc.len() > COLUMN_SUMS_MAX_BATCH * block.width {
        transposed_by_rows(isa, term, block, g, acc);
        return;
    }
    let packing = Packing::new(block.height);
    // Each row's weight at its place in the codes, which all scale groups have alike.
    let mut weights = [[[0f32; 64]; PERIOD]; COLUMN_SUMS_MAX_BATCH];
    for (vector, weights) in weights.iter_mut().enumerate().take(acc.len() / block.width) {
        let g = g.vector(vector, block.height);
        for (tile, weights) in weights.iter_mut().enumerate().take(packing.tiles()) {
            for (lane, weights) in weights.chunks_exact_mut(QUAD).enumerate() {
                if let Some(g) = g.get(packing.row(tile, lane)) {
                    weights.fill(*g);
                }
            }
        }
    }
    let mut codes = [Line([0; 64]); GROUP_LINES];
    for (first, scale_group) in term.block_groups(block) {
        decode_group(isa, &scale_group, &mut codes);
        for (acc, weights) in acc.chunks_exact_mut(block.width).zip(&weights) {
            let mut sums = [[0f32; 64]; QUADS];
            for (codes, weights) in codes.chunks_exact(QUADS).zip(&weights[..packing.tiles()]) {
                let codes = codes.iter().map(|line| &line.0);
                add_rows::<I>(codes, 1, BIAS, weights, &mut sums);
            }
            add_column_sums(&sums, scale_group.scale, &mut acc[first..][..scale_group.width]);
        }
    }
}

/// Scale group by scale group: decode it, add multiples of its rows for each vector.
#[inline(always)]
fn transposed_by_rows<I: Decode>(isa: I, term: &PackedTrellis, block: Block, g: Input, acc: &mut [f32]) {
    let mut codes = [Line([0; 64]); GROUP_LINES];
    for (first, scale_group) in term.block_groups(block) {
        decode_group(isa, &scale_group, &mut codes);
        let mut rows = [[0.0; GROUP_COLS]; EDGE];
        for tile in 0..scale_group.packing.tiles() {
            add_codes(&code_tile(&scale_group, &codes, tile, GROUP_COLS), rows.as_flattened_mut());
        }
        for (vector, acc) in acc.chunks_exact_mut(block.width).enumerate() {
            let acc = &mut acc[first..][..scale_group.width];
            for (g, row) in g.vector(vector, block.height).iter().zip(&rows) {
                for (acc, coefficient) in acc.iter_mut().zip(row) {
                    *acc = I::multiply_add(*g, *coefficient, *acc);
                }
            }
        }
    }
}

/// [`MultiplyTile::CODE_BIAS`] where it multiplies by the micro-kernel.
pub(in crate::cpu) const fn code_bias<I: DotTile>() -> i32 {
    BIAS - I::BYTE_BIAS
}

/// [`MultiplyTile::multiply_tile`] by the micro-kernel; `add` is [`add_dots`], compiled for the level.
#[inline(always)]
pub(in crate::cpu) fn multiply_tile<I: DotTile>(
    isa: I,
    scale_groups: &DecodedStrips,
    tile: usize,
    sums: &mut [RowSums],
    stride: usize,
    add: impl Fn(&RowDots, i32, f32, &mut RowSums),
) {
    let x = scale_groups.x;
    let mut dots = [RowDots::ZERO; DIGITS_AT_ONCE];
    for (codes, digits) in scale_groups.codes.iter().zip(&scale_groups.digits) {
        let tile_codes = Tile { lines: &codes[tile * QUADS..][..QUADS], planes: 8 };
        let all = Digits { values: digits.values, stride: x.stride(), count: x.slices() };
        let mut taken = 0;
        while taken < x.slices() {
            taken += isa.dot_tile(tile_codes, all.from(taken), &mut dots[taken..]);
        }
        for (digit, dots) in dots[..x.slices()].iter().enumerate() {
            let sums = &mut sums[digit / x.slices_per_row() * stride + tile];
            add(dots, digits.biases[digit], digits.factors[digit], sums);
        }
    }
}

/// `sums += (dots - bias) * factor`, in this order of operations on every level.
///
/// A level's own copy is not to be inlined: over the digits around it the optimiser would gather.
#[inline(always)]
pub(in crate::cpu) fn add_dots(dots: &RowDots, bias: i32, factor: f32, sums: &mut RowSums) {
    for (sum, dot) in sums.0.iter_mut().zip(&dots.0) {
        *sum += (dot - bias) as f32 * factor;
    }
}

/// Rows of a register's groups that share its lanes, to the lines of their groups.
#[inline(always)]
pub(in crate::cpu) fn spread(
    bundle: &[Line; PERIOD],
    groups: usize,
    first_group: usize,
    codes: &mut GroupCodes,
) {
    let bytes = size_of::<Line>() / groups;
    for (s, line) in bundle.iter().enumerate() {
        for (group, piece) in line.0.chunks_exact(bytes).enumerate() {
            let line = &mut codes[s / groups * QUADS + first_group + group];
            line.0[s % groups * bytes..][..bytes].copy_from_slice(piece);
        }
    }
}
