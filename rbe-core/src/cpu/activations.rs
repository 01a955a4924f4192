//! The way of a batch into int8 digits: see [`Activations`].

use super::kernels::Kernels;
use super::layout::planes::TILE_COLS;
pub(super) use super::layout::{Activations, Digit};

/// The largest digit.
const TOP: f32 = 127.0;

/// The digits of one block of one vector, each with its scale and sums; bytes beyond the block become zero.
/// `x` is left with what the last digit lost.
pub(super) fn quantize<'a>(kernels: &Kernels, x: &mut [f32], digits: impl Iterator<Item = Digit<'a>>) {
    let mut scale = kernels.largest(x) / TOP;
    for digit in digits {
        let (used, padding) = digit.values.split_at_mut(x.len());
        kernels.take_digit(x, scale, used);
        *digit.scale = scale;
        padding.fill(0);
        for (sum, tile) in digit.tile_sums.iter_mut().zip(digit.values.as_chunks::<TILE_COLS>().0) {
            // 32 digits of at most 127: the sum fits.
            *sum = i32::from(tile.iter().map(|value| i16::from(*value)).sum::<i16>());
        }
        *digit.sum = digit.tile_sums.iter().sum();
        scale /= 2.0 * TOP;
    }
}
