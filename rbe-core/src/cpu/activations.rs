//! The way of a batch into int8 slices: see [`Activations`](super::layout::Activations).

use super::kernels::Kernels;
use super::layout::{FINER, Int8Slice};

/// The largest value of a slice.
const TOP: f32 = 127.0;

const _: () = assert!(FINER == 2 * TOP as i32);

/// The slices of one block of one vector, each with its scale and sums; bytes beyond the block become zero.
/// `x` is left with what the last slice lost.
pub(super) fn quantize<'a>(kernels: &Kernels, x: &mut [f32], slices: impl Iterator<Item = Int8Slice<'a>>) {
    let mut scale = kernels.largest(x) / TOP;
    for slice in slices {
        kernels.quantize_slice(x, scale, slice.values, slice.tile_sums);
        *slice.scale = scale;
        *slice.sum = slice.tile_sums.iter().sum();
        scale /= 2.0 * TOP;
    }
}
