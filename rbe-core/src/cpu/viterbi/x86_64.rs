//! A register of states takes five instructions: shuffle its costs, subtract, square, add, take the least.
//!
//! The `2^k` states that follow a class lie side by side, so a register of states needs a `2^k`-th of a register of
//! costs, each repeated `2^k` times: one shuffle with a fixed index. The values stream past in `2^k` runs, so a few
//! registers of each are taken at once: many runs at a power-of-two distance do not fit the first cache.

use std::arch::x86_64::*;

/// States in a register.
const LANES_512: usize = 32;
const LANES_256: usize = 16;
/// Registers of next costs made at once.
const TILE: usize = 4;

#[target_feature(enable = "avx2,avx512f,avx512bw")]
pub(super) fn avx512<const W: usize>(costs: &[u16], values: &[i16], target: i16, next: &mut [u16]) -> u16 {
    let classes = next.len();
    assert!(classes.is_multiple_of(TILE * LANES_512));
    assert!(values.len() == W * classes && costs.len() >= classes + LANES_512);
    let index: [u16; LANES_512] = std::array::from_fn(|lane| (lane / W) as u16);
    // SAFETY: 64 bytes of an array of 64.
    let index = unsafe { _mm512_loadu_si512(index.as_ptr().cast()) };
    let target = _mm512_set1_epi16(target);
    let mut least_of_all = _mm512_set1_epi16(-1);
    for (n, next) in next.as_chunks_mut::<LANES_512>().0.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
        let mut best = [_mm512_set1_epi16(-1); TILE];
        for i in 0..W {
            for (m, best) in best.iter_mut().enumerate() {
                let state = i * classes + (n * TILE + m) * LANES_512;
                // SAFETY: `state + 32 <= W classes`, the length of `values`, and `state / W + 32` is at most the
                // length of `costs`: both by the assertions above.
                let (before, value) = unsafe {
                    (
                        _mm512_loadu_si512(costs.as_ptr().add(state / W).cast()),
                        _mm512_loadu_si512(values.as_ptr().add(state).cast()),
                    )
                };
                let difference = _mm512_subs_epi16(target, value);
                let cost = _mm512_mulhrs_epi16(difference, difference);
                let total = _mm512_adds_epu16(_mm512_permutexvar_epi16(index, before), cost);
                *best = _mm512_min_epu16(*best, total);
            }
        }
        for (next, best) in next.iter_mut().zip(best) {
            // SAFETY: `next` is 64 bytes.
            unsafe { _mm512_storeu_si512(next.as_mut_ptr().cast(), best) };
            least_of_all = _mm512_min_epu16(least_of_all, best);
        }
    }
    let halves = (_mm512_castsi512_si256(least_of_all), _mm512_extracti64x4_epi64::<1>(least_of_all));
    least(_mm256_min_epu16(halves.0, halves.1))
}

#[target_feature(enable = "avx2")]
pub(super) fn avx2<const W: usize>(costs: &[u16], values: &[i16], target: i16, next: &mut [u16]) -> u16 {
    let classes = next.len();
    assert!(classes.is_multiple_of(TILE * LANES_256));
    assert!(values.len() == W * classes && costs.len() >= classes + LANES_256);
    // Both halves see the same eight costs and take theirs by bytes.
    let index: [u8; 2 * LANES_256] = std::array::from_fn(|byte| (byte / 2 / W * 2 + byte % 2) as u8);
    // SAFETY: 32 bytes of an array of 32.
    let index = unsafe { _mm256_loadu_si256(index.as_ptr().cast()) };
    let target = _mm256_set1_epi16(target);
    let mut least_of_all = _mm256_set1_epi16(-1);
    for (n, next) in next.as_chunks_mut::<LANES_256>().0.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
        let mut best = [_mm256_set1_epi16(-1); TILE];
        for i in 0..W {
            for (m, best) in best.iter_mut().enumerate() {
                let state = i * classes + (n * TILE + m) * LANES_256;
                // SAFETY: `state + 16 <= W classes`, the length of `values`, and `state / W + 8` is less than the
                // length of `costs`: both by the assertions above.
                let (before, value) = unsafe {
                    (
                        _mm_loadu_si128(costs.as_ptr().add(state / W).cast()),
                        _mm256_loadu_si256(values.as_ptr().add(state).cast()),
                    )
                };
                let before = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(before), index);
                let difference = _mm256_subs_epi16(target, value);
                let cost = _mm256_mulhrs_epi16(difference, difference);
                *best = _mm256_min_epu16(*best, _mm256_adds_epu16(before, cost));
            }
        }
        for (next, best) in next.iter_mut().zip(best) {
            // SAFETY: `next` is 32 bytes.
            unsafe { _mm256_storeu_si256(next.as_mut_ptr().cast(), best) };
            least_of_all = _mm256_min_epu16(least_of_all, best);
        }
    }
    least(least_of_all)
}

/// The least of sixteen unsigned numbers.
#[target_feature(enable = "avx2")]
fn least(numbers: __m256i) -> u16 {
    let halves = (_mm256_castsi256_si128(numbers), _mm256_extracti128_si256::<1>(numbers));
    let least = _mm_minpos_epu16(_mm_min_epu16(halves.0, halves.1));
    _mm_extract_epi16::<0>(least) as u16
}
