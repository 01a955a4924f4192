//! The way of a batch into int8 slices: see [`Activations`](super::layout::Activations).

use super::kernels::Kernels;
use super::layout::Int8Slice;
use super::layout::planes::TILE_COLS;

/// The largest value of a slice.
const TOP: f32 = 127.0;

/// The slices of one block of one vector, each with its scale and sums; bytes beyond the block become zero.
/// `x` is left with what the last slice lost.
pub(super) fn quantize<'a>(kernels: &Kernels, x: &mut [f32], slices: impl Iterator<Item = Int8Slice<'a>>) {
    let mut scale = kernels.largest(x) / TOP;
    for slice in slices {
        let (used, padding) = slice.values.split_at_mut(x.len());
        kernels.quantize_slice(x, scale, used);
        *slice.scale = scale;
        padding.fill(0);
        for (sum, tile) in slice.tile_sums.iter_mut().zip(slice.values.as_chunks::<TILE_COLS>().0) {
            // 32 slices of at most 127: the sum fits.
            *sum = i32::from(tile.iter().map(|value| i16::from(*value)).sum::<i16>());
        }
        *slice.sum = slice.tile_sums.iter().sum();
        scale /= 2.0 * TOP;
    }
}
