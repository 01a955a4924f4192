//! Sparse products with AVX2: half a slice's rows in a register, their inputs gathered from memory.
//!
//! What AVX-512 has as an expansion by a mask is here a shuffle whose control comes from a table of all masks of eight lanes.

use super::isa::Avx2;
use crate::codec::Block;
use crate::codec::term::sparse::Format;
use crate::codec::term::sparse::format::{LARGEST_FRACTION, MU_LAW};
use crate::cpu::kernels::generic::sparse as generic;
use crate::cpu::layout::sparse::{CHUNK_ROWS, Chunk, PackedSparse, SLACK};
use crate::cpu::layout::{Input, LaneInput, Lanes, Place, SortedEntries};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Slots that are unpacked together, for all vectors.
const SLOTS_AT_ONCE: usize = 16;
/// Lanes of a register.
const LANES: usize = 8;
/// A shuffle's control for a byte of zero.
const NOTHING: u8 = 0x80;

/// For each mask of eight lanes, how many lanes before each are in it; [`NOTHING`] for lanes that are not.
static RANKS: [[u8; LANES]; 256] = {
    let mut ranks = [[NOTHING; LANES]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut lane, mut rank) = (0, 0);
        while lane < LANES {
            if mask >> lane & 1 == 1 {
                ranks[mask][lane] = rank;
                rank += 1;
            }
            lane += 1;
        }
        mask += 1;
    }
    ranks
};

/// `acc += S x` for one block; `acc` is `batch x height`.
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn product(term: &PackedSparse, block: Block, x: Input, acc: &mut [f32]) {
    let (format, scale) = (term.format(), term.scale(block));
    let mut cols = [[const { MaybeUninit::<__m256i>::uninit() }; 2]; SLOTS_AT_ONCE];
    let mut values = [[const { MaybeUninit::<__m256>::uninit() }; 2]; SLOTS_AT_ONCE];
    for chunk in term.chunks(block) {
        let Chunk { row, masks, cols: mut rest_cols, fields: mut rest_fields } = chunk;
        for masks in masks.chunks(SLOTS_AT_ONCE) {
            for ((mask, cols), values) in masks.iter().zip(&mut cols).zip(&mut values) {
                for (half, mask) in mask.to_le_bytes().into_iter().enumerate() {
                    assert!(rest_cols.len() >= SLACK / 2 && rest_fields.len() >= SLACK / 2);
                    // SAFETY: eight bytes and eight fields, by the assertion, and eight ranks.
                    let (packed, fields, ranks) = unsafe {
                        (
                            _mm_loadl_epi64(rest_cols.as_ptr().cast()),
                            _mm_loadu_si128(rest_fields.as_ptr().cast()),
                            _mm_loadl_epi64(RANKS[usize::from(mask)].as_ptr().cast()),
                        )
                    };
                    cols[half].write(_mm256_cvtepu8_epi32(_mm_shuffle_epi8(packed, ranks)));
                    values[half].write(read(expand(fields, ranks), format, scale));
                    let count = mask.count_ones() as usize;
                    (rest_cols, rest_fields) = (&rest_cols[count..], &rest_fields[count..]);
                }
            }
            let rows = CHUNK_ROWS.min(block.height - row);
            for (vector, acc) in acc.chunks_exact_mut(block.height).enumerate() {
                let x = x.vector(vector, block.width);
                let mut sums = [_mm256_setzero_ps(); 2];
                for (cols, values) in cols.iter().zip(&values).take(masks.len()) {
                    for half in 0..2 {
                        // SAFETY: as many as there are masks were written above. Columns are within the block, as they
                        // were checked to be when they were laid out, and 0 where there is none.
                        let (values, x) = unsafe {
                            let cols = cols[half].assume_init();
                            (values[half].assume_init(), _mm256_i32gather_ps::<4>(x.as_ptr(), cols))
                        };
                        sums[half] = _mm256_fmadd_ps(values, x, sums[half]);
                    }
                }
                let mut lanes = [0f32; CHUNK_ROWS];
                for (lanes, sum) in lanes.as_chunks_mut::<LANES>().0.iter_mut().zip(sums) {
                    // SAFETY: eight numbers.
                    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
                }
                acc[row..row + rows].iter_mut().zip(lanes).for_each(|(acc, sum)| *acc += sum);
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn transposed(term: &PackedSparse, block: Block, g: Input, acc: &mut [f32]) {
    generic::product::<Avx2, true>(term, block, g, acc);
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn spmm(entries: &SortedEntries, x: LaneInput, acc: &mut [Lanes], stride: usize) {
    generic::spmm::<Avx2>(entries, x, acc, stride);
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn sddmm(places: &[Place], a: LaneInput, b: LaneInput, sums: &mut [f32]) {
    generic::sddmm::<Avx2>(places, a, b, sums);
}

/// Words to the lanes that the ranks say.
#[target_feature(enable = "avx2")]
#[inline]
fn expand(words: __m128i, ranks: __m128i) -> __m128i {
    // Rank r stands for bytes 2r and 2r + 1; what saturates keeps the sign of nothing.
    let twice = _mm_unpacklo_epi8(ranks, ranks);
    let control = _mm_or_si128(_mm_adds_epu8(twice, twice), _mm_set1_epi16(0x0100));
    _mm_shuffle_epi8(words, control)
}

/// The numbers of eight fields; of field 0, zero.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn read(fields: __m128i, format: Format, scale: f32) -> __m256 {
    match format {
        Format::Word32 | Format::RowMask => _mm256_mul_ps(_mm256_cvtph_ps(fields), _mm256_set1_ps(scale)),
        Format::Word24 => {
            let fields = _mm256_cvtepu16_epi32(fields);
            let fraction = _mm256_and_si256(fields, _mm256_set1_epi32(LARGEST_FRACTION.into()));
            let step = scale / f32::from(LARGEST_FRACTION);
            let magnitude = _mm256_mul_ps(_mm256_cvtepi32_ps(fraction), _mm256_set1_ps(step));
            let sign = _mm256_slli_epi32::<31>(_mm256_srli_epi32::<9>(fields));
            _mm256_xor_ps(magnitude, _mm256_castsi256_ps(sign))
        }
        Format::Word24Mu => {
            let levels = _mm256_and_si256(_mm256_cvtepu16_epi32(fields), _mm256_set1_epi32(255));
            // SAFETY: the table has 256 entries.
            let values = unsafe { _mm256_i32gather_ps::<4>(MU_LAW.as_ptr(), levels) };
            _mm256_mul_ps(values, _mm256_set1_ps(scale))
        }
    }
}
