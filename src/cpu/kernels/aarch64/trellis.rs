//! The trellis code on NEON: 16 values in twelve instructions, in fourteen from 3 bits on.
//!
//! A quarter of a line at a time: a shift and an insertion bring eight states of columns `a` and `c` to their lanes (see
//! [`strips`](crate::cpu::strips)), a 16-bit multiplication makes the code's index of them in the high bits, and one
//! `trn2` puts those of `b` and `d` between them. Seven bits of it are looked up in two tables of 64: `tbl` gives zero, and
//! `tbx` leaves what there was, where an index less the table's first lies outside. From 3 bits on the eighth is the
//! sign.

use super::super::trellis::{COARSE_CODES, FINE_CODES};
use super::super::unroll::{dispatch_bits, each};
use crate::codec::term::trellis::{COARSE_BITS, Code};
use crate::cpu::strips::{PERIOD, Packing};
use crate::cpu::tiles::Line;
use std::arch::aarch64::*;

/// What makes codes of states, if these have `BITS` of their own: the multiplier and the codes of 128 indices.
#[derive(Clone, Copy)]
struct Decoder<const BITS: usize> {
    multiplier: uint16x8_t,
    codes: [uint8x16x4_t; 2],
}

impl<const BITS: usize> Decoder<BITS> {
    #[target_feature(enable = "neon")]
    #[inline]
    fn new(code: Code) -> Self {
        let codes = if code.is_fine() { &FINE_CODES } else { &COARSE_CODES };
        // SAFETY: a table is 64 bytes.
        let codes = each!(N in [0 1] unsafe { vld1q_u8_x4(codes[N].0.as_ptr()) });
        Self { multiplier: vdupq_n_u16(code.multiplier()), codes }
    }

    /// The codes of 4 rows by 4 columns from the words of `a, c` and `b, d` that their states begin in, and the next.
    #[target_feature(enable = "neon")]
    #[inline]
    fn codes(self, ac: [uint16x8_t; 2], bd: [uint16x8_t; 2], shift: usize) -> uint8x16_t {
        let ac = vmulq_u16(shift_pair(ac, shift), self.multiplier);
        let bd = vmulq_u16(shift_pair(bd, shift), self.multiplier);
        self.look_up(vtrn2q_u8(vreinterpretq_u8_u16(ac), vreinterpretq_u8_u16(bd)))
    }

    /// `value + 128` of indices in the high bits of each byte.
    #[target_feature(enable = "neon")]
    #[inline]
    fn look_up(self, index: uint8x16_t) -> uint8x16_t {
        let is_coarse = BITS <= usize::from(COARSE_BITS);
        let low = if is_coarse { vshrq_n_u8::<1>(index) } else { vandq_u8(index, vdupq_n_u8(0x7f)) };
        let code = vqtbl4q_u8(self.codes[0], low);
        let code = vqtbx4q_u8(code, self.codes[1], vsubq_u8(low, vdupq_n_u8(64)));
        if is_coarse {
            return code;
        }
        // `-(value + 128) = -value + 128` in eight bits.
        let negative = vreinterpretq_u8_s8(vshrq_n_s8::<7>(vreinterpretq_s8_u8(index)));
        vsubq_u8(veorq_u8(code, negative), negative)
    }
}

/// The codes of one register's groups, as [`generic`](super::super::trellis::decode_bundle) has them.
#[target_feature(enable = "neon")]
pub(super) fn decode_bundle(
    bundle: (&[Line], &[Line]),
    code: Code,
    packing: Packing,
    codes: &mut [Line],
    stride: usize,
) {
    dispatch_bits!(code.bits(), decode(bundle, code, packing, codes, stride))
}

