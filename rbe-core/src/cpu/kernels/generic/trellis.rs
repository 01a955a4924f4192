//! Products with a trellis, whose strips are decoded once for all vectors: as 8-bit codes for the integer products, as floats for
//! the transposed product.

use super::columns::{COLUMN_SUMS_MAX_BATCH, add_column_sums, add_rows};
use super::planes::{Digits, DotTile, Tile};
use crate::codec::Block;
use crate::codec::term::trellis::STRIP;
use crate::cpu::layout::planes::{GROUP, GROUPS, Line, TILE_ROWS};
use crate::cpu::layout::trellis::{
    BIAS, Bundle, PERIOD, Packing, STRIP_LINES, Strip, StripCodes, TrellisStrips,
};
use crate::cpu::layout::{Batch, EDGE, Input, RowDots, RowSums};
use std::ops::Range;

/// The coefficients of a strip, row by row.
pub(in crate::cpu) type StripRows = [[f32; STRIP]; EDGE];

/// Digits that decoded strips are multiplied with in one go: their values and the codes stay in the nearer caches.
pub(in crate::cpu) const DIGITS_AT_ONCE: usize = 16;
/// Strips of the widest block.
pub(in crate::cpu) const MOST_STRIPS: usize = EDGE / STRIP;

/// Digits that a strip is to be multiplied with, at most `N`.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct StripDigits<'a, const N: usize> {
    /// Those of the first digit from the strip's first column on, the other digits' after them.
    pub values: &'a [i8],
    /// What is taken away from the strip's product with each digit, and what multiplies the rest.
    pub biases: [i32; N],
    pub factors: [f32; N],
}

impl<'a, const N: usize> StripDigits<'a, N> {
    const NONE: Self = Self { values: &[], biases: [0; N], factors: [0.0; N] };

    /// All digits of `x` for the strip that begins with column `col` of block column `j`; `bias` is in each of its codes.
    #[inline(always)]
    pub(in crate::cpu) fn new(x: Batch<'a>, j: usize, col: usize, scale: f32, bias: i32) -> Self {
        let mut digits = Self { values: x.values(0, j, col), ..Self::NONE };
        for digit in 0..x.digits() {
            digits.biases[digit] = x.tile_sum(digit, j, col) * bias;
            digits.factors[digit] = scale * x.scale(digit, j);
        }
        digits
    }
}

/// Strips of a block, decoded, and the digits that they are to be multiplied with.
pub(in crate::cpu) struct DecodedStrips<'a> {
    pub codes: &'a [StripCodes],
    pub x: Batch<'a>,
    /// For each strip.
    pub digits: [StripDigits<'a, DIGITS_AT_ONCE>; MOST_STRIPS],
}

impl<'a> DecodedStrips<'a> {
    /// `places` are the strips' first columns in block column `j` and their scales; `bias` is in every code.
    pub(in crate::cpu) fn new(
        codes: &'a [StripCodes],
        places: &[(usize, f32); MOST_STRIPS],
        x: Batch<'a>,
        j: usize,
        bias: i32,
    ) -> Self {
        let mut digits = [StripDigits::NONE; MOST_STRIPS];
        for (digits, (col, scale)) in digits.iter_mut().zip(&places[..codes.len()]) {
            *digits = StripDigits::new(x, j, *col, *scale, bias);
        }
        Self { codes, x, digits }
    }
}

/// A level's way through a trellis.
pub(in crate::cpu) trait Decode: DotTile {
    /// The codes of one register's groups: `codes[s * stride]` has row `s` of each lane's period.
    fn decode_bundle(self, bundle: Bundle, codes: &mut [Line], stride: usize);

    /// Adds the products of one tile of decoded strips with all their digits to the vectors' sums, `stride` apart:
    /// [`multiply_tile`], or a faster way.
    fn multiply_tile(self, strips: &DecodedStrips, tile: usize, sums: &mut [RowSums], stride: usize);
}

