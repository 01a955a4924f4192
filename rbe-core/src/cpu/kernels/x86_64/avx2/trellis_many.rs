//! The trellis for several vectors: scale groups are decoded once, and their codes multiplied with the activations.
//!
//! Codes are 1 to 127, values -63 to 63 with [`BIAS`] added, and activations -127 to 127. `vpmaddubsw` multiplies the codes as its unsigned
//! bytes and adds up pairs of products, up to 2 * 127 * 127 < 2^15. The sum of two such results, four products, may leave 16 bits. But it wraps, and
//! less the bias times its activations it is the sum of the products of values, 4 * 63 * 127 < 2^15 at most: it is right again.
//!
//! All products of a lane, sixteen in a scale group, are added up in 16 bits where their sum is known to fit there. It is at most the root
//! of the sum of the values' squares times that of the activations' (Cauchy and Schwarz): where the largest such sums of a scale group and of the
//! digits come to less than 2^30 together, as they nearly always do, eight results of `vpmaddubsw` are widened by one instruction; else two are.
//! The sums are exact either way.

use super::isa::Avx2;
use crate::cpu::kernels::generic::trellis::{BlockCodes, DIGITS_AT_ONCE, MOST_GROUPS, decode_group};
use crate::cpu::kernels::isa::Bytes;
use crate::cpu::kernels::unroll::each;
use crate::cpu::layout::planes::{Line, QUAD, QUADS, TILE_ROWS};
use crate::cpu::layout::trellis::{BIAS, GroupCodes, PackedGroup, PackedTrellis};
use crate::cpu::layout::{QuantizedRows, RowSums};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Quads that are multiplied at a time: as many as have the codes of all sixteen rows in half of the registers.
const QUADS_AT_ONCE: usize = QUADS / 2;
/// Rows of a half of a line.
const HALF_ROWS: usize = TILE_ROWS / 2;
/// What the squares of a lane's values times those of its activations are to stay below for a sum in 16 bits.
pub(super) const FITS_BELOW: u64 = 1 << 30;

/// The activations of a scale group, by quads that are multiplied at a time.
pub(super) type GroupValues = [[i8; QUAD * QUADS_AT_ONCE]; 2];

/// Digits of some vectors for a scale group.
#[derive(Clone, Copy)]
struct Digits {
    each: [Digit; DIGITS_AT_ONCE],
    /// The largest sum of the squares of a lane's activations.
    squares: u32,
}

/// One of them.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Digit {
    values: GroupValues,
    parts: [Part; 2],
}

/// Of a half of a digit.
#[derive(Clone, Copy)]
#[repr(C)]
struct Part {
    /// What [`BIAS`] in every code makes of the sums of a row's two lanes, two numbers of 16 bits: over the half's first two quads.
    first_bias: i32,
    /// Over all quads of both halves.
    whole_bias: i32,
    /// Over the half's last two quads.
    last_bias: i32,
    /// What multiplies the digit's products.
    factor: f32,
}

impl Digits {
    const NONE: Self = Self { each: [Digit::NONE; DIGITS_AT_ONCE], squares: 0 };

    /// All of `x`, for the scale group that begins with column `col` of block column `j`.
    #[target_feature(enable = "avx2,fma,f16c,popcnt")]
    fn fill(&mut self, x: QuantizedRows, j: usize, col: usize, scale: f32) {
        let values = x.values(0, j, col);
        let mut squares = _mm_setzero_si128();
        for (n, digit) in self.each[..x.slices()].iter_mut().enumerate() {
            let values = &values[n * x.stride()..].as_chunks().0.as_chunks().0[0];
            *digit = Digit::new(values, scale * x.scale(n, j));
            squares = _mm_max_epi32(squares, squares_of_lanes(values));
        }
        self.squares = larger(squares);
    }
}

impl Digit {
    const NONE: Self = Self {
        values: [[0; QUAD * QUADS_AT_ONCE]; 2],
        parts: [Part { first_bias: 0, whole_bias: 0, last_bias: 0, factor: 0.0 }; 2],
    };

