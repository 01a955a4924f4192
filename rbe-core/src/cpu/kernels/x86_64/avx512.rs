//! AVX-512 with VNNI: 64 products an instruction.
//!
//! A line is a register: lane `r` belongs to row `r`. `vpdpbusd` multiplies its four codes with four activations,
//! read from memory and broadcast to all lanes by the same instruction. Unpacking costs 1.5 instructions per
//! register of 64 codes at 4 planes and is shared by all vectors; with one vector, four partial sums hide the
//! instruction's latency.

use super::super::unroll::{dispatch, each};
use crate::cpu::transform::{LANES, Lanes};
use std::arch::x86_64::*;

super::super::table!(fma: true, "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl");

/// Vectors from which on a sparse product is faster in lanes.
const SPMM_MIN_BATCH: usize = 64;
/// Digits multiplied with one unpacked tile.
const MAX_VECTORS: usize = 16;
/// Codes are multiplied as they are.
const BYTE_BIAS: i32 = 0;

super::super::walks!(fma: true, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,gfni");
use super::sparse_avx512::sparse;
use super::trellis_avx512::{add_groups, adds_groups, decode_bundle, multiply_tile};

/// Digits whose products are multiplied in registers, without a way through memory.
const FEW_DIGITS: usize = 3;

/// As [`planes_by_blocks`]; with few slices, neighbouring blocks with as many planes in one go.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,gfni")]
fn planes(tiles: &PackedPlanes, i: usize, row_tile: usize, x: QuantizedRows, sums: &mut [RowSums]) {
    if x.slices() > FEW_DIGITS {
        planes_by_blocks(tiles, i, row_tile, x, sums);
        return;
    }
    let layout = tiles.layout();
    let blocks = layout.block_cols();
    let planes_of = |j: usize| tiles.planes(layout.block_at(i, j));
    let mut j = 0;
    while j < blocks {
        let planes = planes_of(j);
        let end = (j + 1..blocks).find(|j| planes_of(*j) != planes).unwrap_or(blocks);
        if planes > 0 {
            let run = BlockRun { i, row_tile, blocks: j..end };
            dispatch!(planes, x.slices(), planes_run(tiles, run, x, sums), [3, 2, 1]);
        }
        j = end;
    }
}

/// Neighbouring blocks of a row tile with as many planes.
struct BlockRun {
    i: usize,
    row_tile: usize,
    blocks: Range<usize>,
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn planes_run<const PLANES: usize, const DIGITS: usize>(
    tiles: &PackedPlanes,
    run: BlockRun,
    x: QuantizedRows,
    sums: &mut [RowSums],
) {
    let layout = tiles.layout();
    let (lines, offsets) = tiles.band(run.i, run.row_tile);
    let offset = 1 - (1i32 << PLANES);
    for j in run.blocks {
        let block = layout.block_at(run.i, j);
        let lines = &lines[offsets[j]..][..PLANES * block.width.div_ceil(TILE_COLS)];
        let half_steps = tiles.half_steps(block, run.row_tile);
        // SAFETY: sixteen numbers.
        let half_steps = unsafe { _mm512_loadu_ps(half_steps.as_ptr()) };
        let dots = dot_registers::<PLANES, DIGITS>(lines, x.values(0, j, 0), x.stride());
        for (slice, dots) in dots.into_iter().enumerate() {
            let bias = _mm512_set1_epi32(offset * x.sum(slice, j));
            let levels = _mm512_add_epi32(_mm512_slli_epi32::<1>(dots), bias);
            let factor = _mm512_mul_ps(half_steps, _mm512_set1_ps(x.scale(slice, j)));
            let share = _mm512_mul_ps(_mm512_cvtepi32_ps(levels), factor);
            // Either one slice a vector, or all are one vector's.
            let sums = &mut sums[if x.slices_per_row() == 1 { slice } else { 0 }];
            // SAFETY: `sums` is 64 aligned bytes.
            unsafe {
                let sum = _mm512_load_ps(sums.0.as_ptr());
                _mm512_store_ps(sums.0.as_mut_ptr(), _mm512_add_ps(sum, share));
            }
        }
    }
}

/// As [`trellis_by_blocks`]; with few slices, without a way through memory.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx512vbmi2,gfni")]
fn trellis(term: &PackedTrellis, i: usize, blocks: Range<usize>, x: QuantizedRows, sums: &mut [RowSums]) {
    if adds_groups(Packing::new(term.layout().row_range(i).len()), x) {
        add_groups(term, i, blocks, x, sums);
    } else {
        trellis_by_blocks(term, i, blocks, x, sums);
    }
}

/// Integer dot products of a row tile with the next slices, and how many slices it took.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn dot_row_tile(
    lines: &[Line],
    planes: u8,
    values: &[i8],
    stride: usize,
    left: usize,
    dots: &mut [RowDots],
) -> usize {
    dispatch!(planes, left, dot(lines, values, stride, dots), [16, 12, 8, 6, 4, 3, 2, 1])
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn dot<const PLANES: usize, const VECTORS: usize>(
    lines: &[Line],
    values: &[i8],
    stride: usize,
    dots: &mut [RowDots],
) -> usize {
    for (vector, sum) in dot_registers::<PLANES, VECTORS>(lines, values, stride).into_iter().enumerate() {
        // SAFETY: it stores 64 aligned bytes.
        unsafe { _mm512_store_si512(dots[vector].0.as_mut_ptr().cast(), sum) };
    }
    VECTORS
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn dot_registers<const PLANES: usize, const VECTORS: usize>(
    lines: &[Line],
    values: &[i8],
    stride: usize,
) -> [__m512i; VECTORS] {
    let tiles = lines.as_chunks::<PLANES>().0;
    // The last read is four bytes at the end of the last tile of the last vector.
    assert!(values.len() >= (VECTORS - 1) * stride + tiles.len() * TILE_COLS);
    // Few vectors: several sums each, so that an instruction does not wait for the one before.
    let chains = const { if VECTORS < 4 { 4 / VECTORS } else { 1 } };
    let mut sums = [[_mm512_setzero_si512(); 4]; VECTORS];
    for (t, tile) in tiles.iter().enumerate() {
        let codes = unpack(tile);
        each!(GROUP_INDEX in [0 1 2 3 4 5 6 7] {
            for (vector, sums) in sums.iter_mut().enumerate() {
                let at = vector * stride + t * TILE_COLS + GROUP_INDEX * QUAD;
                // SAFETY: four bytes inside `values`, by the assertion above.
                let x = unsafe { values.as_ptr().add(at).cast::<i32>().read_unaligned() };
                let sum = &mut sums[GROUP_INDEX % chains];
                *sum = _mm512_dpbusd_epi32(*sum, codes[GROUP_INDEX], _mm512_set1_epi32(x));
            }
        });
    }
    let mut totals = [_mm512_setzero_si512(); VECTORS];
    for (total, [a, b, c, d]) in totals.iter_mut().zip(sums) {
        *total = _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d));
    }
    totals
}

/// [`planes::unpack`](crate::cpu::layout::planes::unpack) in registers.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn unpack<const PLANES: usize>(tile: &[Line; PLANES]) -> [__m512i; QUADS] {
    let mut codes = [_mm512_setzero_si512(); QUADS];
    let mut first = 0;
    if PLANES & 8 != 0 {
        codes = add_part::<8>(&tile[first..], codes);
        first += 8;
    }
    if PLANES & 4 != 0 {
        codes = add_part::<4>(&tile[first..], codes);
        first += 4;
    }
    if PLANES & 2 != 0 {
        codes = add_part::<2>(&tile[first..], codes);
        first += 2;
    }
    if PLANES & 1 != 0 {
        codes = add_part::<1>(&tile[first..], codes);
    }
    codes
}

