//! Activations for integer dot products: each block of each vector as signed bytes times a scale.
//!
//! ```text
//!     x_c  =  s_1 d_1c + s_2 d_2c + s_3 d_3c,    d in -127..=127
//! ```
//!
//! Two slices of a vector are one integer of 16 bits, `254 d_1 + d_2` times `s_2`: products with planes take them so.
//!
//! One slice (8 bits, as in Ozaki's scheme) is what Candle's and llama.cpp's quantised products use. Each further slice holds what the
//! one before lost, 254 times finer: three give `|error| <= max|x| / 16 million`, F32's own resolution, and the
//! sums over a block stay exact integers. To the kernel a slice is one more vector.
//!
//! What that loses of a product: signs and a DCT leave coefficients near a Gaussian, the largest of whose 256 is three deviations
//! in the mean, so that rounding to steps of `max / 127` loses `3 / (127 sqrt 12) = 0.0068` of them in the root mean square, of 32
//! less (0.0052). It is independent of the weight's own error `e`, and the two add in squares: `e` grows by `(0.0068 / e)^2 / 2`.
//! That is [2.6 %](COARSE) where `e` is 0.03 and 0.5 % where it is 0.07, as at four bits. Two slices lose 0.000027, three 1e-7.
//!
//! Of many vectors a product of several digits and terms may be done otherwise: the matrix is decoded, its terms added up, and multiplied once, as
//! floats in place of three slices, as integers of 16 bits in place of less (`product::panels`).

use crate::codec::Cut;
use crate::codec::sizes::elements;
use crate::cpu::layout::planes::TILE_COLS;
use crate::cpu::pool::Shared;
use std::ops::Range;

/// Bytes of a line of the processor's caches.
const CACHE_LINE: usize = 64;

/// The relative error of a matrix from which on one slice is enough: the error of its products grows by 2.6 % at most.
const COARSE: f32 = 0.03;

/// The units of a slice that one of the slice before is: twice the largest digit.
pub(in crate::cpu) const FINER: i32 = 254;

/// How activations enter products with planes and trellises. (Sparse and smooth terms, transposed products and gradients take
/// them in F32.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// What the weight deserves: one signed byte where its own error dwarfs what that loses, which then adds 2.6 % to the error
    /// at most, else two. That is one at up to five bits a weight. The error is the one that its payload records; where none is
    /// recorded, and where no random signs and DCT spread the activations, it takes two.
    #[default]
    Auto,
    /// One signed byte, as in Candle's quantised products: 0.0068 of the product are lost where signs and a DCT spread the
    /// activations, and up to 0.036 where they do not.
    Int8,
    /// Two signed bytes: less than a thousandth of the product is lost whatever the activations, and 0.000027 as a rule. Of many vectors, where
    /// that takes less time, activations and the sum of all terms are taken as integers of 16 bits: 0.00007 as a rule.
    Int16,
    /// Three signed bytes: F32's own resolution.
    Exact,
}

impl Precision {
    /// Slices for a matrix of this relative error, where it is known and the input is spread.
    pub(in crate::cpu) fn slices(self, relative_error: Option<f32>) -> usize {
        match (self, relative_error) {
            (Self::Auto, Some(error)) if error >= COARSE => 1,
            (Self::Int8, _) => 1,
            (Self::Auto | Self::Int16, _) => 2,
            (Self::Exact, _) => 3,
        }
    }
}

/// Input vectors in slices.
#[derive(Debug, Default)]
pub(in crate::cpu) struct Activations {
    /// Slices of each vector.
    pub slices: usize,
    /// Bytes of one slice of one vector: every block filled up to whole tiles, and room to the next.
    pub stride: usize,
    /// Where each block begins in it.
    pub starts: Vec<usize>,
    /// `batch x slices x stride`.
    pub values: Vec<i8>,
    /// `s` of each block: `batch x slices x blocks`.
    pub scales: Vec<f32>,
    /// Of a single vector in one slice or two the integers `d_1` or `254 d_1 + d_2` of each four columns `a b c d` in the order `a c b d`, at
    /// levels that read them; else nothing.
    pub pairs: Vec<i16>,
    /// Sum of each block's slices, likewise.
    pub sums: Vec<i32>,
    /// Sum of the slices of each tile of [`TILE_COLS`] columns: `batch x slices x tiles`.
    pub tile_sums: Vec<i32>,
}

