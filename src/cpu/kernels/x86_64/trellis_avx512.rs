//! The trellis code on AVX-512 with VBMI: 64 values in eight instructions, in ten from 3 bits on.
//!
//! One shift of two registers brings 16 states of columns `a` and `c` to their lanes (see
//! [`strips`](crate::cpu::strips)), a 16-bit multiplication makes the code's index of them in the high bits. Those of
//! `b` and `d` fill the low bytes' places, and one instruction looks 64 indices of seven bits up. From 3 bits on the
//! eighth is the sign.

use super::super::RowSums;
use super::super::trellis::{COARSE_CODES, DIGITS_AT_ONCE, DecodedStrips, FINE_CODES, StripDots};
use super::super::unroll::{dispatch_bits, dispatch_vectors, each};
use crate::codec::term::trellis::{COARSE_BITS, Code, STRIP};
use crate::cpu::strips::{PERIOD, Packing, Strip};
use crate::cpu::tiles::{GROUP, GROUPS, Line, TILE_ROWS};
use std::arch::x86_64::*;

#[target_feature(enable = "avx512f")]
#[inline]
fn load(line: &Line) -> __m512i {
    // SAFETY: a line is 64 aligned bytes.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}

/// What makes codes of states, if these have `BITS` of their own: the multiplier and the codes of 128 indices.
#[derive(Clone, Copy)]
struct Decoder<const BITS: usize> {
    multiplier: __m512i,
    codes: [__m512i; 2],
}

impl<const BITS: usize> Decoder<BITS> {
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn new(code: Code) -> Self {
        let codes = if code.is_fine() { &FINE_CODES } else { &COARSE_CODES };
        Self {
            multiplier: _mm512_set1_epi16(code.multiplier().cast_signed()),
            codes: [load(&codes[0]), load(&codes[1])],
        }
    }

    /// The codes of 16 rows by 4 columns from the words of `a, c` and `b, d` that their states begin in, and the next.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
    #[inline]
    fn codes(self, ac: [__m512i; 2], bd: [__m512i; 2], shift: u16) -> __m512i {
        // The optimiser sees a constant shift and makes an immediate of it.
        let shift = _mm512_set1_epi16(shift.cast_signed());
        let ac = _mm512_mullo_epi16(_mm512_shrdv_epi16(ac[0], ac[1], shift), self.multiplier);
        let bd = _mm512_mullo_epi16(_mm512_shrdv_epi16(bd[0], bd[1], shift), self.multiplier);
        let high_bytes = _mm512_set1_epi16(0xff00u16.cast_signed());
        let [low, high] = self.codes;
        // ac >> 8 | bd & high_bytes; the look-up sees the low seven bits of each byte
        if BITS <= usize::from(COARSE_BITS) {
            let (ac, bd) = (_mm512_srli_epi16::<9>(ac), _mm512_srli_epi16::<1>(bd));
            _mm512_permutex2var_epi8(low, _mm512_ternarylogic_epi32::<0xf8>(ac, bd, high_bytes), high)
        } else {
            let index = _mm512_ternarylogic_epi32::<0xf8>(_mm512_srli_epi16::<8>(ac), bd, high_bytes);
            let code = _mm512_permutex2var_epi8(low, index, high);
            // `-(value + 128) = -value + 128` in eight bits.
            _mm512_mask_sub_epi8(code, _mm512_movepi8_mask(index), _mm512_setzero_si512(), code)
        }
    }
}

/// The codes of one register's groups, as [`generic`](super::super::trellis::decode_bundle) has them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
pub(super) fn decode_bundle(
    bundle: (&[Line], &[Line]),
    code: Code,
    packing: Packing,
    codes: &mut [Line],
    stride: usize,
) {
    dispatch_bits!(code.bits(), decode(bundle, code, packing, codes, stride))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
fn decode<const BITS: usize>(
    (ac, bd): (&[Line], &[Line]),
    code: Code,
    packing: Packing,
    codes: &mut [Line],
    stride: usize,
) {
    let decoder = Decoder::<BITS>::new(code);
    let next_lane = packing.is_full().then(|| load(&NEXT_LANE[packing.lanes().trailing_zeros() as usize]));
    let (ac, bd) = (words::<BITS>(ac, next_lane), words::<BITS>(bd, next_lane));
    each!(S in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] {
        let (word, shift) = (BITS * S / 16, (BITS * S % 16) as u16);
        let codes = &mut codes[S * stride];
        let values = decoder.codes([ac[word], ac[word + 1]], [bd[word], bd[word + 1]], shift);
        // SAFETY: a line is 64 aligned bytes.
        unsafe { _mm512_store_si512(codes.0.as_mut_ptr().cast(), values) };
    });
}

/// A period's words and the one that follows.
#[target_feature(enable = "avx512f")]
#[inline]
fn words<const BITS: usize>(lines: &[Line], next_lane: Option<__m512i>) -> [__m512i; 5] {
    let mut words = [_mm512_setzero_si512(); 5];
    for (word, line) in words.iter_mut().zip(lines) {
        *word = load(line);
    }
    if let Some(next_lane) = next_lane {
        words[BITS] = _mm512_permutexvar_epi32(next_lane, words[0]);
    }
    words
}

/// The most digits that [`dot_strip`] takes.
pub(super) const FEW: usize = 4;

/// The integer products of a strip with full lanes and one to [`FEW`] digits, `stride` apart, decoded in registers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni")]
pub(super) fn dot_strip(strip: &Strip, values: &[i8], stride: usize, digits: usize, dots: &mut [StripDots]) {
    assert!(strip.packing.is_full() && strip.packing.groups() == 1);
    assert!(values.len() >= (digits - 1) * stride + STRIP && dots.len() >= digits);
    dispatch_bits!(strip.code.bits(), dot_bits(strip, values, stride, digits, dots))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni")]
fn dot_bits<const BITS: usize>(
    strip: &Strip,
    values: &[i8],
    stride: usize,
    digits: usize,
    dots: &mut [StripDots],
) {
    match digits {
        1 => dot::<BITS, 1>(strip, values, stride, dots),
        2 => dot::<BITS, 2>(strip, values, stride, dots),
        3 => dot::<BITS, 3>(strip, values, stride, dots),
        _ => dot::<BITS, 4>(strip, values, stride, dots),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512vnni")]
fn dot<const BITS: usize, const DIGITS: usize>(
    strip: &Strip,
    values: &[i8],
    stride: usize,
    dots: &mut [StripDots],
) {
    let decoder = Decoder::<BITS>::new(strip.code);
    let next_lane = load(&NEXT_LANE[TILE_ROWS.trailing_zeros() as usize]);
    // Four rows of each period at a time: their sums stay in registers.
    each!(QUARTER in [0 1 2 3] {
        let mut sums = [[_mm512_setzero_si512(); DIGITS]; PERIOD / 4];
        for (group, (ac, bd)) in strip.bundles().enumerate() {
            let (ac, bd): (&[Line; BITS], &[Line; BITS]) = (ac.as_chunks().0.first().unwrap(), bd.as_chunks().0.first().unwrap());
            let mut x = [_mm512_setzero_si512(); DIGITS];
            for (digit, x) in x.iter_mut().enumerate() {
                // SAFETY: four bytes inside `values`, by the caller's assertion: a strip has eight groups at most.
                let four = unsafe {
                    values.as_ptr().add(digit * stride + group * GROUP).cast::<i32>().read_unaligned()
                };
                *x = _mm512_set1_epi32(four);
            }
            each!(S in [0 1 2 3] {
                let bit = BITS * (4 * QUARTER + S);
                let (word, shift) = (bit / 16, (bit % 16) as u16);
                let next = |lines: &[Line; BITS]| {
                    if word + 1 < BITS { load(&lines[word + 1]) } else { _mm512_permutexvar_epi32(next_lane, load(&lines[0])) }
                };
                let codes = decoder.codes([load(&ac[word]), next(ac)], [load(&bd[word]), next(bd)], shift);
                for (sum, x) in sums[S].iter_mut().zip(x) {
                    *sum = _mm512_dpbusd_epi32(*sum, codes, x);
                }
            });
        }
        for (s, sums) in sums.iter().enumerate() {
            for (dots, sum) in dots.iter_mut().zip(sums) {
                // SAFETY: sixteen sums are 64 aligned bytes.
                unsafe { _mm512_store_si512(dots[4 * QUARTER + s].0.as_mut_ptr().cast(), *sum) };
            }
        }
    });
}

/// Adds the products of one tile of decoded strips with all their digits, which stay in registers.
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) fn multiply_tile(strips: &DecodedStrips, tile: usize, sums: &mut [RowSums; DIGITS_AT_ONCE]) {
    let mut taken = 0;
    while taken < strips.digits {
        let left = strips.digits - taken;
        let sums = &mut sums[taken / strips.per_vector..];
        taken += match strips.per_vector {
            1 => dispatch_vectors!(1, left, multiply(strips, tile, taken, sums), [16, 12, 8, 6, 4, 3, 2, 1]),
            3 => dispatch_vectors!(3, left, multiply(strips, tile, taken, sums), [15, 12, 9, 6, 3]),
            digits => unreachable!("{digits} digits of a vector"),
        };
    }
}

/// `COUNT` digits from `first` on, `PER_VECTOR` of them of each vector.
#[target_feature(enable = "avx512f,avx512vnni")]
fn multiply<const PER_VECTOR: usize, const COUNT: usize>(
    strips: &DecodedStrips,
    tile: usize,
    first: usize,
    sums: &mut [RowSums],
) -> usize {
    let sums = &mut sums[..COUNT / PER_VECTOR];
    for (n, codes) in strips.codes.iter().enumerate() {
        let (biases, factors) = (&strips.biases[n][first..][..COUNT], &strips.factors[n][first..][..COUNT]);
        let values = &strips.values(n)[first * strips.stride..];
        assert!(values.len() >= (COUNT - 1) * strips.stride + STRIP);
        let mut dots = [_mm512_setzero_si512(); COUNT];
        for (dots, bias) in dots.iter_mut().zip(biases) {
            *dots = _mm512_set1_epi32(-bias);
        }
        for (group, line) in codes[tile * GROUPS..][..GROUPS].iter().enumerate() {
            let codes = load(line);
            for (digit, dots) in dots.iter_mut().enumerate() {
                let at = digit * strips.stride + group * GROUP;
                // SAFETY: four bytes inside `values`, by the assertion above.
                let x = unsafe { values.as_ptr().add(at).cast::<i32>().read_unaligned() };
                *dots = _mm512_dpbusd_epi32(*dots, codes, _mm512_set1_epi32(x));
            }
        }
        for (digit, (dots, factor)) in dots.iter().zip(factors).enumerate() {
            let sums = sums[digit / PER_VECTOR].0.as_mut_ptr();
            let share = _mm512_mul_ps(_mm512_cvtepi32_ps(*dots), _mm512_set1_ps(*factor));
            // SAFETY: sixteen sums are 64 aligned bytes.
            unsafe { _mm512_store_ps(sums, _mm512_add_ps(_mm512_load_ps(sums), share)) };
        }
    }
    COUNT
}

/// [`Packing::next_lane`] of every lane, for columns of 1, 2, 4, 8 and 16 lanes.
static NEXT_LANE: [Line; 5] = {
    let mut lines = [Line([0; 64]); 5];
    let mut n = 0;
    while n < 5 {
        let mut lane = 0;
        while lane < TILE_ROWS {
            let lanes = 1 << n;
            lines[n].0[4 * lane] = (lane / lanes * lanes + (lane + 1) % lanes) as u8;
            lane += 1;
        }
        n += 1;
    }
    lines
};
