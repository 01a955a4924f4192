//! Codes to coefficients: eight rows' are exchanged with eight quads' in registers.

use super::isa::Avx2;
use crate::cpu::kernels::generic::codes::{self, CodeTile};
use crate::cpu::kernels::generic::strip::{OCTET, Octets};
use crate::cpu::kernels::x86_64::frame::align_frame;
use crate::cpu::layout::planes::{Line, QUADS, TILE_COLS};
use std::arch::x86_64::*;

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn plane_codes(tile: &[Line], planes: u8, own: &mut [Line; QUADS]) {
    codes::plane_codes(tile, planes, own);
}

#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) fn add_codes(tile: &CodeTile, out: &mut [f32]) {
    align_frame();
    let last = tile.starts.iter().fold(0, |last, start| last.max(*start));
    if tile.width < TILE_COLS || last.saturating_add(TILE_COLS) > out.len() {
        codes::add_codes(tile, out);
        return;
    }
    let (isa, bias) = (Avx2::new(), _mm256_set1_ps(tile.bias));
    let (starts, scales) = (tile.starts.as_chunks::<OCTET>().0, tile.scales.as_chunks::<OCTET>().0);
    for (half, (starts, scales)) in starts.iter().zip(scales).enumerate() {
        let quads = tile.codes.each_ref().map(|line| {
            // SAFETY: half a line.
            _mm256_castsi256_ps(unsafe {
                _mm256_loadu_si256(line.0.as_chunks::<32>().0[half].as_ptr().cast())
            })
        });
        for ((row, start), scale) in isa.transpose(quads).into_iter().zip(starts).zip(scales) {
            let (row, scale) = (_mm256_castps_si256(row), _mm256_set1_ps(*scale));
            let (low, high) = (_mm256_castsi256_si128(row), _mm256_extracti128_si256::<1>(row));
            let eights = [low, _mm_unpackhi_epi64(low, low), high, _mm_unpackhi_epi64(high, high)];
            for (out, eight) in out[*start..][..TILE_COLS].as_chunks_mut::<OCTET>().0.iter_mut().zip(eights) {
                let codes = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight));
                let values = _mm256_mul_ps(_mm256_sub_ps(codes, bias), scale);
                isa.store(_mm256_add_ps(isa.load(out), values), out);
            }
        }
    }
}