    #[target_feature(enable = "avx2,fma,f16c,popcnt")]
    #[inline]
    fn new(values: &GroupValues, factor: f32) -> Self {
        let mut digit = Self { values: *values, ..Self::NONE };
        let [pairs, whole] = biases(values);
        let parts = _mm256_blend_epi32::<0b0010_0010>(pairs, whole);
        let parts = _mm256_blend_epi32::<0b1000_1000>(parts, _mm256_castps_si256(_mm256_set1_ps(factor)));
        // SAFETY: two times four numbers of 32 bits.
        unsafe { _mm256_store_si256(digit.parts.as_mut_ptr().cast(), parts) };
        digit
    }
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
#[inline]
fn load(values: &GroupValues) -> __m256i {
    // SAFETY: 32 bytes.
    unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
}

/// What the codes' bias makes of the sums of a row's two lanes, two numbers of 16 bits: over each two quads, and over all.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
#[inline]
fn biases(values: &GroupValues) -> [__m256i; 2] {
    // 2 * 64 * 127 < 2^15; what follows may wrap, as the sums do from which it is taken.
    let quads = _mm256_maddubs_epi16(_mm256_set1_epi8(BIAS as i8), load(values));
    let pairs = _mm256_add_epi16(quads, _mm256_shuffle_epi32::<0b10_11_00_01>(quads));
    let halves = _mm256_add_epi16(pairs, _mm256_shuffle_epi32::<0b01_00_11_10>(pairs));
    [pairs, _mm256_add_epi16(halves, _mm256_permute4x64_epi64::<0b01_00_11_10>(halves))]
}

/// That over all quads.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
#[inline]
pub(super) fn bias_of_lanes(values: &GroupValues) -> i32 {
    _mm256_cvtsi256_si32(biases(values)[1])
}

/// The larger of the sums of the squares of a row's two lanes' activations.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
#[inline]
pub(super) fn squares_of_activations(values: &GroupValues) -> u32 {
    larger(squares_of_lanes(values))
}

/// The larger of the first two numbers, which are not negative.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
#[inline]
fn larger(squares: __m128i) -> u32 {
    _mm_extract_epi32::<0>(squares).max(_mm_extract_epi32::<1>(squares)).cast_unsigned()
}

/// The sums of the squares of a lane's activations, for a row's two lanes, as the first two numbers.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
#[inline]
fn squares_of_lanes(values: &GroupValues) -> __m128i {
    let magnitudes = _mm256_abs_epi8(load(values));
    // 2 * 127 * 127 < 2^15.
    let pairs = _mm256_maddubs_epi16(magnitudes, magnitudes);
    let first = _mm256_madd_epi16(pairs, _mm256_set1_epi32(1));
    let last = _mm256_madd_epi16(pairs, _mm256_set1_epi32(1 << 16));
    let both = _mm256_hadd_epi32(first, last);
    let both = _mm256_hadd_epi32(both, both);
    _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256::<1>(both))
}

/// The largest sum of the squares of a lane's values in a scale group.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn squares(scale_group: &PackedGroup) -> u16 {
    let mut room = BlockCodes::take();
    let codes = &mut room.codes()[0];
    group_codes(scale_group, codes);
    let tiles = codes.as_chunks().0[..scale_group.packing.tiles()].iter();
    let squares = tiles.map(|tile| squares_of_values(tile)).max().unwrap_or(0);
    room.keep();
    squares
}

/// The largest sum of the squares of a lane's values in a tile.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn squares_of_values(codes: &[Line; QUADS]) -> u16 {
    let isa = Avx2::new();
    let mut largest = _mm256_setzero_si256();
    for half in 0..2 {
        let mut sums = _mm256_setzero_si256();
        for codes in codes {
            let values = _mm256_sub_epi8(isa.load(codes, half), _mm256_set1_epi8(BIAS as i8));
            let magnitudes = _mm256_abs_epi8(values);
            // 16 * 63 * 63 < 2^16. (A code of a row or column that is not there may be 0, a value of -64. Sixteen of them wrap, and no
            // sum that is wanted has so many.)
            sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(magnitudes, magnitudes));
        }
        largest = _mm256_max_epu16(largest, sums);
    }
    let largest = _mm_max_epu16(_mm256_castsi256_si128(largest), _mm256_extracti128_si256::<1>(largest));
    // The instruction has the least; that of the complements is the largest's.
    let least = _mm_minpos_epu16(_mm_xor_si128(largest, _mm_set1_epi16(-1)));
    !(_mm_cvtsi128_si32(least) as u16)
}

