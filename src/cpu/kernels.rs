//! The inner loops: one block of one term against all tokens.
//!
//! Each loop is written once, for the compiler to vectorise, and compiled once per [`Level`]. A vector of
//! several tokens is a matrix `tokens x stride` of which the block sees a window.

// The calls below are unsafe only because a level's instructions must exist; `Kernels::new` sees to that.
#![allow(unsafe_code)]

use super::features::{self, Level};
use crate::codec::Block;
use crate::codec::term::{Planes, Sparse, Term};
use std::sync::OnceLock;

/// The window of a block into `tokens` input vectors.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    /// Begins at the block's first element of the first token.
    pub values: &'a [f32],
    /// Elements from one token to the next.
    pub stride: usize,
    /// Number of vectors.
    pub tokens: usize,
}

impl<'a> Input<'a> {
    /// The block's part of token `token`.
    #[inline(always)]
    fn token(self, token: usize, len: usize) -> &'a [f32] {
        &self.values[token * self.stride..][..len]
    }
}

/// `acc += S x` or `acc += S' g` for one block; `acc` is `tokens x height` or `tokens x width`.
type BlockProduct<T> = unsafe fn(term: &T, block: Block, input: Input, acc: &mut [f32]);

/// The inner loops of one level.
pub(super) struct Kernels {
    planes: BlockProduct<Planes>,
    planes_transposed: BlockProduct<Planes>,
    sparse: BlockProduct<Sparse>,
    sparse_transposed: BlockProduct<Sparse>,
}

impl Kernels {
    /// The kernels of the level in use.
    pub(super) fn get() -> &'static Self {
        static KERNELS: OnceLock<Kernels> = OnceLock::new();
        KERNELS.get_or_init(|| {
            let level = features::level();
            Self::new(level).unwrap_or_else(|| unreachable!("{level:?} was detected"))
        })
    }

    /// The kernels of a level, `None` where the processor lacks it.
    pub(super) fn new(level: Level) -> Option<Self> {
        features::levels().contains(&level).then_some(match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => avx512::KERNELS,
            _ => scalar::KERNELS,
        })
    }

    /// Adds `S x` of one spectral term and block to `acc` (`tokens x height`).
    pub(super) fn product(&self, term: &Term, block: Block, x: Input, acc: &mut [f32]) {
        // SAFETY: `new` made this table after finding the level's instructions on this processor.
        unsafe {
            match term {
                Term::Planes(planes) => (self.planes)(planes, block, x, acc),
                Term::Sparse(sparse) => (self.sparse)(sparse, block, x, acc),
                Term::Basis(_) => {}
            }
        }
    }

    /// Adds `S' g` of one spectral term and block to `acc` (`tokens x width`).
    pub(super) fn transposed_product(&self, term: &Term, block: Block, g: Input, acc: &mut [f32]) {
        // SAFETY: as above.
        unsafe {
            match term {
                Term::Planes(planes) => (self.planes_transposed)(planes, block, g, acc),
                Term::Sparse(sparse) => (self.sparse_transposed)(sparse, block, g, acc),
                Term::Basis(_) => {}
            }
        }
    }
}