/// A strip as codes.
#[inline(always)]
fn decode_strip<I: Decode>(isa: I, strip: &Strip, codes: &mut StripCodes) {
    let groups = strip.packing.groups();
    for (n, bundle) in strip.bundles().enumerate() {
        if groups == 1 {
            isa.decode_bundle(bundle, &mut codes[n..], GROUPS);
        } else {
            let mut lines = [Line([0; 64]); PERIOD];
            isa.decode_bundle(bundle, &mut lines, 1);
            spread(&lines, groups, n * groups, codes);
        }
    }
}

/// The macro-kernel: a block is decoded once for all digits, and its codes are multiplied as planes of eight bits, row tile by row tile.
///
/// Each strip's share is added to the sums in turn, digit by digit, however many are taken at once: the
/// sums have the same bits.
#[inline(always)]
pub(in crate::cpu) fn product<I: Decode>(
    isa: I,
    term: &TrellisStrips,
    i: usize,
    blocks: Range<usize>,
    x: Batch,
    sums: &mut [RowSums],
) {
    // Whole vectors, so that the digits of one come one after another.
    let batch_at_once = DIGITS_AT_ONCE / x.per_vector();
    let tiles = sums.len() / x.len();
    if x.len() <= batch_at_once {
        return product_of_few(isa, term, i, blocks, x, sums);
    }
    let mut codes = [[Line([0; 64]); STRIP_LINES]; MOST_STRIPS];
    for j in blocks {
        let mut places = [(0, 0.0); MOST_STRIPS];
        let mut count = 0;
        for (first, strip) in term.block_strips(term.layout().block_at(i, j)) {
            decode_strip(isa, &strip, &mut codes[count]);
            places[count] = (first, strip.scale);
            count += 1;
        }
        for (n, sums) in sums.chunks_mut(batch_at_once * tiles).enumerate() {
            let first = n * batch_at_once;
            let x = x.part(first..first + sums.len() / tiles);
            let strips = DecodedStrips::new(&codes[..count], &places, x, j, BIAS - I::BYTE_BIAS);
            for tile in 0..tiles {
                isa.multiply_tile(&strips, tile, sums, tiles);
            }
        }
    }
}

/// [`product`] with digits that are taken at once: each strip is multiplied while its codes are in the nearest cache.
#[inline(always)]
fn product_of_few<I: Decode>(
    isa: I,
    term: &TrellisStrips,
    i: usize,
    blocks: Range<usize>,
    x: Batch,
    sums: &mut [RowSums],
) {
    let tiles = sums.len() / x.len();
    let mut codes = [Line([0; 64]); STRIP_LINES];
    for j in blocks {
        for (first, strip) in term.block_strips(term.layout().block_at(i, j)) {
            decode_strip(isa, &strip, &mut codes);
            let places = [(first, strip.scale); MOST_STRIPS];
            let strips = DecodedStrips::new(std::slice::from_ref(&codes), &places, x, j, BIAS - I::BYTE_BIAS);
            for tile in 0..tiles {
                isa.multiply_tile(&strips, tile, sums, tiles);
            }
        }
    }
}

/// A strip's coefficients.
#[inline(always)]
pub(in crate::cpu) fn rows<I: Decode>(isa: I, strip: &Strip, rows: &mut StripRows) {
    let mut codes = [Line([0; 64]); STRIP_LINES];
    decode_strip(isa, strip, &mut codes);
    rows_of_codes(strip, &codes, rows);
}