/// `sums[v * tiles + t] += S x_v` over some scale groups, for any number of vectors.
///
/// What fits into one go has each scale group decoded and multiplied while it is in the nearest cache; for more a block is decoded
/// whole. Either way each scale group's share is added to the sums in turn, digit by digit: they have the same bits.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn product(
    term: &PackedTrellis,
    i: usize,
    groups: Range<usize>,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    let mut room = BlockCodes::take();
    let at_once = if x.slices() <= DIGITS_AT_ONCE { 1 } else { MOST_GROUPS };
    let codes = &mut room.codes()[..at_once];
    match x.slices_per_row() {
        1 => multiply_blocks::<1>(codes, (term, i, groups), x, sums),
        2 => multiply_blocks::<2>(codes, (term, i, groups), x, sums),
        _ => multiply_blocks::<3>(codes, (term, i, groups), x, sums),
    }
    room.keep();
}

/// [`product`] of vectors of so many digits, with as many scale groups at a time as `codes` has room for.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn multiply_blocks<const PER_VECTOR: usize>(
    codes: &mut [GroupCodes],
    (term, i, groups): (&PackedTrellis, usize, Range<usize>),
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    let (batch_at_once, tiles) = (DIGITS_AT_ONCE / PER_VECTOR, sums.len() / x.batch());
    let mut squares = [0; MOST_GROUPS];
    let mut digits = [Digits::NONE; MOST_GROUPS];
    for (j, mut groups) in term.blocks_across(i, groups) {
        loop {
            let mut places = [(0, 0.0); MOST_GROUPS];
            let mut count = 0;
            for (first, scale_group) in groups.by_ref().take(codes.len()) {
                group_codes(&scale_group, &mut codes[count]);
                squares[count] = scale_group.squares;
                places[count] = (first, scale_group.scale);
                count += 1;
            }
            if count == 0 {
                break;
            }
            for (n, sums) in sums.chunks_mut(batch_at_once * tiles).enumerate() {
                let first = n * batch_at_once;
                let x = x.part(first..first + sums.len() / tiles);
                for (digits, (col, scale)) in digits.iter_mut().zip(&places[..count]) {
                    digits.fill(x, j, *col, *scale);
                }
                for tile in 0..tiles {
                    let sums = &mut sums[tile..];
                    for ((codes, squares), digits) in codes[..count].iter().zip(&squares).zip(&digits) {
                        let codes = &codes.as_chunks().0[tile];
                        let fit = u64::from(*squares) * u64::from(digits.squares) < FITS_BELOW;
                        let digits = &digits.each[..x.slices()];
                        match fit {
                            true => multiply_tile::<PER_VECTOR, true>(codes, digits, sums, tiles),
                            false => multiply_tile::<PER_VECTOR, false>(codes, digits, sums, tiles),
                        }
                    }
                }
            }
        }
    }
}

/// A scale group as codes.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn group_codes(scale_group: &PackedGroup, codes: &mut GroupCodes) {
    decode_group(Avx2::new(), scale_group, codes);
}

/// Adds the products of a tile with some vectors' digits to their sums, `stride` apart. Whether a lane's sums `FIT` in 16 bits is known.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
#[inline]
fn multiply_tile<const PER_VECTOR: usize, const FIT: bool>(
    codes: &[Line; QUADS],
    digits: &[Digit],
    sums: &mut [RowSums],
    stride: usize,
) {
    let mut dots = [MaybeUninit::uninit(); DIGITS_AT_ONCE];
    let quads = codes.as_chunks().0;
    let codes = Codes::new(&quads[0]);
    for (digit, dots) in digits.iter().zip(&mut dots) {
        dots.write(codes.dot::<0, FIT>(digit));
    }
    let codes = Codes::new(&quads[1]);
    // The digits of a vector are added to its sums one after another.
    for (n, (digit, dots)) in digits.iter().zip(&dots).enumerate() {
        // SAFETY: written above.
        let dots = unsafe { dots.assume_init() };
        let rest = codes.dot::<1, FIT>(digit);
        let Part { whole_bias, factor, .. } = digit.parts[1];
        let sums = &mut sums[n / PER_VECTOR * stride].0;
        for half in 0..2 {
            let dots = if FIT {
                let whole = _mm256_add_epi16(dots[half], rest[half]);
                widen(_mm256_sub_epi16(whole, _mm256_set1_epi32(whole_bias)))
            } else {
                _mm256_add_epi32(dots[half], rest[half])
            };
            let share = _mm256_mul_ps(_mm256_cvtepi32_ps(dots), _mm256_set1_ps(factor));
            let sums = &mut sums[HALF_ROWS * half..][..HALF_ROWS];
            // SAFETY: eight sums.
            unsafe {
                let sum = _mm256_add_ps(_mm256_loadu_ps(sums.as_ptr()), share);
                _mm256_storeu_ps(sums.as_mut_ptr(), sum);
            }
        }
    }
}