/// One slice of one block of one vector, to be written.
pub(in crate::cpu) struct Int8Slice<'a> {
    pub values: &'a mut [i8],
    pub scale: &'a mut f32,
    pub sum: &'a mut i32,
    pub tile_sums: &'a mut [i32],
}

impl Activations {
    /// Makes room for `batch` rows that are cut so; nothing is allocated when there was room before.
    pub(in crate::cpu) fn prepare(&mut self, cut: &Cut, batch: usize, slices: usize, paired: bool) {
        self.slices = slices;
        self.starts.clear();
        self.stride = 0;
        for block in cut.iter() {
            self.starts.push(self.stride);
            self.stride += block.len().next_multiple_of(TILE_COLS);
        }
        // An odd number of cache lines: a power of two would have all vectors' bytes in one set of the cache.
        self.stride = (self.stride.div_ceil(CACHE_LINE) | 1) * CACHE_LINE;
        let of_slices = |each: usize| elements(&[batch, self.slices, each]);
        let (values, blocks, tiles) =
            (of_slices(self.stride), of_slices(self.starts.len()), of_slices(self.tiles()));
        self.values.resize(values, 0);
        self.pairs.resize(if paired && batch == 1 && slices <= 2 { self.stride } else { 0 }, 0);
        self.scales.resize(blocks, 0.0);
        self.sums.resize(blocks, 0);
        self.tile_sums.resize(tiles, 0);
    }

    /// Where every block's slices are written, on several threads.
    pub(in crate::cpu) fn slots(&mut self) -> Slots<'_> {
        Slots {
            slices: self.slices,
            stride: self.stride,
            tiles: self.tiles(),
            values: Shared::new(&mut self.values),
            pairs: Shared::new(&mut self.pairs),
            scales: Shared::new(&mut self.scales),
            sums: Shared::new(&mut self.sums),
            tile_sums: Shared::new(&mut self.tile_sums),
            starts: &self.starts,
        }
    }

    /// Tiles of one slice of one vector.
    fn tiles(&self) -> usize {
        self.stride / TILE_COLS
    }

    /// The first `taken` slices of some vectors: all of them, or one.
    pub(in crate::cpu) fn rows(&self, batch: Range<usize>, taken: usize) -> QuantizedRows<'_> {
        assert!(self.values.len() >= batch.end * self.slices * self.stride);
        assert!(taken == self.slices || taken == 1, "{taken} slices of {}", self.slices);
        let step = self.slices / taken;
        QuantizedRows { all: self, first: batch.start * self.slices, batch: batch.len(), taken, step }
    }
}

/// The slices of all blocks of all rows, to be written.
pub(in crate::cpu) struct Slots<'a> {
    slices: usize,
    stride: usize,
    tiles: usize,
    starts: &'a [usize],
    values: Shared<'a, i8>,
    pairs: Shared<'a, i16>,
    scales: Shared<'a, f32>,
    sums: Shared<'a, i32>,
    tile_sums: Shared<'a, i32>,
}

impl Slots<'_> {
    /// Whether [pairs](Activations::pairs) are wanted.
    pub(in crate::cpu) fn are_paired(&self) -> bool {
        self.pairs.len() > 0
    }

    /// Has the pairs of block `j` made of its one slice or two, the one vector's.
    ///
    /// # Safety
    /// Nobody else has those of the same block.
    pub(in crate::cpu) unsafe fn pair(&self, j: usize, pair: impl FnOnce(&[i8], Option<&[i8]>, &mut [i16])) {
        let (start, end) = (self.starts[j], self.starts.get(j + 1).copied().unwrap_or(self.stride));
        // SAFETY: each block has a place of its own, and the caller alone has it.
        unsafe {
            let slice =
                |slice: usize| &*self.values.part(slice * self.stride + start..slice * self.stride + end);
            pair(slice(0), (self.slices > 1).then(|| slice(1)), self.pairs.part(start..end));
        }
    }

    /// The slices of block `j` of a row.
    ///
    /// # Safety
    /// Nobody else has those of the same block of the same row.
    pub(in crate::cpu) unsafe fn of(&self, row: usize, j: usize) -> impl Iterator<Item = Int8Slice<'_>> {
        let (start, end) = (self.starts[j], self.starts.get(j + 1).copied().unwrap_or(self.stride));
        (row * self.slices..(row + 1) * self.slices).map(move |slice| {
            let index = slice * self.starts.len() + j;
            let (values, tiles) = (slice * self.stride, slice * self.tiles);
            // SAFETY: every slice of a block of a row has a place of its own in every array, and the caller alone has it.
            unsafe {
                Int8Slice {
                    values: self.values.part(values + start..values + end),
                    scale: &mut self.scales.part(index..index + 1)[0],
                    sum: &mut self.sums.part(index..index + 1)[0],
                    tile_sums: self.tile_sums.part(tiles + start / TILE_COLS..tiles + end / TILE_COLS),
                }
            }
        })
    }
}

