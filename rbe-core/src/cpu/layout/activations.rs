//! Activations for integer dot products: each block of each vector as signed bytes times a scale.
//!
//! ```text
//!     x_c  =  s_1 d_1c + s_2 d_2c + s_3 d_3c,    d in -127..=127
//! ```
//!
//! One digit (8 bits) is what Candle's and llama.cpp's quantised products use. Each further digit holds what the
//! one before lost, 254 times finer: three give `|error| <= max|x| / 16 million`, F32's own resolution, and the
//! sums over a block stay exact integers. To the kernel a digit is one more vector.

use crate::codec::Layout;
use crate::codec::sizes::elements;
use crate::cpu::tiles::TILE_COLS;
use std::ops::Range;

/// Bytes of a line of the processor's caches.
const CACHE_LINE: usize = 64;

/// How activations enter the product with a planes term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Three signed bytes: F32's own resolution.
    #[default]
    Exact,
    /// One signed byte, as in Candle's quantised products; three times less arithmetic.
    Int8,
}

/// Input vectors in digits.
#[derive(Debug, Default)]
pub(in crate::cpu) struct Activations {
    /// Digits of each vector.
    pub digits: usize,
    /// Bytes of one digit of one vector: every block filled up to whole tiles, and room to the next.
    pub stride: usize,
    /// Where each block begins in it.
    pub starts: Vec<usize>,
    /// `batch x digits x stride`.
    pub values: Vec<i8>,
    /// `s` of each block: `batch x digits x blocks`.
    pub scales: Vec<f32>,
    /// Sum of each block's digits, likewise.
    pub sums: Vec<i32>,
    /// Sum of the digits of each tile of [`TILE_COLS`] columns: `batch x digits x tiles`.
    pub tile_sums: Vec<i32>,
}

/// One digit of one block of one vector, to be written.
pub(in crate::cpu) struct Digit<'a> {
    pub values: &'a mut [i8],
    pub scale: &'a mut f32,
    pub sum: &'a mut i32,
    pub tile_sums: &'a mut [i32],
}

impl Activations {
    /// Makes room for a batch of `batch` inputs of a matrix; nothing is allocated when there was room before.
    pub(in crate::cpu) fn prepare(&mut self, layout: Layout, batch: usize, precision: Precision) {
        self.digits = match precision {
            Precision::Int8 => 1,
            Precision::Exact => 3,
        };
        self.starts.clear();
        self.stride = 0;
        for j in 0..layout.block_cols() {
            self.starts.push(self.stride);
            self.stride += layout.col_range(j).len().next_multiple_of(TILE_COLS);
        }
        // An odd number of cache lines: a power of two would have all vectors' bytes in one set of the cache.
        self.stride = (self.stride.div_ceil(CACHE_LINE) | 1) * CACHE_LINE;
        let of_digits = |each: usize| elements(&[batch, self.digits, each]);
        let (values, blocks, tiles) =
            (of_digits(self.stride), of_digits(self.starts.len()), of_digits(self.tiles()));
        self.values.resize(values, 0);
        self.scales.resize(blocks, 0.0);
        self.sums.resize(blocks, 0);
        self.tile_sums.resize(tiles, 0);
    }

    /// Tiles of one digit of one vector.
    pub(in crate::cpu) fn tiles(&self) -> usize {
        self.stride / TILE_COLS
    }

    /// The digits of some vectors.
    pub(in crate::cpu) fn batch(&self, vectors: Range<usize>) -> Batch<'_> {
        assert!(self.values.len() >= vectors.end * self.digits * self.stride);
        Batch { all: self, first: vectors.start * self.digits, len: vectors.len() }
    }
}

/// The digits of neighbouring vectors, as products read them: counted from 0, those of a vector one after another.
#[derive(Clone, Copy, Debug)]
pub(in crate::cpu) struct Batch<'a> {
    all: &'a Activations,
    /// The first of all digits that is the batch's.
    first: usize,
    len: usize,
}

impl<'a> Batch<'a> {
    /// How many vectors they are.
    pub(in crate::cpu) fn len(self) -> usize {
        self.len
    }

    /// Digits of each vector.
    #[inline(always)]
    pub(in crate::cpu) fn per_vector(self) -> usize {
        self.all.digits
    }

    /// Digits of all vectors.
    #[inline(always)]
    pub(in crate::cpu) fn digits(self) -> usize {
        self.len * self.all.digits
    }

    /// Distance of two digits' values.
    #[inline(always)]
    pub(in crate::cpu) fn stride(self) -> usize {
        self.all.stride
    }

    /// The batch of some of these vectors.
    pub(in crate::cpu) fn part(self, vectors: Range<usize>) -> Self {
        let before = self.first / self.all.digits;
        self.all.batch(before + vectors.start..before + vectors.end)
    }

    /// A digit's values from column `col` of block `j` on, the other digits' after them.
    #[inline(always)]
    pub(in crate::cpu) fn values(self, digit: usize, j: usize, col: usize) -> &'a [i8] {
        &self.all.values[(self.first + digit) * self.all.stride + self.all.starts[j] + col..]
    }

    /// `s` of block `j`.
    #[inline(always)]
    pub(in crate::cpu) fn scale(self, digit: usize, j: usize) -> f32 {
        self.all.scales[(self.first + digit) * self.all.starts.len() + j]
    }

    /// The sum of a digit's values in block `j`.
    #[inline(always)]
    pub(in crate::cpu) fn sum(self, digit: usize, j: usize) -> i32 {
        self.all.sums[(self.first + digit) * self.all.starts.len() + j]
    }

    /// The sum of those of the tile that begins with column `col` of block `j`.
    #[inline(always)]
    pub(in crate::cpu) fn tile_sum(self, digit: usize, j: usize, col: usize) -> i32 {
        self.all.tile_sums[(self.first + digit) * self.all.tiles() + (self.all.starts[j] + col) / TILE_COLS]
    }
}
