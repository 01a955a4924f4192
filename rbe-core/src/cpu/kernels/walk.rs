//! The walks over a block row that all levels share. A level brings
//!
//! - `dot_row_tile(lines, planes, values, stride, left, dots)`: the integer products of one row tile's lines (see
//!   [`planes`](crate::cpu::layout::planes)) with up to `left` slices, `stride` apart; it says how many it took;
//! - `BYTE_BIAS`, what `dot_row_tile` takes away from codes of eight bits: 128 where it multiplies signed bytes, else 0;
//! - `decode_bundle(bundle, codes, stride)`: one register's columns of a trellis as 8-bit codes (see
//!   [`trellis`](super::trellis));
//! - `MAX_VECTORS`, the most slices that `dot_row_tile` takes;
//! - `planes`, which may be `planes_by_blocks`, and `trellis`, which may be `trellis_by_blocks`;
//! - `multiply_tile(scale groups, tile, sums, stride)`, which adds the products of one tile of decoded scale groups with all their slices:
//!   a level's own, or that of [`multiplies_decoded`].

macro_rules! walks {
    (fma: $fma:literal $(, $feature:literal)?) => {
        use super::super::trellis::{DIGITS_AT_ONCE, DecodedStrips, MOST_GROUPS, GroupRows};
        use super::super::{EDGE, RowDots, RowSums};
        use crate::codec::term::trellis::GROUP_COLS;
        use crate::cpu::activations::QuantizedRows;
        use crate::cpu::layout::trellis::{BIAS, PERIOD, Packing, GROUP_LINES, PackedGroup, GroupCodes, PackedTrellis};
        use crate::cpu::layout::planes::{QUAD, QUADS, Line, TILE_COLS, TILE_ROWS};
        use std::ops::Range;

        /// Block by block: integer products, then one multiple of them.
        $(#[target_feature(enable = $feature)])?
        fn planes_by_blocks(
            tiles: &PackedPlanes,
            i: usize,
            row_tile: usize,
            x: QuantizedRows,
            sums: &mut [RowSums],
        ) {
            let layout = tiles.layout();
            let mut dots = [RowDots::ZERO; MAX_VECTORS];
            for j in 0..layout.block_cols() {
                let block = layout.block_at(i, j);
                let planes = tiles.planes(block);
                if planes == 0 {
                    continue;
                }
                let (lines, half_steps) = (tiles.row_tile(block, row_tile), tiles.half_steps(block, row_tile));
                let offset = 1 - (1i32 << planes) + if planes == 8 { 2 * BYTE_BIAS } else { 0 };
                let mut slice = 0;
                while slice < x.slices() {
                    let left = x.slices() - slice;
                    let taken = dot_row_tile(lines, planes, x.values(slice, j, 0), x.stride(), left, &mut dots);
                    for (dots, slice) in dots[..taken].iter().zip(slice..) {
                        let (scale, sum) = (x.scale(slice, j), x.sum(slice, j));
                        let sums = &mut sums[slice / x.slices_per_row()];
                        for lane in 0..TILE_ROWS {
                            let level_sum = (2 * dots.0[lane] + offset * sum) as f32;
                            sums.0[lane] += level_sum * (half_steps[lane] * scale);
                        }
                    }
                    slice += taken;
                }
            }
        }

        /// A scale group as codes.
        $(#[target_feature(enable = $feature)])?
        fn decode_group(scale_group: &PackedGroup, codes: &mut GroupCodes) {
            let groups = scale_group.packing.groups();
            for (n, bundle) in scale_group.bundles().enumerate() {
                if groups == 1 {
                    decode_bundle(bundle, &mut codes[n..], QUADS);
                } else {
                    let mut lines = [Line([0; 64]); PERIOD];
                    decode_bundle(bundle, &mut lines, 1);
                    generic_trellis::spread(&lines, groups, n * groups, codes);
                }
            }
        }

        /// A block is decoded once for all slices, and its codes are multiplied as planes of eight bits, row tile by row tile.
        ///
        /// Each scale group's share is added to the sums in turn, slice by slice, however many are taken at once: the
        /// sums have the same bits.
        $(#[target_feature(enable = $feature)])?
        fn trellis_by_blocks(
            term: &PackedTrellis,
            i: usize,
            blocks: Range<usize>,
            x: QuantizedRows,
            sums: &mut [RowSums],
        ) {
            // Whole vectors, so that the slices of one come one after another.
            let vectors_at_once = DIGITS_AT_ONCE / x.slices_per_row();
            let tiles = sums.len() / x.batch();
            let mut codes = [[Line([0; 64]); GROUP_LINES]; MOST_GROUPS];
            for j in blocks {
                let mut places = [(0, 0.0); MOST_GROUPS];
                let mut count = 0;
                for (first, scale_group) in term.block_groups(term.layout().block_at(i, j)) {
                    decode_group(&scale_group, &mut codes[count]);
                    places[count] = (first, scale_group.scale);
                    count += 1;
                }
                for (n, sums) in sums.chunks_mut(vectors_at_once * tiles).enumerate() {
                    let first = n * vectors_at_once;
                    let x = x.part(first..first + sums.len() / tiles);
                    let scale_groups = DecodedStrips::new(&codes[..count], &places, x, j, BIAS - BYTE_BIAS);
                    for tile in 0..tiles {
                        multiply_tile(&scale_groups, tile, sums, tiles);
                    }
                }
            }
        }

        /// A scale group's coefficients.
        $(#[target_feature(enable = $feature)])?
        fn trellis_rows(scale_group: &PackedGroup, rows: &mut GroupRows) {
            let mut codes = [Line([0; 64]); GROUP_LINES];
            decode_group(scale_group, &mut codes);
            generic_trellis::rows_of_codes(scale_group, &codes, rows);
        }

        /// PackedGroup by scale group: decode it, sum its columns in the order of its codes.
        $(#[target_feature(enable = $feature)])?
        fn trellis_transposed(term: &PackedTrellis, block: Block, g: Input, acc: &mut [f32]) {
            if acc.len() > generic::FEW_VECTORS * block.width {
                trellis_transposed_by_rows(term, block, g, acc);
                return;
            }
            let packing = Packing::new(block.height);
            // Each row's weight at its place in the codes, which all scale groups have alike.
            let mut weights = [[[0f32; 64]; PERIOD]; generic::FEW_VECTORS];
            for (vector, weights) in weights.iter_mut().enumerate().take(acc.len() / block.width) {
                let g = g.vector(vector, block.height);
                for (tile, weights) in weights.iter_mut().enumerate().take(packing.tiles()) {
                    for (lane, weights) in weights.chunks_exact_mut(QUAD).enumerate() {
                        if let Some(g) = g.get(packing.row(tile, lane)) {
                            weights.fill(*g);
                        }
                    }
                }
            }
            let mut codes = [Line([0; 64]); GROUP_LINES];
            for (first, scale_group) in term.block_groups(block) {
                decode_group(&scale_group, &mut codes);
                for (acc, weights) in acc.chunks_exact_mut(block.width).zip(&weights) {
                    let mut sums = [[0f32; 64]; QUADS];
                    for (codes, weights) in codes.chunks_exact(QUADS).zip(&weights[..packing.tiles()]) {
                        let codes = codes.iter().map(|line| &line.0);
                        generic::add_rows::<$fma>(codes, 1, BIAS, weights, &mut sums);
                    }
                    generic::add_column_sums(&sums, scale_group.scale, &mut acc[first..][..scale_group.width]);
                }
            }
        }

        /// PackedGroup by scale group: decode it, add multiples of its rows for each vector.
        $(#[target_feature(enable = $feature)])?
        fn trellis_transposed_by_rows(term: &PackedTrellis, block: Block, g: Input, acc: &mut [f32]) {
            let mut rows = [[0.0; GROUP_COLS]; EDGE];
            for (first, scale_group) in term.block_groups(block) {
                trellis_rows(&scale_group, &mut rows);
                for (vector, acc) in acc.chunks_exact_mut(block.width).enumerate() {
                    let acc = &mut acc[first..][..scale_group.width];
                    for (g, row) in g.vector(vector, block.height).iter().zip(&rows) {
                        for (acc, coefficient) in acc.iter_mut().zip(row) {
                            *acc = generic::multiply_add::<$fma>(*g, *coefficient, *acc);
                        }
                    }
                }
            }
        }
    };
}
pub(super) use walks;

/// `multiply_tile` of a level that has no faster way than `dot_row_tile`.
macro_rules! multiplies_decoded {
    ($($feature:literal)?) => {
        /// Adds the products of one tile of decoded scale groups with all their slices to the vectors' sums, `stride` apart.
        $(#[target_feature(enable = $feature)])?
        fn multiply_tile(scale_groups: &DecodedStrips, tile: usize, sums: &mut [RowSums], stride: usize) {
            let x = scale_groups.x;
            let mut dots = [RowDots::ZERO; DIGITS_AT_ONCE];
            for (codes, slices) in scale_groups.codes.iter().zip(&scale_groups.slices) {
                let lines = &codes[tile * QUADS..][..QUADS];
                let mut taken = 0;
                while taken < x.slices() {
                    let values = &slices.values[taken * x.stride()..];
                    taken += dot_row_tile(lines, 8, values, x.stride(), x.slices() - taken, &mut dots[taken..]);
                }
                for (slice, dots) in dots[..x.slices()].iter().enumerate() {
                    let sums = &mut sums[slice / x.slices_per_row() * stride + tile];
                    add_dots(dots, slices.biases[slice], slices.factors[slice], sums);
                }
            }
        }

        /// `sums += (dots - bias) * factor`, in this order of operations on every level.
        ///
        /// Not inlined: over the slices around it the optimiser would gather.
        #[inline(never)]
        $(#[target_feature(enable = $feature)])?
        fn add_dots(dots: &RowDots, bias: i32, factor: f32, sums: &mut RowSums) {
            for (sum, dot) in sums.0.iter_mut().zip(&dots.0) {
                *sum += (dot - bias) as f32 * factor;
            }
        }
    };
}
pub(super) use multiplies_decoded;
