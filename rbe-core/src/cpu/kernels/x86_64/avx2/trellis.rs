//! The trellis code on AVX2: 32 values in five instructions, in seven with three bits a row and in eight with four.
//!
//! Windows and their tables are as [`windows`] has them, half a line at a time. Codes are 1 to 127: `vpmaddubsw` adds the products
//! of two with activations and cannot overflow (2 * 127 * 127 < 2^15).

use super::isa::Avx2;
use super::trellis_many;
use crate::codec::Block;
use crate::cpu::kernels::generic::trellis::{self as generic, Decode, GroupRows, GroupSlices};
use crate::cpu::kernels::generic::windows::{self, MOST_AHEAD, PeriodBytes, WindowCode, Windows, rows_ahead};
use crate::cpu::kernels::isa::Bytes;
use crate::cpu::kernels::unroll::{dispatch_code, each};
use crate::cpu::kernels::x86_64::frame::align_frame;
use crate::cpu::layout::planes::{Line, QUAD, TILE_COLS, TILE_ROWS};
use crate::cpu::layout::trellis::{BIAS, Bundle, PERIOD, PackedGroup, PackedTrellis, Packing};
use crate::cpu::layout::{Input, QuantizedRows, RowSums};
use std::arch::x86_64::*;
use std::hint::black_box;
use std::ops::Range;

/// The most digits that a scale group is multiplied with as it is decoded, without a way through memory. More: [`trellis_many`].
const FUSED_MAX_DIGITS: usize = 2;

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn product(
    term: &PackedTrellis,
    i: usize,
    blocks: Range<usize>,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    let packing = Packing::new(term.layout().row_range(i).len());
    if x.slices() > FUSED_MAX_DIGITS || !packing.is_full() || packing.groups() > 4 {
        return trellis_many::product(term, i, blocks, x, sums);
    }
    for j in blocks {
        for (first, scale_group) in term.block_groups(term.layout().block_at(i, j)) {
            let digits = GroupSlices::new(x, j, first, scale_group.scale, BIAS);
            dispatch_code!(scale_group.code, add_group(&scale_group, x, &digits, sums))
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn transposed(term: &PackedTrellis, block: Block, g: Input, acc: &mut [f32]) {
    align_frame();
    generic::transposed(Avx2::new(), term, block, g, acc);
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn rows(scale_group: &PackedGroup, rows: &mut GroupRows) {
    generic::rows(Avx2::new(), scale_group, rows);
}

impl Decode for Avx2 {
    #[inline(always)]
    fn decode_bundle(self, bundle: Bundle, codes: &mut [Line], stride: usize) {
        // SAFETY: the token proves the instructions.
        unsafe { decode_bundle(bundle, codes, stride) }
    }
}

impl Windows for Avx2 {
    #[inline(always)]
    fn load_next(self, line: &Line, part: usize, lanes: usize) -> __m256i {
        let own = self.load(line, part);
        // SAFETY: here and below, the token proves the instructions.
        unsafe {
            match lanes {
                2 => _mm256_shuffle_epi32::<0b10_11_00_01>(own),
                4 => _mm256_shuffle_epi32::<0b00_11_10_01>(own),
                _ => {
                    let turned = _mm256_permutevar8x32_epi32(own, _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 0));
                    if lanes == 8 {
                        return turned;
                    }
                    let first = line.0[32 * (1 - part)..].as_ptr().cast::<i32>().read_unaligned();
                    _mm256_blend_epi32::<0x80>(turned, _mm256_set1_epi32(first))
                }
            }
        }
    }

    #[inline(always)]
    fn store(self, bytes: __m256i, line: &mut Line, part: usize) {
        let half = &mut line.0[32 * part..][..32];
        // SAFETY: half a line is 32 aligned bytes.
        unsafe { _mm256_store_si256(half.as_mut_ptr().cast(), bytes) }
    }

    #[inline(always)]
    fn table(self, table: &[u8; 16]) -> __m256i {
        // SAFETY: as above; sixteen bytes of an array of sixteen.
        unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())) }
    }

    #[inline(always)]
    fn look_up(self, table: __m256i, index: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_shuffle_epi8(table, index) }
    }

    #[inline(always)]
    fn window_across(self, bytes: __m256i, next: __m256i, at: usize) -> __m256i {
        let here = 8 - at;
        // SAFETY: as above. Shifts of 16 bits bring in a neighbour's bits, which the masks take away.
        unsafe {
            let low = _mm256_and_si256(self.shift_right(bytes, at), _mm256_set1_epi8((1 << here) - 1));
            let high = _mm256_sll_epi16(next, _mm_cvtsi32_si128((here as u32).cast_signed()));
            _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi8(0x0f & !((1 << here) - 1))))
        }
    }

    #[inline(always)]
    fn xor(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_xor_si256(a, b) }
    }

    #[inline(always)]
    fn add(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_add_epi8(a, b) }
    }
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn decode_bundle(bundle: Bundle, codes: &mut [Line], stride: usize) {
    dispatch_code!(bundle.code, decode(bundle, codes, stride))
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn decode<const BITS: usize, const STATE: usize>(bundle: Bundle, codes: &mut [Line], stride: usize) {
    align_frame();
    prefetch_next(bundle.lines);
    windows::decode_bundle::<_, BITS, STATE>(Avx2::new(), bundle, codes, stride);
}

/// Asks for as many lines as these, which follow them.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
#[inline]
fn prefetch_next(lines: &[Line]) {
    for line in lines {
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(line).wrapping_add(lines.len()).cast());
    }
}

