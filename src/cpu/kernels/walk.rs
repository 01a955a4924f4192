//! The walks over a block row that all levels share. A level brings
//!
//! - `dot_row_tile(lines, planes, values, stride, left, dots, dots_stride)`: the integer products of one row tile's lines
//!   (see [`tiles`](crate::cpu::tiles)) with up to `left` digits, `stride` apart; it says how many it took;
//! - `BYTE_BIAS`, what `dot_row_tile` takes away from codes of eight bits: 128 where it multiplies signed bytes, else 0;
//! - `decode_bundle(lines, code, packing, codes, stride)`: one register's columns of a trellis as 8-bit codes (see
//!   [`trellis`](super::trellis));
//! - `dot_strip`, which is `dot_decoded` or a faster way to the same for some strips;
//! - `MAX_VECTORS`, the most digits that `dot_row_tile` takes.

macro_rules! walks {
    (fma: $fma:literal $(, $feature:literal)?) => {
        use super::super::trellis::{StripDots, StripRows};
        use super::super::{EDGE, RowDots, RowSums};
        use crate::codec::term::trellis::STRIP;
        use crate::cpu::activations::Activations;
        use crate::cpu::strips::{BIAS, PERIOD, STRIP_LINES, Strip, StripCodes, TrellisStrips};
        use crate::cpu::tiles::{GROUPS, Line, TILE_ROWS};
        use std::ops::Range;

        /// Block by block: integer products, then one multiple of them.
        $(#[target_feature(enable = $feature)])?
        fn planes(
            tiles: &PlaneTiles,
            i: usize,
            row_tile: usize,
            x: &Activations,
            vectors: Range<usize>,
            sums: &mut [RowSums],
        ) {
            let layout = tiles.layout();
            let blocks = layout.block_cols();
            let digits = vectors.start * x.digits..vectors.end * x.digits;
            let mut dots = [RowDots::ZERO; MAX_VECTORS];
            for j in 0..blocks {
                let block = layout.block_at(i, j);
                let planes = tiles.planes(block);
                if planes == 0 {
                    continue;
                }
                let (lines, steps) = (tiles.row_tile(block, row_tile), tiles.steps(block, row_tile));
                let offset = 1 - (1i32 << planes) + if planes == 8 { 2 * BYTE_BIAS } else { 0 };
                let mut digit = digits.start;
                while digit < digits.end {
                    let values = &x.values[digit * x.stride + x.starts[j]..];
                    let left = digits.end - digit;
                    let taken = dot_row_tile(lines, planes, values, x.stride, left, &mut dots, 1);
                    for (dots, digit) in dots[..taken].iter().zip(digit..) {
                        let (scale, sum) = (x.scales[digit * blocks + j], x.sums[digit * blocks + j]);
                        let sums = &mut sums[digit / x.digits - vectors.start];
                        for lane in 0..TILE_ROWS {
                            let level_sum = (2 * dots.0[lane] + offset * sum) as f32;
                            sums.0[lane] += level_sum * (0.5 * steps[lane] * scale);
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
                    decode_bundle(bundle, strip.code, strip.packing, &mut codes[n..], GROUPS);
                } else {
                    let mut lines = [Line([0; 64]); PERIOD];
                    decode_bundle(bundle, strip.code, strip.packing, &mut lines, 1);
                    generic_trellis::spread(&lines, groups, n * groups, codes);
                }
            }
        }

        /// The integer products of a strip with the next digits, and how many digits it took. The first call decodes
        /// the strip into `codes`.
        $(#[target_feature(enable = $feature)])?
        fn dot_decoded(
            strip: &Strip,
            is_first: bool,
            codes: &mut StripCodes,
            values: &[i8],
            stride: usize,
            left: usize,
            dots: &mut [StripDots; MAX_VECTORS],
        ) -> usize {
            if is_first {
                decode_strip(strip, codes);
            }
            let mut taken = 0;
            for (tile, lines) in codes.chunks_exact(GROUPS).take(strip.packing.tiles()).enumerate() {
                let dots = &mut dots.as_flattened_mut()[tile..];
                taken = dot_row_tile(lines, 8, values, stride, left, dots, PERIOD);
            }
            taken
        }

        /// Strip by strip: decode it once, then as planes of eight bits for all vectors.
        $(#[target_feature(enable = $feature)])?
        fn trellis(
            term: &TrellisStrips,
            i: usize,
            blocks: Range<usize>,
            x: &Activations,
            vectors: Range<usize>,
            sums: &mut [RowSums],
        ) {
            let all_blocks = term.layout().block_cols();
            let digits = vectors.start * x.digits..vectors.end * x.digits;
            let tiles = sums.len() / vectors.len();
            let mut dots = [[RowDots::ZERO; PERIOD]; MAX_VECTORS];
            let mut codes = [Line([0; 64]); STRIP_LINES];
            for j in blocks {
                for (first, strip) in term.block_strips(i, j) {
                    let mut digit = digits.start;
                    while digit < digits.end {
                        let values = &x.values[digit * x.stride + x.starts[j] + first..];
                        let (is_first, left) = (digit == digits.start, digits.end - digit);
                        let taken =
                            dot_strip(&strip, is_first, &mut codes, values, x.stride, left, &mut dots);
                        for (n, dots) in dots[..taken].iter().enumerate() {
                            // 32 digits of at most 127: the sum fits.
                            let sum: i16 = values[n * x.stride..][..STRIP].iter().map(|x| i16::from(*x)).sum();
                            let bias = i32::from(sum) * (BIAS - BYTE_BIAS);
                            let factor = strip.scale * x.scales[(digit + n) * all_blocks + j];
                            let sums = &mut sums[((digit + n) / x.digits - vectors.start) * tiles..][..tiles];
                            let sums = RowSums::flatten_mut(sums);
                            for (sum, dot) in sums.iter_mut().zip(RowDots::flatten(dots)) {
                                *sum += (dot - bias) as f32 * factor;
                            }
                        }
                        digit += taken;
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

        /// Strip by strip: decode it, add multiples of its rows for each vector.
        $(#[target_feature(enable = $feature)])?
        fn trellis_transposed(term: &TrellisStrips, block: Block, g: Input, acc: &mut [f32]) {
            let edge = term.layout().block();
            let mut rows = [[0.0; STRIP]; EDGE];
            for (first, strip) in term.block_strips(block.row / edge, block.col / edge) {
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