/// The slices of neighbouring vectors, as products read them: counted from 0, those of a vector one after another. A matrix that
/// takes one slice beside others that take more reads the first of each vector.
#[derive(Clone, Copy, Debug)]
pub(in crate::cpu) struct QuantizedRows<'a> {
    all: &'a Activations,
    /// The first of all slices that is the batch's.
    first: usize,
    batch: usize,
    /// Slices of each vector that are taken.
    taken: usize,
    /// From one that is taken to the next.
    step: usize,
}

impl<'a> QuantizedRows<'a> {
    pub(in crate::cpu) fn batch(self) -> usize {
        self.batch
    }

    /// Digits of each vector.
    #[inline(always)]
    pub(in crate::cpu) fn slices_per_row(self) -> usize {
        self.taken
    }

    /// Digits of all vectors.
    #[inline(always)]
    pub(in crate::cpu) fn slices(self) -> usize {
        self.batch * self.taken
    }

    /// Distance of two slices' values.
    #[inline(always)]
    pub(in crate::cpu) fn stride(self) -> usize {
        self.step * self.all.stride
    }

    /// The batch of some of these vectors.
    pub(in crate::cpu) fn part(self, batch: Range<usize>) -> Self {
        let before = self.first / self.all.slices;
        self.all.rows(before + batch.start..before + batch.end, self.taken)
    }

    /// A slice's place among all.
    #[inline(always)]
    fn place(self, slice: usize) -> usize {
        self.first + slice * self.step
    }

    /// A slice's values from column `col` of block `j` on, the other slices' after them.
    #[inline(always)]
    pub(in crate::cpu) fn values(self, slice: usize, j: usize, col: usize) -> &'a [i8] {
        &self.all.values[self.place(slice) * self.all.stride + self.all.starts[j] + col..]
    }

    /// The [pairs](Activations::pairs) of block `j` of the one vector, where there are such.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    #[inline(always)]
    pub(in crate::cpu) fn pairs(self, j: usize) -> Option<&'a [i16]> {
        (self.taken == self.all.slices).then_some(self.all.pairs.get(self.all.starts[j]..)?)
    }

    /// The sum of the integers that a vector's two slices are in block `j`; their scale is the second's.
    #[inline(always)]
    pub(in crate::cpu) fn sum_of_two(self, vector: usize, j: usize) -> i32 {
        FINER * self.sum(2 * vector, j) + self.sum(2 * vector + 1, j)
    }

    /// `s` of block `j`.
    #[inline(always)]
    pub(in crate::cpu) fn scale(self, slice: usize, j: usize) -> f32 {
        self.all.scales[self.place(slice) * self.all.starts.len() + j]
    }

    /// The sum of a slice's values in block `j`.
    #[inline(always)]
    pub(in crate::cpu) fn sum(self, slice: usize, j: usize) -> i32 {
        self.all.sums[self.place(slice) * self.all.starts.len() + j]
    }

    /// The sum of those of the tile that begins with column `col` of block `j`.
    #[inline(always)]
    pub(in crate::cpu) fn tile_sum(self, slice: usize, j: usize, col: usize) -> i32 {
        self.all.tile_sums[self.place(slice) * self.all.tiles() + (self.all.starts[j] + col) / TILE_COLS]
    }
}
