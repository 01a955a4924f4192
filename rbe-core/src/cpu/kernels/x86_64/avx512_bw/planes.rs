//! Products of planes.
//!
//! A line is a register: lane `r` belongs to row `r`. Its four codes are multiplied with four activations, read from memory and
//! broadcast to all lanes. Unpacking costs 1.5 instructions per register of 64 codes at 4 planes and is shared by all vectors; with
//! one vector, four partial sums hide the latency of `vpdpbusd`. Without VNNI products of several vectors are added up in 16 bits as far as
//! they fit there.

use super::isa::{Avx512, Own};
use crate::codec::Block;
use crate::cpu::layout::Input;

/// A level's own: `product`, and the [`DotTile`] of its token, which `$new` makes. `$dot` multiplies a row tile with a number of digits.
macro_rules! compile_planes {
    ($features:literal, $proof:ty, $new:ident, $dot:path) => {
        use $crate::cpu::kernels::generic::planes::{self as generic, Digits, DotTile, Tile};
        use $crate::cpu::kernels::unroll::dispatch;
        use $crate::cpu::kernels::x86_64::avx512_bw::multiply::{BlockRun, GEMV_MAX_DIGITS, add_run};
        use $crate::cpu::kernels::x86_64::frame::align_frame;
        use $crate::cpu::layout::planes::{Line, PackedPlanes};
        use $crate::cpu::layout::{QuantizedRows, RowDots, RowSums};

        /// As [`generic::product`]; with few digits, neighbouring blocks with as many planes in one go.
        #[target_feature(enable = $features)]
        pub(super) fn product(
            tiles: &PackedPlanes,
            i: usize,
            row_tile: usize,
            x: QuantizedRows,
            sums: &mut [RowSums],
        ) {
            if x.slices() > GEMV_MAX_DIGITS {
                generic::product(Avx512::<$proof>::$new(), tiles, i, row_tile, x, sums);
                return;
            }
            for (planes, blocks) in tiles.runs(i) {
                let run = BlockRun { i, row_tile, blocks };
                dispatch!(planes, x.slices(), planes_run(tiles, run, x, sums), [3, 2, 1]);
            }
        }

        #[target_feature(enable = $features)]
        fn planes_run<const PLANES: usize, const DIGITS: usize>(
            tiles: &PackedPlanes,
            run: BlockRun,
            x: QuantizedRows,
            sums: &mut [RowSums],
        ) {
            align_frame();
            add_run::<_, PLANES, DIGITS>(Avx512::<$proof>::$new(), tiles, run, x, sums);
        }

        impl DotTile for Avx512<$proof> {
            const BYTE_BIAS: i32 = 0;

            #[inline(always)]
            fn dot_tile(self, tile: Tile, x: Digits, dots: &mut [RowDots]) -> usize {
                // SAFETY: the token proves the instructions.
                unsafe { dot_tile(tile, x, dots) }
            }
        }

        /// Up to sixteen digits.
        #[target_feature(enable = $features)]
        fn dot_tile(tile: Tile, x: Digits, dots: &mut [RowDots]) -> usize {
            dispatch!(tile.planes, x.count, dot(tile.lines, x, dots), [16, 12, 8, 6, 4, 3, 2, 1])
        }

        #[target_feature(enable = $features)]
        fn dot<const PLANES: usize, const BATCH: usize>(
            lines: &[Line],
            x: Digits,
            dots: &mut [RowDots],
        ) -> usize {
            align_frame();
            use $dot as multiply;
            multiply::<_, PLANES, BATCH>(Avx512::<$proof>::$new(), lines, x, dots)
        }
    };
}
pub(in crate::cpu::kernels::x86_64) use compile_planes;

compile_planes!(
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt",
    Own,
    new,
    crate::cpu::kernels::x86_64::avx512_bw::multiply::dot
);

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
pub(super) fn transposed(tiles: &PackedPlanes, block: Block, g: Input, acc: &mut [f32]) {
    align_frame();
    generic::transposed::<Avx512>(tiles, block, g, acc);
}
