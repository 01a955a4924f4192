//! The walks over a block row that all levels share. A level brings
//!
//! - `dot_row_tile(lines, planes, values, stride, left, dots)`: the integer products of one row tile's lines (see
//!   [`planes`](crate::cpu::packed::planes)) with up to `left` digits, `stride` apart; it says how many it took;
//! - `BYTE_BIAS`, what `dot_row_tile` takes away from codes of eight bits: 128 where it multiplies signed bytes, else 0;
//! - `decode_bundle(bundle, codes, stride)`: one register's columns of a trellis as 8-bit codes (see
//!   [`trellis`](super::trellis));
//! - `MAX_VECTORS`, the most digits that `dot_row_tile` takes;
//! - `planes`, which may be `planes_by_blocks`, and `trellis`, which may be `trellis_by_blocks`;
//! - `multiply_tile(strips, tile, sums, stride)`, which adds the products of one tile of decoded strips with all their digits:
//!   a level's own, or that of [`multiplies_decoded`].

macro_rules! walks {
    (fma: $fma:literal $(, $feature:literal)?) => {
        use super::super::trellis::{DIGITS_AT_ONCE, DecodedStrips, MOST_STRIPS, StripRows};
        use super::super::{EDGE, RowDots, RowSums};
        use crate::codec::term::trellis::STRIP;
        use crate::cpu::activations::Batch;
        use crate::cpu::packed::trellis::{BIAS, PERIOD, Packing, STRIP_LINES, Strip, StripCodes, TrellisStrips};
        use crate::cpu::packed::planes::{GROUP, GROUPS, Line, TILE_COLS, TILE_ROWS};
        use std::ops::Range;

        /// Block by block: integer products, then one multiple of them.
        $(#[target_feature(enable = $feature)])?
        fn planes_by_blocks(
            tiles: &PlaneTiles,
            i: usize,
            row_tile: usize,
            x: Batch,
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
                let mut digit = 0;
                while digit < x.digits() {
                    let left = x.digits() - digit;
                    let taken = dot_row_tile(lines, planes, x.values(digit, j, 0), x.stride(), left, &mut dots);
                    for (dots, digit) in dots[..taken].iter().zip(digit..) {
                        let (scale, sum) = (x.scale(digit, j), x.sum(digit, j));
                        let sums = &mut sums[digit / x.per_vector()];
                        for lane in 0..TILE_ROWS {
                            let level_sum = (2 * dots.0[lane] + offset * sum) as f32;
                            sums.0[lane] += level_sum * (half_steps[lane] * scale);
                        }
                    }
                    digit += taken;
                }
            }
        }

        /// A strip as codes.
        $(#[target_feature(enable = $feature)])?
        fn decode_strip(strip: &Strip, codes: &mut StripCodes) {
            let groups = strip.packing.groups();
            for (n, bundle) in strip.bundles().enumerate() {
                if groups == 1 {
                    decode_bundle(bundle, &mut codes[n..], GROUPS);
                } else {
                    let mut lines = [Line([0; 64]); PERIOD];
                    decode_bundle(bundle, &mut lines, 1);
                    generic_trellis::spread(&lines, groups, n * groups, codes);
                }
            }
        }

        /// A block is decoded once for all digits, and its codes are multiplied as planes of eight bits, row tile by row tile.
        ///
        /// Each strip's share is added to the sums in turn, digit by digit, however many are taken at once: the
        /// sums have the same bits.
        $(#[target_feature(enable = $feature)])?
        fn trellis_by_blocks(
            term: &TrellisStrips,
            i: usize,
            blocks: Range<usize>,
            x: Batch,
            sums: &mut [RowSums],
        ) {
            // Whole vectors, so that the digits of one come one after another.
            let vectors_at_once = DIGITS_AT_ONCE / x.per_vector();
            let tiles = sums.len() / x.vectors();
            let mut codes = [[Line([0; 64]); STRIP_LINES]; MOST_STRIPS];
            for j in blocks {
                let mut places = [(0, 0.0); MOST_STRIPS];
                let mut count = 0;
                for (first, strip) in term.block_strips(term.layout().block_at(i, j)) {
                    decode_strip(&strip, &mut codes[count]);
                    places[count] = (first, strip.scale);
                    count += 1;
                }
                for (n, sums) in sums.chunks_mut(vectors_at_once * tiles).enumerate() {
                    let first = n * vectors_at_once;
                    let x = x.part(first..first + sums.len() / tiles);
                    let strips = DecodedStrips::new(&codes[..count], &places, x, j, BIAS - BYTE_BIAS);
                    for tile in 0..tiles {
                        multiply_tile(&strips, tile, sums, tiles);
                    }
                }
            }
        }

        /// A strip's coefficients.
        $(#[target_feature(enable = $feature)])?
        fn trellis_rows(strip: &Strip, rows: &mut StripRows) {
            let mut codes = [Line([0; 64]); STRIP_LINES];
            decode_strip(strip, &mut codes);
            generic_trellis::rows_of_codes(strip, &codes, rows);
        }

        /// Strip by strip: decode it, sum its columns in the order of its codes.
        $(#[target_feature(enable = $feature)])?
        fn trellis_transposed(term: &TrellisStrips, block: Block, g: Input, acc: &mut [f32]) {
            if acc.len() > generic::FEW_VECTORS * block.width {
                trellis_transposed_by_rows(term, block, g, acc);
                return;
            }
            let packing = Packing::new(block.height);
            // Each row's weight at its place in the codes, which all strips have alike.
            let mut weights = [[[0f32; 64]; PERIOD]; generic::FEW_VECTORS];
            for (vector, weights) in weights.iter_mut().enumerate().take(acc.len() / block.width) {
                let g = g.vector(vector, block.height);
                for (tile, weights) in weights.iter_mut().enumerate().take(packing.tiles()) {
                    for (lane, weights) in weights.chunks_exact_mut(GROUP).enumerate() {
                        if let Some(g) = g.get(packing.row(tile, lane)) {
                            weights.fill(*g);
                        }
                    }
                }
            }
            let mut codes = [Line([0; 64]); STRIP_LINES];
            for (first, strip) in term.block_strips(block) {
                decode_strip(&strip, &mut codes);
                for (acc, weights) in acc.chunks_exact_mut(block.width).zip(&weights) {
                    let mut sums = [[0f32; 64]; GROUPS];
                    for (codes, weights) in codes.chunks_exact(GROUPS).zip(&weights[..packing.tiles()]) {
                        let codes = codes.iter().map(|line| &line.0);
                        generic::add_rows::<$fma>(codes, 1, BIAS, weights, &mut sums);
                    }
                    generic::add_column_sums(&sums, strip.scale, &mut acc[first..][..strip.width]);
                }
            }
        }

        /// Strip by strip: decode it, add multiples of its rows for each vector.
        $(#[target_feature(enable = $feature)])?
        fn trellis_transposed_by_rows(term: &TrellisStrips, block: Block, g: Input, acc: &mut [f32]) {
            let mut rows = [[0.0; STRIP]; EDGE];
            for (first, strip) in term.block_strips(block) {
                trellis_rows(&strip, &mut rows);
                for (vector, acc) in acc.chunks_exact_mut(block.width).enumerate() {
                    let acc = &mut acc[first..][..strip.width];
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
        /// Adds the products of one tile of decoded strips with all their digits to the vectors' sums, `stride` apart.
        $(#[target_feature(enable = $feature)])?
        fn multiply_tile(strips: &DecodedStrips, tile: usize, sums: &mut [RowSums], stride: usize) {
            let x = strips.x;
            let mut dots = [RowDots::ZERO; DIGITS_AT_ONCE];
            for (codes, digits) in strips.codes.iter().zip(&strips.digits) {
                let lines = &codes[tile * GROUPS..][..GROUPS];
                let mut taken = 0;
                while taken < x.digits() {
                    let values = &digits.values[taken * x.stride()..];
                    taken += dot_row_tile(lines, 8, values, x.stride(), x.digits() - taken, &mut dots[taken..]);
                }
                for (digit, dots) in dots[..x.digits()].iter().enumerate() {
                    let sums = &mut sums[digit / x.per_vector() * stride + tile];
                    add_dots(dots, digits.biases[digit], digits.factors[digit], sums);
                }
            }
        }

        /// `sums += (dots - bias) * factor`, in this order of operations on every level.
        ///
        /// Not inlined: over the digits around it the optimiser would gather.
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