/// `codes << BITS | field` for every column group of a part.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn add_part<const BITS: usize>(part: &[Line], codes: [__m512i; QUADS]) -> [__m512i; QUADS] {
    each!(GROUP_INDEX in [0 1 2 3 4 5 6 7] {
        // SAFETY: a line is 64 aligned bytes.
        let line = unsafe { _mm512_load_si512(part[GROUP_INDEX % BITS].0.as_ptr().cast()) };
        if BITS == 8 {
            line
        } else {
            // 16-bit shifts bring in a neighbour's bits, which the mask takes away.
            let shift = _mm_cvtsi32_si128(((GROUP_INDEX / BITS * BITS) as u32).cast_signed());
            let field = _mm512_srl_epi16(line, shift);
            let mask = _mm512_set1_epi8((1 << BITS) - 1);
            let above = _mm512_sll_epi16(codes[GROUP_INDEX], _mm_cvtsi32_si128((BITS as u32).cast_signed()));
            // field & mask | above; codes above are below 2^7 and stay in their bytes.
            _mm512_ternarylogic_epi32::<0xea>(field, mask, above)
        }
    })
}

#[target_feature(enable = "avx512f")]
fn rows_to_lanes(rows: &[f32], stride: usize, lanes: &mut [Lanes; LANES]) {
    assert!(rows.len() >= (LANES - 1) * stride + LANES);
    let mut registers = [_mm512_setzero_ps(); LANES];
    for (n, register) in registers.iter_mut().enumerate() {
        // SAFETY: sixteen elements inside `rows`, by the assertion above.
        *register = unsafe { _mm512_loadu_ps(rows.as_ptr().add(n * stride)) };
    }
    for (lanes, column) in lanes.iter_mut().zip(transpose(registers)) {
        // SAFETY: lanes are 64 aligned bytes.
        unsafe { _mm512_store_ps(lanes.0.as_mut_ptr(), column) };
    }
}

