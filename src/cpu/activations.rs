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
    x: &mut [f32],
    digits: impl Iterator<Item = (&'a mut [i8], &'a mut f32, &'a mut i32)>,
) {
    let mut scale = largest(x) / TOP;
    for (digits, out_scale, out_sum) in digits {
        let inverse = scale.recip();
        let inverse = if inverse.is_finite() { inverse } else { 0.0 };
        let mut sum = 0i32;
        let (used, padding) = digits.split_at_mut(x.len());
        for (digit, rest) in used.iter_mut().zip(x.iter_mut()) {
            let rounded = round(*rest * inverse);
            *rest -= rounded * scale;
            *digit = rounded as i8;
            sum += i32::from(*digit);
        }
        padding.fill(0);
        *out_scale = scale;
        *out_sum = sum;
        scale /= 2.0 * TOP;
    }
}

/// The largest magnitude; NaN where an element is not finite, so that the product shows it.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    let (mut largest, mut poison) = ([0f32; 16], [0f32; 16]);
    for chunk in x.chunks(16) {
        for (lane, value) in chunk.iter().enumerate() {
            largest[lane] = if value.abs() > largest[lane] { value.abs() } else { largest[lane] };
            poison[lane] += value * 0.0;
        }
    }
    largest.into_iter().fold(0.0, f32::max) + poison.into_iter().sum::<f32>()
}

/// To the nearest integer, ties to even, in two instructions of any processor (`|x| < 2^22`).
#[inline(always)]
fn round(x: f32) -> f32 {
    const TO_INTEGER: f32 = (3 << 22) as f32;
    (x + TO_INTEGER) - TO_INTEGER
}
