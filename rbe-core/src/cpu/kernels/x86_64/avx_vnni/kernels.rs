//! The products, compiled for the level's instructions, and in tests for AVX-512's encoding of them.

/// `planes`, `trellis` and `panel_integers`, and what of them is the token's.
macro_rules! compile {
    ($features:literal, $proof:ident) => {
        use std::ops::Range;
        use $crate::cpu::kernels::generic::fused::{self, Fused, dispatch_columns};
        use $crate::cpu::kernels::generic::panels::{IntegerStrip, IntegerVectors};
        use $crate::cpu::kernels::generic::planes::{self as generic_planes, Digits, DotTile, Tile};
        use $crate::cpu::kernels::generic::trellis::{self as generic, Decode, DecodedStrips, MultiplyTile};
        use $crate::cpu::kernels::unroll::dispatch;
        use $crate::cpu::kernels::x86_64::avx_vnni::isa::$proof;
        use $crate::cpu::kernels::x86_64::avx_vnni::multiply::{add_run, dot, multiply};
        use $crate::cpu::kernels::x86_64::avx2::isa::Avx2;
        use $crate::cpu::kernels::x86_64::avx2::panels::add_all;
        use $crate::cpu::kernels::x86_64::avx2::trellis::decode_bundle;
        use $crate::cpu::kernels::x86_64::frame::align_frame;
        use $crate::cpu::layout::planes::{Line, PackedPlanes, RowTiles};
        use $crate::cpu::layout::trellis::{BIAS, Bundle, PERIOD, PackedTrellis};
        use $crate::cpu::layout::{QuantizedRows, RowDots, RowSums};

        /// One vector's products stay in registers, neighbouring blocks with as many planes in one go.
        #[target_feature(enable = $features)]
        pub(in crate::cpu::kernels::x86_64::avx_vnni) fn planes(
            tiles: &PackedPlanes,
            i: usize,
            row_tile: usize,
            x: QuantizedRows,
            sums: &mut [RowSums],
        ) {
            if x.slices() > 2 || x.batch() > 1 {
                planes_of_many(tiles, i, row_tile, x, sums);
                return;
            }
            for (planes, blocks) in tiles.runs(i) {
                let row_tiles = tiles.row_tiles_across(i, row_tile, blocks);
                dispatch!(planes, x.slices(), planes_run(row_tiles, x, &mut sums[0]), [2, 1]);
            }
        }

        /// Any number of digits. Not inlined, so that few do not take its frame.
        #[inline(never)]
        #[target_feature(enable = $features)]
        fn planes_of_many(
            tiles: &PackedPlanes,
            i: usize,
            row_tile: usize,
            x: QuantizedRows,
            sums: &mut [RowSums],
        ) {
            generic_planes::product(Avx2::<$proof>::with_vnni(), tiles, i, row_tile, x, sums);
        }

        #[target_feature(enable = $features)]
        fn planes_run<const PLANES: usize, const DIGITS: usize>(
            blocks: RowTiles,
            x: QuantizedRows,
            sums: &mut RowSums,
        ) {
            align_frame();
            add_run::<_, PLANES, DIGITS>(Avx2::<$proof>::with_vnni(), blocks, x, sums);
        }

        impl DotTile for Avx2<$proof> {
            const BYTE_BIAS: i32 = 0;

            #[inline(always)]
            fn dot_tile(self, tile: Tile, x: Digits, dots: &mut [RowDots]) -> usize {
                // SAFETY: the token proves the instructions.
                unsafe { dot_tile(tile, x, dots) }
            }
        }

        #[target_feature(enable = $features)]
        fn dot_tile(tile: Tile, x: Digits, dots: &mut [RowDots]) -> usize {
            dispatch!(tile.planes, x.count, dot_digits(tile.lines, x, dots), [1])
        }

        #[target_feature(enable = $features)]
        fn dot_digits<const PLANES: usize, const AT_LEAST: usize>(
            lines: &[Line],
            x: Digits,
            dots: &mut [RowDots],
        ) -> usize {
            align_frame();
            dot::<_, PLANES>(Avx2::<$proof>::with_vnni(), lines, x, dots)
        }

        /// With few digits a scale group is multiplied as it is decoded, without a way through memory.
        #[target_feature(enable = $features)]
        pub(in crate::cpu::kernels::x86_64::avx_vnni) fn trellis(
            term: &PackedTrellis,
            i: usize,
            groups: Range<usize>,
            x: QuantizedRows,
            sums: &mut [RowSums],
        ) {
            if !fused::fuses(term, i, x) {
                generic::product(Avx2::<$proof>::with_vnni(), term, i, groups, x, sums);
                return;
            }
            fused::product(term, i, groups, x, |group| {
                dispatch_columns!(group.scale_group, add_group(group, sums));
            });
        }

        #[target_feature(enable = $features)]
        fn add_group<const BITS: usize, const STATE: usize, const TILES: usize>(
            group: Fused,
            sums: &mut [RowSums],
        ) {
            match group.x.slices() {
                1 => add_digits::<BITS, STATE, TILES, 1>(group, sums),
                _ => add_digits::<BITS, STATE, TILES, 2>(group, sums),
            }
        }

        #[inline(never)]
        #[target_feature(enable = $features)]
        fn add_digits<const BITS: usize, const STATE: usize, const TILES: usize, const DIGITS: usize>(
            group: Fused,
            sums: &mut [RowSums],
        ) {
            fused::add_group::<_, BITS, STATE, TILES, PERIOD, DIGITS>(
                Avx2::<$proof>::with_vnni(),
                group,
                sums,
            );
        }

        #[target_feature(enable = $features)]
        pub(in crate::cpu::kernels::x86_64::avx_vnni) fn panel_integers(
            strip: IntegerStrip,
            x: IntegerVectors,
            sums: &mut [RowSums],
        ) {
            align_frame();
            add_all(Avx2::<$proof>::with_vnni(), strip, x, sums);
        }

        impl Decode for Avx2<$proof> {
            #[inline(always)]
            fn decode_bundle(self, bundle: Bundle, codes: &mut [Line], stride: usize) {
                // SAFETY: the token proves the instructions.
                unsafe { decode_bundle(bundle, codes, stride) }
            }
        }

        impl MultiplyTile for Avx2<$proof> {
            const CODE_BIAS: i32 = BIAS;

            #[inline(always)]
            fn multiply_tile(
                self,
                scale_groups: &DecodedStrips,
                tile: usize,
                sums: &mut [RowSums],
                stride: usize,
            ) {
                // SAFETY: as above.
                unsafe { multiply_tile(scale_groups, tile, sums, stride) }
            }
        }

        #[target_feature(enable = $features)]
        fn multiply_tile(scale_groups: &DecodedStrips, tile: usize, sums: &mut [RowSums], stride: usize) {
            align_frame();
            multiply(Avx2::<$proof>::with_vnni(), scale_groups, tile, sums, stride);
        }
    };
}

pub(super) mod vex {
    compile!("avx2,fma,f16c,popcnt,avxvnni", Vex);
}

#[cfg(test)]
pub(super) mod evex {
    compile!("avx2,fma,f16c,popcnt,avx512vnni,avx512vl", Evex);
}