#[target_feature(enable = "avx512f")]
fn lanes_to_rows(lanes: &[Lanes; LANES], rows: &mut [f32], stride: usize) {
    assert!(rows.len() >= (LANES - 1) * stride + LANES);
    let mut registers = [_mm512_setzero_ps(); LANES];
    for (register, lanes) in registers.iter_mut().zip(lanes) {
        // SAFETY: lanes are 64 aligned bytes.
        *register = unsafe { _mm512_load_ps(lanes.0.as_ptr()) };
    }
    for (n, column) in transpose(registers).into_iter().enumerate() {
        // SAFETY: sixteen elements inside `rows`, by the assertion above.
        unsafe { _mm512_storeu_ps(rows.as_mut_ptr().add(n * stride), column) };
    }
}

/// `out[b][a] = in[a][b]`: pairs of rows, of two, of four, of eight.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose(rows: [__m512; LANES]) -> [__m512; LANES] {
    // Elements of rows 4a..4a+4 side by side in each 128-bit quarter: column 4q + n of quarter q.
    let mut quads = [_mm512_setzero_ps(); 16];
    for a in 0..4 {
        let [r0, r1, r2, r3] = [rows[4 * a], rows[4 * a + 1], rows[4 * a + 2], rows[4 * a + 3]];
        let (low01, high01) = (_mm512_unpacklo_ps(r0, r1), _mm512_unpackhi_ps(r0, r1));
        let (low23, high23) = (_mm512_unpacklo_ps(r2, r3), _mm512_unpackhi_ps(r2, r3));
        let [low01, high01, low23, high23] = [low01, high01, low23, high23].map(|r| _mm512_castps_pd(r));
        quads[4 * a] = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23));
        quads[4 * a + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
        quads[4 * a + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
        quads[4 * a + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
    }
    let mut out = rows;
    for n in 0..4 {
        let [q0, q1, q2, q3] = [quads[n], quads[4 + n], quads[8 + n], quads[12 + n]];
        let (even01, odd01) = (_mm512_shuffle_f32x4::<0x88>(q0, q1), _mm512_shuffle_f32x4::<0xdd>(q0, q1));
        let (even23, odd23) = (_mm512_shuffle_f32x4::<0x88>(q2, q3), _mm512_shuffle_f32x4::<0xdd>(q2, q3));
        let columns = [
            _mm512_shuffle_f32x4::<0x88>(even01, even23),
            _mm512_shuffle_f32x4::<0x88>(odd01, odd23),
            _mm512_shuffle_f32x4::<0xdd>(even01, even23),
            _mm512_shuffle_f32x4::<0xdd>(odd01, odd23),
        ];
        for (quarter, column) in columns.into_iter().enumerate() {
            out[4 * quarter + n] = column;
        }
    }
    out
}
