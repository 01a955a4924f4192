//! AVX-512 with VNNI: 64 products an instruction.
//!
//! A line is a register: lane `r` belongs to row `r`. `vpdpbusd` multiplies its four codes with four activations,
//! read from memory and broadcast to all lanes by the same instruction. Unpacking costs 1.5 instructions per
//! register of 64 codes at 4 planes and is shared by all vectors; with one vector, four partial sums hide the
//! instruction's latency.

use crate::cpu::activations::Activations;
use crate::cpu::kernels::RowSums;
use crate::cpu::tiles::{GROUP, GROUPS, Line, TILE_COLS, TILE_ROWS};
use std::arch::x86_64::*;
use std::ops::Range;

super::super::table!(fma: true, "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl");

/// Digits multiplied with one unpacked tile.
const MAX_VECTORS: usize = 8;

super::planes_walk!("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni", dot_row_tile);

/// Integer dot products of a row tile with the next digits, and how many digits it took.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn dot_row_tile(
    lines: &[Line],
    planes: u8,
    values: &[i8],
    stride: usize,
    left: usize,
) -> ([[i32; TILE_ROWS]; MAX_VECTORS], usize) {
    super::dispatch!(planes, left, dot(lines, values, stride), [8, 6, 4, 3, 2, 1])
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn dot<const PLANES: u8, const VECTORS: usize>(
    lines: &[Line],
    values: &[i8],
    stride: usize,
) -> ([[i32; TILE_ROWS]; MAX_VECTORS], usize) {
    let tiles = lines.chunks_exact(PLANES as usize);
    // The last read is four bytes at the end of the last tile of the last vector.
    assert!(values.len() >= (VECTORS - 1) * stride + tiles.len() * TILE_COLS);
    // Few vectors: several sums each, so that an instruction does not wait for the one before.
    let chains = const { if VECTORS < 4 { 4 / VECTORS } else { 1 } };
    let mut sums = [[_mm512_setzero_si512(); 4]; VECTORS];
    for (t, tile) in tiles.enumerate() {
        let codes = unpack::<PLANES>(tile);
        for group in 0..GROUPS {
            for (vector, sums) in sums.iter_mut().enumerate() {
                let at = vector * stride + t * TILE_COLS + group * GROUP;
                // SAFETY: four bytes inside `values`, by the assertion above.
                let x = unsafe { values.as_ptr().add(at).cast::<i32>().read_unaligned() };
                let chain = group % chains;
                sums[chain] = _mm512_dpbusd_epi32(sums[chain], codes[group], _mm512_set1_epi32(x));
            }
        }
    }
    let mut out = [[0; TILE_ROWS]; MAX_VECTORS];
    for (out, sums) in out.iter_mut().zip(&sums) {
        let sum = _mm512_add_epi32(_mm512_add_epi32(sums[0], sums[1]), _mm512_add_epi32(sums[2], sums[3]));
        // SAFETY: `out` is 64 bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sum) };
    }
    (out, VECTORS)
}

/// [`tiles::unpack`](crate::cpu::tiles::unpack) in registers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn unpack<const PLANES: u8>(tile: &[Line]) -> [__m512i; GROUPS] {
    let mut codes = [_mm512_setzero_si512(); GROUPS];
    let mut first = 0;
    for bits in const { crate::cpu::tiles::parts(PLANES) } {
        if bits == 0 {
            continue;
        }
        let part = &tile[first..first + bits as usize];
        first += bits as usize;
        let mask = _mm512_set1_epi8(((1u16 << bits) - 1) as u8 as i8);
        for (group, codes) in codes.iter_mut().enumerate() {
            let (slot, line) = (group / bits as usize, group % bits as usize);
            // SAFETY: a line is 64 aligned bytes.
            let line = unsafe { _mm512_load_si512(part[line].0.as_ptr().cast()) };
            // 16-bit shifts bring in a neighbour's bits, which the mask takes away.
            let field = match slot as u32 * u32::from(bits) {
                0 => line,
                1 => _mm512_srli_epi16::<1>(line),
                2 => _mm512_srli_epi16::<2>(line),
                3 => _mm512_srli_epi16::<3>(line),
                4 => _mm512_srli_epi16::<4>(line),
                5 => _mm512_srli_epi16::<5>(line),
                6 => _mm512_srli_epi16::<6>(line),
                _ => _mm512_srli_epi16::<7>(line),
            };
            let above = match bits {
                8 => {
                    *codes = line;
                    continue;
                }
                4 => _mm512_slli_epi16::<4>(*codes),
                2 => _mm512_slli_epi16::<2>(*codes),
                _ => _mm512_slli_epi16::<1>(*codes),
            };
            // (field & mask) | above; codes above are below 2^7 and stay in their bytes.
            *codes = _mm512_ternarylogic_epi32::<0xea>(field, mask, above);
        }
    }
    codes
}

/// `out[b][a] = in[a][b]` of 16x16 elements: pairs of rows, of two, of four, of eight.
#[target_feature(enable = "avx512f")]
fn transpose(from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize) {
    assert!(from.len() >= 15 * from_stride + 16 && to.len() >= 15 * to_stride + 16);
    let mut rows = [_mm512_setzero_ps(); 16];
    for (n, row) in rows.iter_mut().enumerate() {
        // SAFETY: sixteen elements inside `from`, by the assertion above.
        *row = unsafe { _mm512_loadu_ps(from.as_ptr().add(n * from_stride)) };
    }
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
            // SAFETY: sixteen elements inside `to`, by the assertion above.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr().add((4 * quarter + n) * to_stride), column) };
        }
    }
}