/// Strip by strip: decode it, sum its columns in the order of its codes.
#[inline(always)]
pub(in crate::cpu) fn transposed<I: Decode>(
    isa: I,
    term: &TrellisStrips,
    block: Block,
    g: Input,
    acc: &mut [f32],
) {
    if acc.len() > COLUMN_SUMS_MAX_BATCH * block.width {
        transposed_by_rows(isa, term, block, g, acc);
        return;
    }
    let packing = Packing::new(block.height);
    // Each row's weight at its place in the codes, which all strips have alike.
    let mut weights = [[[0f32; 64]; PERIOD]; COLUMN_SUMS_MAX_BATCH];
    for (vector, weights) in weights.iter_mut().enumerate().take(acc.len() / block.width) {
        let g = g.vector(vector, block.height);
        for (tile, weights) in weights.iter_mut().enumerate().take(packing.tiles()) {
            for (lane, weights) in weights.chunks_exact_mut(GROUP).enumerate() {
                if let Some(g) = g.get(packing.row(tile, lane)) {
                    weights.fill(*g);
                }
            }
        }
    }
    let mut codes = [Line([0; 64]); STRIP_LINES];
    for (first, strip) in term.block_strips(block) {
        decode_strip(isa, &strip, &mut codes);
        for (acc, weights) in acc.chunks_exact_mut(block.width).zip(&weights) {
            let mut sums = [[0f32; 64]; GROUPS];
            for (codes, weights) in codes.chunks_exact(GROUPS).zip(&weights[..packing.tiles()]) {
                let codes = codes.iter().map(|line| &line.0);
                add_rows::<I>(codes, 1, BIAS, weights, &mut sums);
            }
            add_column_sums(&sums, strip.scale, &mut acc[first..][..strip.width]);
        }
    }
}

/// Strip by strip: decode it, add multiples of its rows for each vector.
#[inline(always)]
fn transposed_by_rows<I: Decode>(isa: I, term: &TrellisStrips, block: Block, g: Input, acc: &mut [f32]) {
    let mut rows = [[0.0; STRIP]; EDGE];
    for (first, strip) in term.block_strips(block) {
        self::rows(isa, &strip, &mut rows);
        for (vector, acc) in acc.chunks_exact_mut(block.width).enumerate() {
            let acc = &mut acc[first..][..strip.width];
            for (g, row) in g.vector(vector, block.height).iter().zip(&rows) {
                for (acc, coefficient) in acc.iter_mut().zip(row) {
                    *acc = I::multiply_add(*g, *coefficient, *acc);
                }
            }
        }
    }
}

/// [`Decode::multiply_tile`] by the micro-kernel; `add` is [`add_dots`], compiled for the level.
#[inline(always)]
pub(in crate::cpu) fn multiply_tile<I: DotTile>(
    isa: I,
    strips: &DecodedStrips,
    tile: usize,
    sums: &mut [RowSums],
    stride: usize,
    add: impl Fn(&RowDots, i32, f32, &mut RowSums),
) {
    let x = strips.x;
    let mut dots = [RowDots::ZERO; DIGITS_AT_ONCE];
    for (codes, digits) in strips.codes.iter().zip(&strips.digits) {
        let tile_codes = Tile { lines: &codes[tile * GROUPS..][..GROUPS], planes: 8 };
        let all = Digits { values: digits.values, stride: x.stride(), count: x.digits() };
        let mut taken = 0;
        while taken < x.digits() {
            taken += isa.dot_tile(tile_codes, all.from(taken), &mut dots[taken..]);
        }
        for (digit, dots) in dots[..x.digits()].iter().enumerate() {
            let sums = &mut sums[digit / x.per_vector() * stride + tile];
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
    codes: &mut StripCodes,
) {
    let bytes = size_of::<Line>() / groups;
    for (s, line) in bundle.iter().enumerate() {
        for (group, piece) in line.0.chunks_exact(bytes).enumerate() {
            let line = &mut codes[s / groups * GROUPS + first_group + group];
            line.0[s % groups * bytes..][..bytes].copy_from_slice(piece);
        }
    }
}

/// A strip's coefficients from its codes.
#[inline(always)]
pub(in crate::cpu) fn rows_of_codes(strip: &Strip, codes: &StripCodes, rows: &mut StripRows) {
    for tile in 0..strip.packing.tiles() {
        for lane in 0..TILE_ROWS {
            let row = &mut rows[strip.packing.row(tile, lane)];
            for (group, row) in row.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                let codes = &codes[tile * GROUPS + group].0[lane * GROUP..][..GROUP];
                for (value, code) in row.iter_mut().zip(codes) {
                    *value = (i32::from(*code) - BIAS) as f32 * strip.scale;
                }
            }
        }
    }
}
