//! Activations for integer dot products: each block of each vector as signed bytes times a scale.
//!
//! ```text
//!     x_c  =  s_1 d_1c + s_2 d_2c + s_3 d_3c,    d in -127..=127
//! ```
//!
//! One digit (8 bits) is what Candle's and llama.cpp's quantised products use. Each further digit holds what the
//! one before lost, 254 times finer: three give `|error| <= max|x| / 16 million`, F32's own resolution, and the
//! sums over a block stay exact integers. To the kernel a digit is one more vector.

use super::Precision;
use super::kernels::Kernels;
use super::tiles::TILE_COLS;
use crate::codec::Layout;

/// The largest digit.
const TOP: f32 = 127.0;

/// Input vectors in digits.
#[derive(Debug, Default)]
pub(super) struct Activations {
    /// Digits of each vector.
    pub digits: usize,
    /// Bytes of one digit of one vector: every block filled up to whole tiles.
    pub stride: usize,
    /// Where each block begins in it.
    pub starts: Vec<usize>,
    /// `vectors x digits x stride`.
    pub values: Vec<i8>,
    /// `s` of each block: `vectors x digits x blocks`.
    pub scales: Vec<f32>,
    /// Sum of each block's digits, likewise.
    pub sums: Vec<i32>,
}

impl Activations {
    /// Makes room for `vectors` inputs of a matrix; nothing is allocated when there was room before.
    pub(super) fn prepare(&mut self, layout: Layout, vectors: usize, precision: Precision) {
        self.digits = match precision {
            Precision::Int8 => 1,
            Precision::Exact => 3,
        };
        self.starts.clear();
        self.stride = 0;
        for j in 0..layout.block_cols() {
            self.starts.push(self.stride);
            self.stride += layout.col_range(j).len().next_multiple_of(TILE_COLS);
        }
        let digits = vectors * self.digits;
        self.values.resize(digits * self.stride, 0);
        self.scales.resize(digits * self.starts.len(), 0.0);
        self.sums.resize(digits * self.starts.len(), 0);
    }
}

/// The digits of one block of one vector, each with its scale and sum; bytes beyond the block become zero.
/// `x` is left with what the last digit lost.
pub(super) fn quantize<'a>(
    kernels: &Kernels,
    x: &mut [f32],
    digits: impl Iterator<Item = (&'a mut [i8], &'a mut f32, &'a mut i32)>,
) {
    let mut scale = kernels.largest(x) / TOP;
    for (digits, out_scale, out_sum) in digits {
        let (used, padding) = digits.split_at_mut(x.len());
        *out_sum = kernels.take_digit(x, scale, used);
        *out_scale = scale;
        padding.fill(0);
        scale /= 2.0 * TOP;
    }
}
