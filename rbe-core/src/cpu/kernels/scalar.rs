//! Plain Rust: what every processor runs, and what the other levels are compared with.

mod level {
    use crate::cpu::layout::planes::unpack;

    super::super::table!(fma: false);
    super::super::walks!(fma: false);
    super::super::walk::multiplies_decoded!();

    use generic::{lanes_to_rows, rows_to_lanes};
    use generic_trellis::decode_bundle;
    use planes_by_blocks as planes;
    use trellis_by_blocks as trellis;

    /// Vectors from which on a sparse product is faster in lanes.
    const SPMM_MIN_BATCH: usize = 8;
    const MAX_VECTORS: usize = 1;
    /// Codes are multiplied as they are.
    const BYTE_BIAS: i32 = 0;

    fn sparse(term: &PackedSparse, block: Block, x: Input, acc: &mut [f32]) {
        generic::sparse::<false, false>(term, block, x, acc);
    }

    fn dot_row_tile(
        lines: &[Line],
        planes: u8,
        values: &[i8],
        _stride: usize,
        _left: usize,
        dots: &mut [RowDots],
    ) -> usize {
        let mut sums = [0; TILE_ROWS];
        for (tile, values) in lines.chunks_exact(usize::from(planes)).zip(values.chunks(TILE_COLS)) {
            let codes = unpack(tile, planes);
            for group in 0..QUADS {
                for (n, code) in codes[group].iter().enumerate() {
                    sums[n / QUAD] += i32::from(*code) * i32::from(values[group * QUAD + n % QUAD]);
                }
            }
        }
        dots[0].0 = sums;
        1
    }
}

pub(super) use level::TABLE;