/// Adds a scale group's products with one digit or two to the sums of each vector's tiles.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn add_group<const BITS: usize, const STATE: usize>(
    scale_group: &PackedGroup,
    x: QuantizedRows,
    digits: &GroupSlices<FUSED_MAX_DIGITS>,
    sums: &mut [RowSums],
) {
    assert!(digits.values.len() >= (x.slices() - 1) * x.stride() + TILE_COLS);
    assert!(sums.len() >= x.batch() * scale_group.packing.tiles());
    match (scale_group.packing.groups(), x.slices()) {
        (1, 1) => add_rows::<BITS, STATE, 1, 1>(scale_group, x, digits, sums),
        (1, _) => add_rows::<BITS, STATE, 1, 2>(scale_group, x, digits, sums),
        (2, 1) => add_rows::<BITS, STATE, 2, 1>(scale_group, x, digits, sums),
        (2, _) => add_rows::<BITS, STATE, 2, 2>(scale_group, x, digits, sums),
        (_, 1) => add_rows::<BITS, STATE, 4, 1>(scale_group, x, digits, sums),
        _ => add_rows::<BITS, STATE, 4, 2>(scale_group, x, digits, sums),
    }
}

/// [`add_group`] in registers of `SIDE_BY_SIDE` groups. The dot products of sixteen rows lie in memory: it takes less than to make some
/// windows twice, for eight rows and for the other eight.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn add_rows<const BITS: usize, const STATE: usize, const SIDE_BY_SIDE: usize, const DIGITS: usize>(
    scale_group: &PackedGroup,
    x: QuantizedRows,
    digits: &GroupSlices<FUSED_MAX_DIGITS>,
    sums: &mut [RowSums],
) {
    let isa = Avx2::new();
    let code = WindowCode::<_, BITS, STATE>::new(isa, scale_group.code);
    let tiles = const { TILE_ROWS / SIDE_BY_SIDE };
    // Halves of a line are rows of their own, or groups whose products add up.
    let (apart, together) = if SIDE_BY_SIDE == 1 { (2, 1) } else { (1, 2) };
    for half in 0..apart {
        let mut dots = [[_mm256_setzero_si256(); DIGITS]; PERIOD];
        // In memory whatever the optimiser thinks, which could not hold them all.
        let dots = black_box(&mut dots);
        for (n, bundle) in scale_group.bundles().enumerate() {
            let lines = &bundle.lines[..2 * BITS];
            if half == 0 {
                prefetch_next(lines);
            }
            for part in half..half + together {
                let mut fours = [_mm256_setzero_si256(); DIGITS];
                for (digit, fours) in fours.iter_mut().enumerate() {
                    *fours = activations::<SIDE_BY_SIDE>(&digits.values[digit * x.stride()..], n, part);
                }
                let bytes = PeriodBytes::of_full(isa, lines, part, tiles);
                let mut windows = [_mm256_setzero_si256(); PERIOD + MOST_AHEAD];
                each!(N in [0 1 2 3 4 5 6 7 8 9 10 11] if N < rows_ahead(BITS, STATE) {
                    windows[N] = code.window(&bytes, N);
                });
                each!(S in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] {
                    let ahead = S + const { rows_ahead(BITS, STATE) };
                    windows[ahead] = code.window(&bytes, ahead);
                    let codes = code.codes(&windows, S);
                    for (dot, fours) in dots[S].iter_mut().zip(fours) {
                        *dot = _mm256_add_epi32(*dot, products(codes, fours));
                    }
                });
            }
        }
        for digit in 0..DIGITS {
            let sums = &mut sums[digit / x.slices_per_row() * tiles..][..TILE_ROWS / SIDE_BY_SIDE];
            let (bias, factor) = (digits.biases[digit], digits.factors[digit]);
            for (s, dots) in dots.iter().enumerate() {
                add_share::<SIDE_BY_SIDE>(sums, (s, half), dots[digit], bias, factor);
            }
        }
    }
}

