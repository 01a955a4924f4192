//! Sparse products with AVX-512: sixteen rows of a block in a register, its inputs in 2 to 16 registers.
//!
//! For a slot (see [`sparse`](crate::cpu::layout::sparse)) one expansion puts the columns into the lanes of their rows, another the
//! fields; `vpermi2ps` looks up sixteen inputs in two registers at once, one of these for every 32 columns. Lanes without an
//! entry multiply by zero. With one vector that is about twenty instructions for a slot, whatever it holds.

use super::isa::Avx512Vbmi;
use crate::codec::Block;
use crate::codec::term::sparse::Format;
use crate::codec::term::sparse::format::{LARGEST_FRACTION, MU_LAW};
use crate::cpu::kernels::generic::sparse as generic;
use crate::cpu::layout::Input;
use crate::cpu::layout::sparse::{CHUNK_ROWS, Chunk, PackedSparse, SLACK};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Slots that are unpacked together, for all vectors.
const SLOTS_AT_ONCE: usize = 16;
/// Columns that one look-up reaches.
const PAIR: usize = 32;

/// `acc += S x` for one block; `acc` is `batch x height`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,popcnt")]
pub(super) fn product(term: &PackedSparse, block: Block, x: Input, acc: &mut [f32]) {
    match block.width.div_ceil(PAIR) {
        1 => product_of::<1>(term, block, x, acc),
        2 => product_of::<2>(term, block, x, acc),
        3 | 4 => product_of::<4>(term, block, x, acc),
        _ => product_of::<8>(term, block, x, acc),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,popcnt")]
fn product_of<const PAIRS: usize>(term: &PackedSparse, block: Block, x: Input, acc: &mut [f32]) {
    assert!(block.width <= PAIRS * PAIR);
    let (format, scale) = (term.format(), term.scale(block));
    let mut cols = [const { MaybeUninit::<__m512i>::uninit() }; SLOTS_AT_ONCE];
    let mut values = [const { MaybeUninit::<__m512>::uninit() }; SLOTS_AT_ONCE];
    for chunk in term.chunks(block) {
        let Chunk { row, masks, cols: mut rest_cols, fields: mut rest_fields } = chunk;
        for masks in masks.chunks(SLOTS_AT_ONCE) {
            for ((mask, cols), values) in masks.iter().zip(&mut cols).zip(&mut values) {
                assert!(rest_cols.len() >= SLACK && rest_fields.len() >= SLACK);
                // SAFETY: sixteen bytes and sixteen fields, by the assertion.
                let (packed, fields) = unsafe {
                    (
                        _mm_loadu_si128(rest_cols.as_ptr().cast()),
                        _mm256_loadu_si256(rest_fields.as_ptr().cast()),
                    )
                };
                cols.write(_mm512_cvtepu8_epi32(_mm_maskz_expand_epi8(*mask, packed)));
                values.write(read(_mm256_maskz_expand_epi16(*mask, fields), format, scale));
                let count = mask.count_ones() as usize;
                (rest_cols, rest_fields) = (&rest_cols[count..], &rest_fields[count..]);
            }
            let rows = CHUNK_ROWS.min(block.height - row);
            for (vector, acc) in acc.chunks_exact_mut(block.height).enumerate() {
                let inputs = inputs::<PAIRS>(x.vector(vector, block.width));
                let acc = &mut acc[row..row + rows];
                let lanes = first(rows);
                // SAFETY: the lanes are those of `acc`.
                let mut sum = unsafe { _mm512_maskz_loadu_ps(lanes, acc.as_ptr()) };
                for (cols, values) in cols.iter().zip(&values).take(masks.len()) {
                    // SAFETY: as many as there are masks were written above.
                    let (cols, values) = unsafe { (cols.assume_init(), values.assume_init()) };
                    sum = _mm512_fmadd_ps(values, look_up(&inputs, cols), sum);
                }
                // SAFETY: as for the load.
                unsafe { _mm512_mask_storeu_ps(acc.as_mut_ptr(), lanes, sum) };
            }
        }
    }
}

#[target_feature(enable = "avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,gfni,popcnt")]
pub(super) fn transposed(term: &PackedSparse, block: Block, g: Input, acc: &mut [f32]) {
    generic::product::<Avx512Vbmi, true>(term, block, g, acc);
}

/// The mask of the first `count` of sixteen lanes.
#[inline(always)]
fn first(count: usize) -> __mmask16 {
    ((1u32 << count.min(16)) - 1) as u16
}

/// The numbers of sixteen fields; of field 0, zero.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn read(fields: __m256i, format: Format, scale: f32) -> __m512 {
    match format {
        Format::Word32 | Format::RowMask => _mm512_mul_ps(_mm512_cvtph_ps(fields), _mm512_set1_ps(scale)),
        Format::Word24 => {
            let fields = _mm512_cvtepu16_epi32(fields);
            let fraction = _mm512_and_si512(fields, _mm512_set1_epi32(LARGEST_FRACTION.into()));
            let step = scale / f32::from(LARGEST_FRACTION);
            let magnitude = _mm512_mul_ps(_mm512_cvtepi32_ps(fraction), _mm512_set1_ps(step));
            let sign = _mm512_slli_epi32::<31>(_mm512_srli_epi32::<9>(fields));
            _mm512_xor_ps(magnitude, _mm512_castsi512_ps(sign))
        }
        Format::Word24Mu => {
            let levels = _mm512_and_si512(_mm512_cvtepu16_epi32(fields), _mm512_set1_epi32(255));
            // SAFETY: the table has 256 entries.
            let values = unsafe { _mm512_i32gather_ps::<4>(levels, MU_LAW.as_ptr()) };
            _mm512_mul_ps(values, _mm512_set1_ps(scale))
        }
    }
}

/// The inputs of a block, 32 a pair, filled up with zeros.
#[target_feature(enable = "avx512f")]
#[inline]
fn inputs<const PAIRS: usize>(x: &[f32]) -> [[__m512; 2]; PAIRS] {
    let mut inputs = [[_mm512_setzero_ps(); 2]; PAIRS];
    for (n, input) in inputs.as_flattened_mut().iter_mut().enumerate() {
        let rest = x.get(16 * n..).unwrap_or_default();
        // SAFETY: the lanes are within what is left.
        *input = unsafe { _mm512_maskz_loadu_ps(first(rest.len()), rest.as_ptr()) };
    }
    inputs
}

/// The inputs at sixteen columns: the low five bits choose in a pair, the others among pairs.
#[target_feature(enable = "avx512f")]
#[inline]
fn look_up<const PAIRS: usize>(inputs: &[[__m512; 2]; PAIRS], cols: __m512i) -> __m512 {
    let mut found = inputs.map(|[low, high]| _mm512_permutex2var_ps(low, cols, high));
    let mut pairs = PAIRS;
    let mut bit = (PAIR as u32).cast_signed();
    while pairs > 1 {
        pairs /= 2;
        let odd = _mm512_test_epi32_mask(cols, _mm512_set1_epi32(bit));
        for n in 0..pairs {
            found[n] = _mm512_mask_blend_ps(odd, found[2 * n], found[2 * n + 1]);
        }
        bit *= 2;
    }
    found[0]
}
