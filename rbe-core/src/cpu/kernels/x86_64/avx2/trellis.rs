//! The trellis code on AVX2: 32 values in five instructions, in seven with three bits a row and in eight with four.
//!
//! Windows and their tables are as [`windows`] has them, half a line at a time. Codes are 1 to 127: `vpmaddubsw` adds the products
//! of two with activations and cannot overflow (2 * 127 * 127 < 2^15). A scale group's results of it are added up in 16 bits where that is known to
//! fit, as in [`trellis_many`]: by the squares that the term has been told of and those of the activations.

use super::isa::{Avx2, Narrow, Proof};
use super::trellis_many::{self, FITS_BELOW, bias_of_lanes, squares_of_activations};
use crate::codec::Block;
use crate::cpu::kernels::generic::fused::{self, Fused, MAX_DIGITS, Multiply, Pass, dispatch_columns};
use crate::cpu::kernels::generic::trellis::{self as generic, Decode, GroupSlices};
use crate::cpu::kernels::generic::windows::{self, Windows};
use crate::cpu::kernels::isa::Bytes;
use crate::cpu::kernels::unroll::dispatch_code;
use crate::cpu::kernels::x86_64::frame::align_frame;
use crate::cpu::layout::planes::{Line, QUAD};
use crate::cpu::layout::trellis::{Bundle, PERIOD, PackedTrellis};
use crate::cpu::layout::{Input, QuantizedRows, RowSums};
use std::arch::x86_64::*;
use std::ops::Range;

/// Registers' groups that are asked for ahead: what memory takes to bring one.
const AHEAD: usize = 4;

/// One digit or two are multiplied as a scale group is decoded, without a way through memory. More: [`trellis_many`].
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn product(
    term: &PackedTrellis,
    i: usize,
    groups: Range<usize>,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    if !fused::fuses(term, i, x) {
        return trellis_many::product(term, i, groups, x, sums);
    }
    fused::product(term, i, groups, x, |group| match narrow_biases(&group) {
        Some(biases) => {
            let group = Fused { digits: &GroupSlices { biases, ..*group.digits }, ..group };
            dispatch_columns!(group.scale_group, add_narrow_group(group, sums));
        }
        None => dispatch_columns!(group.scale_group, add_group(group, sums)),
    });
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn transposed(term: &PackedTrellis, block: Block, g: Input, acc: &mut [f32]) {
    align_frame();
    generic::transposed(Avx2::new(), term, block, g, acc);
}

impl Decode for Avx2 {
    #[inline(always)]
    fn decode_bundle(self, bundle: Bundle, codes: &mut [Line], stride: usize) {
        // SAFETY: the token proves the instructions.
        unsafe { decode_bundle(bundle, codes, stride) }
    }
}

impl<P: Proof> Windows for Avx2<P> {
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
pub(in crate::cpu::kernels::x86_64) fn decode_bundle(bundle: Bundle, codes: &mut [Line], stride: usize) {
    dispatch_code!(bundle.code, decode(bundle, codes, stride))
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn decode<const BITS: usize, const STATE: usize>(bundle: Bundle, codes: &mut [Line], stride: usize) {
    align_frame();
    prefetch_ahead(bundle.lines);
    windows::decode_bundle::<_, BITS, STATE>(Avx2::new(), bundle, codes, stride);
}

/// Asks for as many lines as these, some ahead of them.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
#[inline]
fn prefetch_ahead(lines: &[Line]) {
    for line in lines {
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(line).wrapping_add(AHEAD * lines.len()).cast());
    }
}

/// As in [`fused`]. Registers hold no dot products of sixteen rows: to have them in memory takes less than to make some windows
/// twice, for eight rows and for the other eight.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn add_group<const BITS: usize, const STATE: usize, const TILES: usize>(group: Fused, sums: &mut [RowSums]) {
    align_frame();
    match group.x.slices() {
        1 => add_digits::<BITS, STATE, TILES, 1, _>(Avx2::new(), group, sums),
        _ => add_digits::<BITS, STATE, TILES, 2, _>(Avx2::new(), group, sums),
    }
}

/// The same with [`narrow_biases`].
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn add_narrow_group<const BITS: usize, const STATE: usize, const TILES: usize>(
    group: Fused,
    sums: &mut [RowSums],
) {
    align_frame();
    let isa = Avx2::of(Narrow::new());
    match group.x.slices() {
        1 => add_digits::<BITS, STATE, TILES, 1, _>(isa, group, sums),
        _ => add_digits::<BITS, STATE, TILES, 2, _>(isa, group, sums),
    }
}

/// The biases of both sums of a lane, for each digit; `None` where sums may leave 16 bits.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
#[inline]
fn narrow_biases(group: &Fused) -> Option<[i32; MAX_DIGITS]> {
    let mut biases = [0; MAX_DIGITS];
    for (n, bias) in biases[..group.x.slices()].iter_mut().enumerate() {
        let values = &group.digits.values[n * group.x.stride()..].as_chunks().0.as_chunks().0[0];
        let squares = squares_of_activations(values);
        if u64::from(squares) * u64::from(group.scale_group.squares) >= FITS_BELOW {
            return None;
        }
        *bias = bias_of_lanes(values);
    }
    Some(biases)
}

#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn add_digits<const BITS: usize, const STATE: usize, const TILES: usize, const DIGITS: usize, P: Proof>(
    isa: Avx2<P>,
    group: Fused,
    sums: &mut [RowSums],
) {
    fused::add_group::<_, BITS, STATE, TILES, PERIOD, DIGITS>(isa, group, sums);
}

