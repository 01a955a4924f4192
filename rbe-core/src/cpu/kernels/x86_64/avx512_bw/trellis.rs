//! Products with a trellis.

use super::isa::{Avx512, Own};
use crate::codec::Block;
use crate::cpu::layout::Input;
use crate::cpu::layout::trellis::GroupCodes;
use crate::cpu::layout::trellis::PackedGroup;

/// A level's own: `product`, and the [`MultiplyTile`] of its token, which `$new` makes.
macro_rules! compile_trellis {
    ($features:literal, $proof:ty, $new:ident) => {
        use std::ops::Range;
        use $crate::cpu::kernels::generic::fused::{self, Fused, dispatch_columns};
        use $crate::cpu::kernels::generic::trellis::{
            self as generic, Decode, DecodedStrips, MultiplyTile, Place,
        };
        use $crate::cpu::kernels::unroll::dispatch_batch;
        use $crate::cpu::kernels::x86_64::avx512_bw::decode::decode_bundle;
        use $crate::cpu::kernels::x86_64::avx512_bw::multiply::multiply;
        use $crate::cpu::kernels::x86_64::frame::align_frame;
        use $crate::cpu::layout::planes::Line;
        use $crate::cpu::layout::trellis::{BIAS, Bundle, PackedTrellis};
        use $crate::cpu::layout::{QuantizedRows, RowSums};

        #[target_feature(enable = $features)]
        pub(super) fn product(
            term: &PackedTrellis,
            i: usize,
            groups: Range<usize>,
            x: QuantizedRows,
            sums: &mut [RowSums],
        ) {
            if !fused::fuses(term, i, x) {
                generic::product(Avx512::<$proof>::$new(), term, i, groups, x, sums);
                return;
            }
            fused::product(term, i, groups, x, |group| {
                dispatch_columns!(group.scale_group, add_group(group, sums));
            });
        }

        /// As in [`fused`], as many rows in a pass as registers hold the dot products of.
        #[inline(never)]
        #[target_feature(enable = $features)]
        fn add_group<const BITS: usize, const STATE: usize, const TILES: usize>(
            group: Fused,
            sums: &mut [RowSums],
        ) {
            align_frame();
            let isa = Avx512::<$proof>::$new();
            match group.x.slices() {
                1 => fused::add_group::<_, BITS, STATE, TILES, 16, 1>(isa, group, sums),
                _ => fused::add_group::<_, BITS, STATE, TILES, 8, 2>(isa, group, sums),
            }
        }

        impl Decode for Avx512<$proof> {
            #[inline(always)]
            fn decode_bundle(self, bundle: Bundle, codes: &mut [Line], stride: usize) {
                // SAFETY: the token proves the instructions.
                unsafe { decode_bundle(bundle, codes, stride) }
            }
        }

        impl MultiplyTile for Avx512<$proof> {
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
            let (all, per_row) = (scale_groups.x.slices(), scale_groups.x.slices_per_row());
            let mut digit = 0;
            while digit < all {
                let (at, left) = (Place { tile, digit, stride }, all - digit);
                let sums = &mut sums[digit / per_row * stride..];
                digit += match per_row {
                    1 => {
                        dispatch_batch!(1, left, multiply_digits(scale_groups, at, sums), [8, 6, 4, 3, 2, 1])
                    }
                    2 => dispatch_batch!(2, left, multiply_digits(scale_groups, at, sums), [8, 6, 4, 2]),
                    3 => dispatch_batch!(3, left, multiply_digits(scale_groups, at, sums), [9, 6, 3]),
                    digits => unreachable!("{digits} digits of a vector"),
                };
            }
        }

        #[target_feature(enable = $features)]
        fn multiply_digits<const PER_VECTOR: usize, const COUNT: usize>(
            scale_groups: &DecodedStrips,
            at: Place,
            sums: &mut [RowSums],
        ) -> usize {
            align_frame();
            multiply::<_, PER_VECTOR, COUNT>(Avx512::<$proof>::$new(), scale_groups, at, sums);
            COUNT
        }
    };
}
pub(in crate::cpu::kernels::x86_64) use compile_trellis;

compile_trellis!("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt", Own, new);

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
pub(super) fn transposed(term: &PackedTrellis, block: Block, g: Input, acc: &mut [f32]) {
    align_frame();
    generic::transposed(Avx512::new(), term, block, g, acc);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
pub(super) fn group_codes(scale_group: &PackedGroup, codes: &mut GroupCodes) {
    generic::decode_group(Avx512::new(), scale_group, codes);
}
