//! The trellis code on AVX-512 with VBMI: 64 values in thirteen instructions.
//!
//! A column of 256 rows is `32 k` bytes, one or two registers. For each 32 rows a byte permutation brings to every
//! quadword the eight bytes that its four rows' states begin in (counting around the cycle), `vpmultishiftqb` cuts
//! the four 16-bit states out, a 16-bit multiplication makes the code's index of them in the high byte. One
//! permutation gathers 64 high bytes, and four instructions look them up in 256 values.

use crate::codec::term::trellis::{Column, VALUES};
use crate::cpu::tiles::{GROUP, Line};
use std::arch::x86_64::*;

/// Rows of a column that fills registers.
pub(super) const ROWS: usize = 256;
/// Rows decoded together.
const STEP: usize = 64;

/// For each half step of a column, which byte of the cycle goes where; and where the states begin in quadwords.
struct Cut {
    bytes: [[Line; 2]; ROWS / STEP],
    shifts: Line,
}

/// The cuts of `k` bits a row.
const fn cut(bits: usize) -> Cut {
    let mut cut = Cut { bytes: [[Line([0; 64]); 2]; ROWS / STEP], shifts: Line([0; 64]) };
    let mut half = 0;
    while half < 2 * ROWS / STEP {
        let mut byte = 0;
        while byte < 64 {
            let first_row = half * STEP / 2 + byte / 8 * 4;
            cut.bytes[half / 2][half % 2].0[byte] =
                ((first_row * bits / 8 + byte % 8) % (ROWS / 8 * bits)) as u8;
            let (quad, in_quad) = (byte / 8, byte % 8);
            cut.shifts.0[byte] = (quad * 4 * bits % 8 + in_quad / 2 * bits + in_quad % 2 * 8) as u8;
            byte += 1;
        }
        half += 1;
    }
    cut
}

static CUTS: [Cut; 4] = [cut(1), cut(2), cut(3), cut(4)];

/// `VALUES + 128` and the places of high bytes of two registers of 16-bit numbers.
static BIASED_VALUES: [Line; 4] = {
    let mut lines = [Line([0; 64]); 4];
    let mut n = 0;
    while n < 256 {
        lines[n / 64].0[n % 64] = (VALUES[n] as i16 + 128) as u8;
        n += 1;
    }
    lines
};
static HIGH_BYTES: Line = {
    let mut line = Line([0; 64]);
    let mut n = 0;
    while n < 64 {
        line.0[n] = (2 * n + 1) as u8;
        n += 1;
    }
    line
};

#[target_feature(enable = "avx512f")]
#[inline]
fn load(line: &Line) -> __m512i {
    // SAFETY: a line is 64 aligned bytes.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}

/// `value + 128` of 64 rows in each of four registers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
#[inline]
fn column_values(column: &Column, values: &[__m512i; 4], high_bytes: __m512i) -> [__m512i; ROWS / STEP] {
    let (bytes, cut) = (column.bytes(), &CUTS[usize::from(column.code().bits()) - 1]);
    let mask = |from: usize| {
        let count = bytes.len().saturating_sub(from).min(64);
        if count == 64 { u64::MAX } else { (1 << count) - 1 }
    };
    // SAFETY: masked loads touch no byte beyond the column's own.
    let (low, high) = unsafe {
        let start = bytes.as_ptr().cast::<i8>();
        (_mm512_maskz_loadu_epi8(mask(0), start), _mm512_maskz_loadu_epi8(mask(64), start.wrapping_add(64)))
    };
    let multiplier = _mm512_set1_epi16(column.code().multiplier().cast_signed());
    let shifts = load(&cut.shifts);
    // Loops, not closures: what is passed to a function without the features goes through memory.
    let mut out = [_mm512_setzero_si512(); ROWS / STEP];
    for (step, out) in out.iter_mut().enumerate() {
        let mut products = [_mm512_setzero_si512(); 2];
        for (half, product) in products.iter_mut().enumerate() {
            let quads = _mm512_permutex2var_epi8(low, load(&cut.bytes[step][half]), high);
            *product = _mm512_mullo_epi16(_mm512_multishift_epi64_epi8(shifts, quads), multiplier);
        }
        let index = _mm512_permutex2var_epi8(products[0], high_bytes, products[1]);
        let below = _mm512_permutex2var_epi8(values[0], index, values[1]);
        let above = _mm512_permutex2var_epi8(values[2], index, values[3]);
        *out = _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), below, above);
    }
    out
}

/// Decodes four neighbouring columns of 256 rows into lines, `lines[tile * stride]` for the sixteen tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
pub(super) fn decode_group(columns: [&Column; GROUP], lines: &mut [Line], stride: usize) {
    let [v0, v1, v2, v3] = &BIASED_VALUES;
    let values = [load(v0), load(v1), load(v2), load(v3)];
    let high_bytes = load(&HIGH_BYTES);
    let mut decoded = [[_mm512_setzero_si512(); ROWS / STEP]; GROUP];
    for (decoded, column) in decoded.iter_mut().zip(columns) {
        *decoded = column_values(column, &values, high_bytes);
    }
    for step in 0..ROWS / STEP {
        let [a, b, c, d] = [decoded[0][step], decoded[1][step], decoded[2][step], decoded[3][step]];
        let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
        let (ab_high, cd_high) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
        let tiles = [
            _mm512_unpacklo_epi16(ab, cd),
            _mm512_unpackhi_epi16(ab, cd),
            _mm512_unpacklo_epi16(ab_high, cd_high),
            _mm512_unpackhi_epi16(ab_high, cd_high),
        ];
        for (n, tile) in tiles.into_iter().enumerate() {
            let line = &mut lines[(4 * step + n) * stride];
            // SAFETY: a line is 64 aligned bytes.
            unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), tile) };
        }
    }
}