impl<P: Proof> Multiply for Avx2<P> {
    const HOLDS_DOTS: bool = false;

    /// A scale group ahead, in each pass a part: memory brings what the next one needs all the while this one is multiplied.
    #[inline(always)]
    fn ask_ahead(self, lines: &[Line], pass: &Pass) {
        let part = lines.len().div_ceil(pass.count);
        for line in lines.iter().skip(pass.index * part).take(part) {
            let next = std::ptr::from_ref(line).wrapping_add(pass.lines);
            // SAFETY: here and below, the token proves the instructions.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(next.cast()) }
        }
    }

    #[inline(always)]
    fn activations(self, x: &[i8], part: usize, tiles: usize) -> __m256i {
        let four = |group: usize| {
            let four = &x[group * QUAD..][..QUAD];
            i32::from_le_bytes([four[0], four[1], four[2], four[3]].map(i8::cast_unsigned))
        };
        // SAFETY: as above.
        unsafe {
            match tiles {
                16 => _mm256_set1_epi32(four(0)),
                8 => _mm256_set1_epi32(four(part)),
                _ => _mm256_set_m128i(_mm_set1_epi32(four(2 * part + 1)), _mm_set1_epi32(four(2 * part))),
            }
        }
    }

    #[inline(always)]
    fn add_products(self, sums: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        self.proof().add_products(sums, codes, x)
    }

    #[inline(always)]
    fn add_share(self, sums: &mut [f32], dots: __m256i, bias: i32, factor: f32) {
        // SAFETY: as above.
        unsafe {
            match sums.len() {
                4 => add_scaled(sums, self.proof().dots::<true>(dots, bias), factor),
                _ => add_scaled(sums, self.proof().dots::<false>(dots, bias), factor),
            }
        }
    }
}

/// `sums += dots * factor` of eight rows, or of four.
#[target_feature(enable = "avx2")]
#[inline]
pub(in crate::cpu::kernels::x86_64) fn add_scaled(sums: &mut [f32], dots: __m256i, factor: f32) {
    let share = _mm256_mul_ps(_mm256_cvtepi32_ps(dots), _mm256_set1_ps(factor));
    if let Ok(sums) = <&mut [f32; 4]>::try_from(&mut *sums) {
        // SAFETY: four sums.
        unsafe {
            let sum = _mm_add_ps(_mm_loadu_ps(sums.as_ptr()), _mm256_castps256_ps128(share));
            _mm_storeu_ps(sums.as_mut_ptr(), sum);
        }
        return;
    }
    assert_eq!(sums.len(), 8);
    // SAFETY: eight sums, by the assertion above.
    unsafe {
        let sum = _mm256_add_ps(_mm256_loadu_ps(sums.as_ptr()), share);
        _mm256_storeu_ps(sums.as_mut_ptr(), sum);
    }
}
