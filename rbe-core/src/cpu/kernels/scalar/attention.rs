//! Attention of one position: arrays of four floats.

use super::isa::Scalar;
use crate::cpu::kernels::generic::attention::{self, Floats, KeyPart, PartialMix};

pub(super) fn attend(part: KeyPart, scores: &mut [f32], out: PartialMix) {
    attention::attend(Scalar, part, scores, out);
}

impl Floats<4> for Scalar {
    const ROWS: usize = 3;
    type Register = [f32; 4];

    #[inline(always)]
    fn load(self, from: &[f32; 4]) -> [f32; 4] {
        *from
    }

    #[inline(always)]
    fn load_part(self, from: &[f32]) -> [f32; 4] {
        let mut four = [0.0; 4];
        four[..from.len()].copy_from_slice(from);
        four
    }

    #[inline(always)]
    fn store(self, x: [f32; 4], to: &mut [f32; 4]) {
        *to = x;
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 4] {
        [x; 4]
    }

    #[inline(always)]
    fn add_product(self, a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|n| a[n] * b[n] + c[n])
    }

    #[inline(always)]
    fn sums(self, x: [[f32; 4]; 4]) -> [f32; 4] {
        x.map(|[a, b, c, d]| (a + c) + (b + d))
    }
}