#[target_feature(enable = "neon")]
fn decode<const BITS: usize>(
    (ac, bd): (&[Line], &[Line]),
    code: Code,
    packing: Packing,
    codes: &mut [Line],
    stride: usize,
) {
    assert!(codes.len() > (PERIOD - 1) * stride);
    let decoder = Decoder::<BITS>::new(code);
    for quarter in 0..4 {
        let (ac, bd) = (words::<BITS>(ac, packing, quarter), words::<BITS>(bd, packing, quarter));
        each!(S in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] {
            let (word, shift) = (BITS * S / 16, BITS * S % 16);
            let values = decoder.codes([ac[word], ac[word + 1]], [bd[word], bd[word + 1]], shift);
            // SAFETY: a quarter of one of `codes`, by the assertion above.
            unsafe { vst1q_u8(codes.as_mut_ptr().add(S * stride).cast::<u8>().add(16 * quarter), values) };
        });
    }
}

/// The words of a quarter's periods and the one that follows each.
#[target_feature(enable = "neon")]
#[inline]
fn words<const BITS: usize>(lines: &[Line], packing: Packing, quarter: usize) -> [uint16x8_t; 5] {
    let mut words = [vdupq_n_u16(0); 5];
    for (word, line) in words.iter_mut().zip(&lines[..BITS]) {
        *word = load(line, quarter);
    }
    words[BITS] =
        if packing.is_full() { next_words(&lines[0], packing, quarter) } else { load(&lines[BITS], quarter) };
    words
}

/// The quarter's part of a line whose lanes are those of [`Packing::next_lane`].
#[target_feature(enable = "neon")]
#[inline]
fn next_words(line: &Line, packing: Packing, quarter: usize) -> uint16x8_t {
    let own = vreinterpretq_u32_u16(load(line, quarter));
    vreinterpretq_u16_u32(match packing.lanes() {
        2 => vrev64q_u32(own),
        lanes => {
            let registers = lanes / 4;
            let next = quarter / registers * registers + (quarter + 1) % registers;
            vextq_u32::<1>(own, vreinterpretq_u32_u16(load(line, next)))
        }
    })
}

#[target_feature(enable = "neon")]
#[inline]
fn load(line: &Line, quarter: usize) -> uint16x8_t {
    // SAFETY: a quarter of a line is sixteen bytes.
    vreinterpretq_u16_u8(unsafe { vld1q_u8(line.0[16 * quarter..][..16].as_ptr()) })
}

/// The low 16 bits of `first + 2^16 next`, shifted down, in each lane; the optimiser knows the shift.
#[target_feature(enable = "neon")]
#[inline]
fn shift_pair([first, next]: [uint16x8_t; 2], shift: usize) -> uint16x8_t {
    macro_rules! by {
        ($($n:literal)*) => {
            match shift {
                $($n => vsliq_n_u16::<{ 16 - $n }>(vshrq_n_u16::<$n>(first), next),)*
                _ => first,
            }
        };
    }
    by!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::term::trellis::{COARSE_VALUES, FINE_VALUES};

    /// Every byte as [`Decoder::look_up`] gets it.
    #[target_feature(enable = "neon")]
    fn all_codes<const BITS: usize>() -> [u8; 256] {
        let decoder = Decoder::<BITS>::new(Code::new(BITS as u8, 12));
        let mut codes = std::array::from_fn(|n| n as u8);
        for codes in codes.as_chunks_mut::<16>().0 {
            // SAFETY: sixteen bytes are read and written.
            unsafe { vst1q_u8(codes.as_mut_ptr(), decoder.look_up(vld1q_u8(codes.as_ptr()))) };
        }
        codes
    }

    #[test]
    fn every_value_is_found() {
        // SAFETY: every processor of the target has NEON.
        let (coarse, fine) = unsafe { (all_codes::<2>(), all_codes::<3>()) };
        for n in 0..256 {
            assert_eq!(i16::from(coarse[n]) - 128, i16::from(COARSE_VALUES[n / 2]), "{n}");
            assert_eq!(i16::from(fine[n]) - 128, i16::from(FINE_VALUES[n]), "{n}");
        }
    }
}
