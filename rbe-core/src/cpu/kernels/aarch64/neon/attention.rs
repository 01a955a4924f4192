//! Attention of one position: four floats in a register.

use super::isa::{Neon, Proof};
use crate::cpu::kernels::generic::attention::{self, Floats, KeyPart, PartialMix};
use std::arch::aarch64::*;

#[target_feature(enable = "neon")]
pub(super) fn attend(part: KeyPart, scores: &mut [f32], out: PartialMix) {
    attention::attend(Neon::new(), part, scores, out);
}

impl<P: Proof> Floats<4> for Neon<P> {
    const ROWS: usize = 4;
    type Register = float32x4_t;

    #[inline(always)]
    fn load(self, from: &[f32; 4]) -> float32x4_t {
        // SAFETY: here and below, the token proves the instructions; four numbers.
        unsafe { vld1q_f32(from.as_ptr()) }
    }

    #[inline(always)]
    fn load_part(self, from: &[f32]) -> float32x4_t {
        let mut four = [0.0; 4];
        four[..from.len()].copy_from_slice(from);
        self.load(&four)
    }

    #[inline(always)]
    fn store(self, x: float32x4_t, to: &mut [f32; 4]) {
        // SAFETY: as above.
        unsafe { vst1q_f32(to.as_mut_ptr(), x) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vdupq_n_f32(x) }
    }

    #[inline(always)]
    fn add_product(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: as above.
        unsafe { vfmaq_f32(c, a, b) }
    }

    /// Sums of neighbours, twice.
    #[inline(always)]
    fn sums(self, [a, b, c, d]: [float32x4_t; 4]) -> [f32; 4] {
        let mut sums = [0.0; 4];
        // SAFETY: as above.
        unsafe { vst1q_f32(sums.as_mut_ptr(), vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d))) };
        sums
    }
}