/// Compiles the loops of [`body`] for one level.
macro_rules! level {
    ($name:ident, fma: $fma:literal $(, $feature:literal)?) => {
        mod $name {
            use super::*;
            pub(super) const KERNELS: Kernels =
                Kernels { planes, planes_transposed, sparse, sparse_transposed };

            $(#[target_feature(enable = $feature)])?
            fn planes(term: &Planes, block: Block, x: Input, acc: &mut [f32]) {
                body::planes::<$fma>(term, block, x, acc);
            }
            $(#[target_feature(enable = $feature)])?
            fn planes_transposed(term: &Planes, block: Block, g: Input, acc: &mut [f32]) {
                body::planes_transposed::<$fma>(term, block, g, acc);
            }
            $(#[target_feature(enable = $feature)])?
            fn sparse(term: &Sparse, block: Block, x: Input, acc: &mut [f32]) {
                body::sparse::<$fma>(term, block, x, acc, false);
            }
            $(#[target_feature(enable = $feature)])?
            fn sparse_transposed(term: &Sparse, block: Block, g: Input, acc: &mut [f32]) {
                body::sparse::<$fma>(term, block, g, acc, true);
            }
        }
    };
}

level!(scalar, fma: false);
#[cfg(target_arch = "x86_64")]
level!(avx2, fma: true, "avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
level!(avx512, fma: true, "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl");

/// The loops themselves. `FMA` says whether a fused multiply-add is one instruction (else it is a call).
mod body {
    use super::*;
    use crate::codec::term::planes::MAX_PLANES;

    /// Independent sums of a dot product: two AVX-512 registers, four of AVX2, enough to hide the latency.
    const LANES: usize = 32;
    /// The largest block edge.
    const EDGE: usize = 256;

    #[inline(always)]
    fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
        if FMA { a.mul_add(b, c) } else { a * b + c }
    }

    #[inline(always)]
    fn dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
        let (a_lanes, a_rest) = a.as_chunks::<LANES>();
        let (b_lanes, b_rest) = b.as_chunks::<LANES>();
        let mut sums = [0f32; LANES];
        for (a, b) in a_lanes.iter().zip(b_lanes) {
            for lane in 0..LANES {
                sums[lane] = multiply_add::<FMA>(a[lane], b[lane], sums[lane]);
            }
        }
        let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                sums[lane] += sums[lane + width];
            }
            width /= 2;
        }
        sums[0] + rest
    }

    /// Row by row: unpack the levels once, one dot product per token.
    #[inline(always)]
    pub(super) fn planes<const FMA: bool>(term: &Planes, block: Block, x: Input, acc: &mut [f32]) {
        let mut levels = [0f32; EDGE];
        let levels = &mut levels[..block.width];
        for row in 0..block.height {
            let factor = term.levels(block, row, MAX_PLANES, levels);
            for token in 0..x.tokens {
                let sum = dot::<FMA>(levels, x.token(token, block.width));
                acc[token * block.height + row] += factor * sum;
            }
        }
    }

    /// Row by row: unpack the levels once, add a multiple of them per token.
    #[inline(always)]
    pub(super) fn planes_transposed<const FMA: bool>(term: &Planes, block: Block, g: Input, acc: &mut [f32]) {
        let mut levels = [0f32; EDGE];
        let levels = &mut levels[..block.width];
        for row in 0..block.height {
            let factor = term.levels(block, row, MAX_PLANES, levels);
            for (token, acc) in acc.chunks_exact_mut(block.width).enumerate() {
                let g = g.token(token, block.height)[row] * factor;
                for (acc, level) in acc.iter_mut().zip(&*levels) {
                    *acc = multiply_add::<FMA>(g, *level, *acc);
                }
            }
        }
    }

    /// Tokens whose elements are brought side by side for a sparse term.
    const TILE: usize = 16;

    /// One token: each entry once. More: tiles of tokens in lanes, so that each entry is unpacked once for
    /// sixteen tokens and its multiply-add is a vector's.
    #[inline(always)]
    pub(super) fn sparse<const FMA: bool>(
        term: &Sparse,
        block: Block,
        input: Input,
        acc: &mut [f32],
        transposed: bool,
    ) {
        let (in_len, out_len) =
            if transposed { (block.height, block.width) } else { (block.width, block.height) };
        let place = |row, col| if transposed { (col, row) } else { (row, col) };
        if input.tokens == 1 {
            let x = input.token(0, in_len);
            term.for_each(block, 0..block.height, |row, col, value| {
                let (to, from) = place(row, col);
                acc[to] = multiply_add::<FMA>(value, x[from], acc[to]);
            });
            return;
        }
        let mut x = [[0f32; TILE]; EDGE];
        let mut sums = [[0f32; TILE]; EDGE];
        for first in (0..input.tokens).step_by(TILE) {
            let tokens = TILE.min(input.tokens - first);
            for lane in 0..tokens {
                for (x, value) in x.iter_mut().zip(input.token(first + lane, in_len)) {
                    x[lane] = *value;
                }
            }
            sums[..out_len].fill([0.0; TILE]);
            term.for_each(block, 0..block.height, |row, col, value| {
                let (to, from) = place(row, col);
                for lane in 0..TILE {
                    sums[to][lane] = multiply_add::<FMA>(value, x[from][lane], sums[to][lane]);
                }
            });
            for lane in 0..tokens {
                let acc = &mut acc[(first + lane) * out_len..][..out_len];
                acc.iter_mut().zip(&sums).for_each(|(acc, sums)| *acc += sums[lane]);
            }
        }
    }
}