/// The sums of the two lanes of each row.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
#[inline]
fn widen(lanes: __m256i) -> __m256i {
    _mm256_madd_epi16(lanes, _mm256_set1_epi16(1))
}

/// The codes of [`QUADS_AT_ONCE`] quads in the two halves of a tile's rows.
struct Codes([[__m256i; QUADS_AT_ONCE]; 2]);

impl Codes {
    #[target_feature(enable = "avx2,fma,f16c,popcnt")]
    #[inline]
    fn new(codes: &[Line; QUADS_AT_ONCE]) -> Self {
        let isa = Avx2::new();
        Self(each!(HALF in [0 1] each!(N in [0 1 2 3] isa.load(&codes[N], HALF))))
    }

    /// The products with this `PART` of a digit, for the two halves of the rows. Where sums `FIT` in 16 bits: each lane's sum, with its
    /// bias. Else each row's, without.
    #[target_feature(enable = "avx2,fma,f16c,popcnt")]
    #[inline]
    fn dot<const PART: usize, const FIT: bool>(&self, digit: &Digit) -> [__m256i; 2] {
        let quads = digit.values[PART].as_chunks::<QUAD>().0;
        let quads =
            each!(N in [0 1 2 3] _mm256_set1_epi32(i32::from_le_bytes(quads[N].map(i8::cast_unsigned))));
        let Part { first_bias, last_bias, .. } = digit.parts[PART];
        each!(HALF in [0 1] {
            let [a, b, c, d] = each!(N in [0 1 2 3] _mm256_maddubs_epi16(self.0[HALF][N], quads[N]));
            let (first, last) = (_mm256_add_epi16(a, b), _mm256_add_epi16(c, d));
            if FIT {
                _mm256_add_epi16(first, last)
            } else {
                let first = _mm256_sub_epi16(first, _mm256_set1_epi32(first_bias));
                let last = _mm256_sub_epi16(last, _mm256_set1_epi32(last_bias));
                _mm256_add_epi32(widen(first), widen(last))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Layout;
    use crate::codec::term::trellis::GROUP_COLS;
    use crate::cpu::kernels::x86_64::avx2::{LEVEL, trellis};
    use crate::cpu::layout::Activations;
    use crate::cpu::layout::planes::TILE_COLS;
    use crate::cpu::layout::trellis::tests::term;

    /// Small values and activations fit in 16 bits, the largest of one sign do not: both are exact.
    #[test]
    fn sums_are_exact_whether_they_fit_in_16_bits_or_not() {
        if !LEVEL.is_available() {
            return;
        }
        let mut kinds = [false; 2];
        for (most, largest) in [(63, 127), (63, 40), (20, 127), (40, 45), (0, 127)] {
            for alike in [true, false] {
                let number = |n: usize, most: i32| match alike {
                    true => most,
                    false => (n * n * 7919 + n * 104_729).cast_signed() as i32 % (2 * most + 1) - most,
                };
                let value = |row: usize, col: usize| number(row * TILE_COLS + col, most);
                let x =
                    |col: usize| number(col, largest) * if alike && col.is_multiple_of(3) { -1 } else { 1 };
                let mut codes = [Line([0; 64]); QUADS];
                for (quad, line) in codes.iter_mut().enumerate() {
                    for (n, code) in line.0.iter_mut().enumerate() {
                        *code = (value(n / QUAD, QUAD * quad + n % QUAD) + BIAS) as u8;
                    }
                }
                let signed: [i8; TILE_COLS] = std::array::from_fn(|col| x(col) as i8);
                let signed = &signed.as_chunks().0.as_chunks().0[0];
                let of_lane = |lane: usize| (0..TILE_COLS).filter(move |col| col % QUAD / 2 == lane);
                // SAFETY: the processor has the instructions.
                let (of_values, of_x, digit) = unsafe {
                    let of_x = squares_of_lanes(signed);
                    let of_x = [_mm_extract_epi32::<0>(of_x), _mm_extract_epi32::<1>(of_x)];
                    (squares_of_values(&codes), of_x, Digit::new(signed, 1.0))
                };
                assert_eq!(of_x, [0, 1].map(|lane| of_lane(lane).map(|col| x(col).pow(2)).sum::<i32>()));
                let largest_of = |row: usize| {
                    [0, 1].map(|lane| of_lane(lane).map(|col| value(row, col).pow(2)).sum::<i32>())
                };
                let expected = (0..TILE_ROWS).flat_map(largest_of).max();
                assert_eq!(Some(i32::from(of_values)), expected);
                let fits = u64::from(of_values) * (of_x[0].max(of_x[1]) as u64) < FITS_BELOW;
                kinds[usize::from(fits)] = true;
                for fits in [false, fits] {
                    let mut sums = [RowSums::ZERO];
                    // SAFETY: as above.
                    unsafe {
                        match fits {
                            true => multiply_tile::<1, true>(&codes, &[digit], &mut sums, 1),
                            false => multiply_tile::<1, false>(&codes, &[digit], &mut sums, 1),
                        }
                    }
                    for row in 0..TILE_ROWS {
                        let expected: i32 = (0..TILE_COLS).map(|col| value(row, col) * x(col)).sum();
                        assert_eq!(sums[0].0[row], expected as f32, "{most} {largest} {alike} {fits} {row}");
                    }
                }
            }
        }
        assert_eq!(kinds, [true; 2]);
    }

    #[test]
    fn squares_bound_what_lanes_have_and_products_are_the_same_without_them() {
        if !LEVEL.is_available() {
            return;
        }
        let mut kinds = [false; 2];
        for (rows, cols, edge) in [(256, 320, 256), (128, 160, 128), (64, 320, 64), (300, 77, 256)] {
            let layout = Layout::new(rows, cols, edge).unwrap();
            let term = term(layout);
            // SAFETY: here and below, the processor has the instructions.
            let find = |scale_group: &PackedGroup| unsafe { squares(scale_group) };
            let unknown = PackedTrellis::new(&term);
            let known = unknown.clone().with_squares(find);
            for block in layout.iter() {
                for (first, scale_group) in known.block_groups(block) {
                    let value = |row: usize, col: usize| {
                        let (column, _) = term.column(block, first + col).unwrap();
                        i32::from(column.value(row))
                    };
                    let of_lane = |row: usize, lane: usize| {
                        let cols = (0..scale_group.width).filter(|col| col % QUAD / 2 == lane);
                        cols.map(|col| value(row, col).pow(2)).sum::<i32>()
                    };
                    let lanes = (0..block.height).flat_map(|row| [of_lane(row, 0), of_lane(row, 1)]);
                    let (most, found) = (lanes.max().unwrap(), i32::from(scale_group.squares));
                    let whole = scale_group.packing.is_full() && scale_group.width == GROUP_COLS;
                    assert!(found == most || (found > most && !whole), "{found}, has {most}");
                }
            }
            for (slices, largest) in [(1, 127i8), (2, 127), (1, 60), (2, 60)] {
                let mut x = Activations::default();
                x.prepare(layout.col_cut(), 1, slices, false);
                for slice in 0..slices {
                    for j in 0..layout.block_cols() {
                        for col in 0..layout.col_range(j).len() {
                            let sign = if (col * col + slice) % 7 < 3 { -1 } else { 1 };
                            let at = slice * x.stride + x.starts[j] + col;
                            x.values[at] = (largest - (col % 5) as i8) * sign;
                        }
                        x.scales[slice * layout.block_cols() + j] = 0.25;
                    }
                }
                let sums = x.values.chunks_exact(TILE_COLS);
                x.tile_sums = sums.map(|tile| tile.iter().map(|value| i32::from(*value)).sum()).collect();
                for i in 0..layout.block_rows() {
                    let tiles = layout.row_range(i).len().div_ceil(TILE_ROWS).next_power_of_two();
                    let [of_unknown, of_known] = [&unknown, &known].map(|term| {
                        let mut sums = vec![RowSums::ZERO; tiles.max(2)];
                        let groups = 0..layout.cols().div_ceil(GROUP_COLS);
                        let x = x.rows(0..1, slices);
                        // SAFETY: as above.
                        unsafe { trellis::product(term, i, groups, x, &mut sums) };
                        sums.iter().flat_map(|sums| sums.0).collect::<Vec<f32>>()
                    });
                    assert!(of_known.iter().any(|sum| *sum != 0.0));
                    assert_eq!(of_known, of_unknown, "{rows}x{cols}, {slices} digits of {largest}");
                }
                for (_, scale_group) in layout.iter().flat_map(|block| known.block_groups(block)) {
                    let of_x = u64::from(largest.unsigned_abs()).pow(2) * TILE_COLS as u64 / 2;
                    kinds[usize::from(u64::from(scale_group.squares) * of_x < FITS_BELOW)] = true;
                }
            }
        }
        assert_eq!(kinds, [true; 2]);
    }
}