/// In each lane the sum of four products of a code and an activation. Codes are at most 127.
#[target_feature(enable = "avx2")]
#[inline]
fn products(codes: __m256i, x: __m256i) -> __m256i {
    _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1))
}

/// The four activations of each lane's group, for a half of the lines of bundle `n`.
#[target_feature(enable = "avx2")]
#[inline]
fn activations<const SIDE_BY_SIDE: usize>(values: &[i8], n: usize, part: usize) -> __m256i {
    let four = |group: usize| {
        let four = &values[group * QUAD..][..QUAD];
        i32::from_le_bytes([four[0], four[1], four[2], four[3]].map(i8::cast_unsigned))
    };
    match SIDE_BY_SIDE {
        1 => _mm256_set1_epi32(four(n)),
        2 => _mm256_set1_epi32(four(2 * n + part)),
        _ => {
            let first = 4 * n + 2 * part;
            _mm256_set_m128i(_mm_set1_epi32(four(first + 1)), _mm_set1_epi32(four(first)))
        }
    }
}

/// `sums += (dots - bias) * factor` for row `s` of the periods in a register or its half, in this order of operations on every level.
#[target_feature(enable = "avx2")]
#[inline]
fn add_share<const SIDE_BY_SIDE: usize>(
    sums: &mut [RowSums],
    (s, half): (usize, usize),
    dots: __m256i,
    bias: i32,
    factor: f32,
) {
    if SIDE_BY_SIDE == 4 {
        let dots = _mm_add_epi32(_mm256_castsi256_si128(dots), _mm256_extracti128_si256::<1>(dots));
        let share = _mm_cvtepi32_ps(_mm_sub_epi32(dots, _mm_set1_epi32(bias)));
        let sums = &mut sums[s / 4].0[4 * (s % 4)..][..4];
        // SAFETY: four sums.
        unsafe {
            let sum = _mm_loadu_ps(sums.as_ptr());
            let sum = _mm_add_ps(sum, _mm_mul_ps(share, _mm_set1_ps(factor)));
            _mm_storeu_ps(sums.as_mut_ptr(), sum);
        }
        return;
    }
    let sums = if SIDE_BY_SIDE == 1 {
        &mut sums[s].0[8 * half..][..8]
    } else {
        &mut sums[s / 2].0[8 * (s % 2)..][..8]
    };
    add_eight(sums, dots, bias, factor);
}

/// `sums += (dots - bias) * factor`.
#[target_feature(enable = "avx2")]
#[inline]
fn add_eight(sums: &mut [f32], dots: __m256i, bias: i32, factor: f32) {
    assert_eq!(sums.len(), 8);
    let share = _mm256_cvtepi32_ps(_mm256_sub_epi32(dots, _mm256_set1_epi32(bias)));
    // SAFETY: eight sums, by the assertion above.
    unsafe {
        let sum = _mm256_loadu_ps(sums.as_ptr());
        let sum = _mm256_add_ps(sum, _mm256_mul_ps(share, _mm256_set1_ps(factor)));
        _mm256_storeu_ps(sums.as_mut_ptr(), sum);
    }
}
