//! x86-64.

pub(super) mod avx2;
pub(super) mod avx512;

/// The walk over a block row's tiles that both levels share: for each block, up to [`MAX_VECTORS`] digits at a
/// time, integer dot products by `dot_row_tile`, then one multiple of them.
macro_rules! planes_walk {
    ($feature:literal, $dot_row_tile:ident) => {
        #[target_feature(enable = $feature)]
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
            let mut dots = [[0; TILE_ROWS]; MAX_VECTORS];
            for j in 0..blocks {
                let block = layout.block_at(i, j);
                let planes = tiles.planes(block);
                if planes == 0 {
                    continue;
                }
                let (lines, steps) = (tiles.row_tile(block, row_tile), tiles.steps(block, row_tile));
                let offset = 1 - (1i32 << planes);
                let mut digit = digits.start;
                while digit < digits.end {
                    let values = &x.values[digit * x.stride + x.starts[j]..];
                    let left = digits.end - digit;
                    let taken = $dot_row_tile(lines, planes, values, x.stride, left, &mut dots);
                    for (dots, digit) in dots[..taken].iter().zip(digit..) {
                        let (scale, sum) = (x.scales[digit * blocks + j], x.sums[digit * blocks + j]);
                        let sums = &mut sums[digit / x.digits - vectors.start];
                        for lane in 0..TILE_ROWS {
                            let level_sum = (2 * dots[lane] + offset * sum) as f32;
                            sums[lane] += level_sum * (0.5 * steps[lane] * scale);
                        }
                    }
                    digit += taken;
                }
            }
        }
    };
}
use planes_walk;

/// Calls `$f::<PLANES, VECTORS>` for run-time numbers of planes and the most vectors that fit.
macro_rules! dispatch {
    ($planes:expr, $vectors:expr, $f:ident $args:tt, $choices:tt) => {
        $crate::cpu::kernels::x86_64::dispatch!($planes, $vectors, $f $args, $choices, 1 2 3 4 5 6 7 8)
    };
    ($planes:expr, $vectors:expr, $f:ident $args:tt, $choices:tt, $($p:literal)*) => {
        match $planes {
            $($p => $crate::cpu::kernels::x86_64::dispatch_vectors!($p, $vectors, $f $args, $choices),)*
            other => unreachable!("{other} planes"),
        }
    };
}
use dispatch;

/// The second half of [`dispatch`].
macro_rules! dispatch_vectors {
    ($p:literal, $vectors:expr, $f:ident $args:tt, [$($v:literal),*]) => {
        match $vectors {
            $(n if n >= $v => $f::<$p, $v> $args,)*
            _ => unreachable!("no vectors"),
        }
    };
}
use dispatch_vectors;

/// Evaluates `$body` for every column group, with the constant `$group`: loops over registers must not be left to
/// the optimiser's budget.
macro_rules! each_group {
    (|$group:ident| $body:expr) => {{
        $crate::cpu::kernels::x86_64::each_group!(@one $group, $body; 0 1 2 3 4 5 6 7)
    }};
    (@one $group:ident, $body:expr; $($n:literal)*) => {
        [$({
            const $group: usize = $n;
            $body
        }),*]
    };
}
use each_group;
