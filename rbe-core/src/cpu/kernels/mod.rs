//! The inner loops, one set per [`Level`], behind one table.
//!
//! Integer loops ([`planes`](Kernels::planes)) are written by hand for each level and give the same bits on
//! all; the others are written once in [`generic`] and compiled for each level.

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod generic;
mod norm;
mod scalar;
// An architecture without kernels of its own needs a part of these two only.
#[cfg_attr(not(any(target_arch = "aarch64", target_arch = "x86_64")), allow(dead_code))]
mod trellis;
#[cfg_attr(not(any(target_arch = "aarch64", target_arch = "x86_64")), allow(unused_macros, unused_imports))]
mod unroll;
mod walk;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use self::trellis::GroupRows;
use super::activations::QuantizedRows;
use super::features::{self, Level};
use super::layout::planes::{PackedPlanes, TILE_ROWS};
use super::layout::sparse::PackedSparse;
use super::layout::trellis::{PackedGroup, PackedTrellis};
use super::spmm::SortedEntries;
use super::transform::{FourLanes, LANES, Lanes};
use crate::codec::Block;
use std::ops::Range;
use std::sync::OnceLock;
use walk::walks;

/// The window of a block into F32 vectors.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    /// Begins at the block's first element of the first vector.
    pub values: &'a [f32],
    /// Elements from one vector to the next.
    pub stride: usize,
}

impl<'a> Input<'a> {
    /// The block's part of a vector.
    #[inline(always)]
    fn vector(self, index: usize, len: usize) -> &'a [f32] {
        &self.values[index * self.stride..][..len]
    }
}

/// Where an entry of a block goes to and where it comes from: its row and column, or the other way around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub to: u8,
    pub from: u8,
}

impl Place {
    pub(super) fn new(row: u8, col: u8, transposed: bool) -> Self {
        if transposed { Self { to: col, from: row } } else { Self { to: row, from: col } }
    }
}

/// A block's part of vectors that lie in lanes, group after group of sixteen.
#[derive(Clone, Copy)]
pub(super) struct LaneInput<'a> {
    /// Begins at the block's first element of the first group.
    pub lanes: &'a [Lanes],
    /// Elements from one group to the next.
    pub stride: usize,
    /// Number of groups.
    pub groups: usize,
}

/// The longest segment of an axis: the largest block edge.
pub(super) const EDGE: usize = 256;

/// Sixteen results of each vector: rows of a row tile.
pub(super) type RowSums = Sixteen<f32>;
/// Sixteen integer products.
type RowDots = Sixteen<i32>;

/// A register's sixteen numbers.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Sixteen<T>(pub [T; TILE_ROWS]);

impl RowSums {
    pub(super) const ZERO: Self = Self([0.0; TILE_ROWS]);
}

impl RowDots {
    const ZERO: Self = Self([0; TILE_ROWS]);
}

type Norm = unsafe fn(&[f32], &[f32], &[f32], f32, bool, &mut [f32]);
type NormGradient = unsafe fn(&[f32], &[f32], &[f32], f32, bool, &mut [f32], &mut [f32], &mut [f32]);

/// The inner loops of one level. Unsafe to call where the level's instructions are missing.
pub(super) struct Table {
    /// `sums[v] += S_i x_v` for the rows of a row tile of block row `i` and the vectors `v` of a batch.
    planes: unsafe fn(&PackedPlanes, i: usize, row_tile: usize, QuantizedRows, &mut [RowSums]),
    /// `acc += S' g` for one block; `acc` is `batch x width`.
    planes_transposed: unsafe fn(&PackedPlanes, Block, Input, acc: &mut [f32]),
    /// Vectors from which on `spmm` takes less time than `sparse`, the way into lanes included.
    spmm_min_batch: usize,
    /// `acc += S x` for one block; `acc` is `batch x height`.
    sparse: unsafe fn(&PackedSparse, Block, Input, acc: &mut [f32]),
    /// `acc += S' g` for one block; `acc` is `batch x width`.
    sparse_transposed: unsafe fn(&PackedSparse, Block, Input, acc: &mut [f32]),
    /// Rows of norms and their gradients, and exponentials: [`norm`].
    norm: Norm,
    norm_gradient: NormGradient,
    exp: unsafe fn(&mut [f32], f32) -> f32,
    /// [`generic::spmm`] and [`generic::sddmm`].
    spmm: unsafe fn(&SortedEntries, LaneInput, acc: &mut [Lanes], stride: usize),
    sddmm: unsafe fn(&[Place], LaneInput, LaneInput, sums: &mut [f32]),
    /// `sums[v * tiles + t] += S_ij x_vj` over blocks `j` of block row `i`, the rows in the order of
    /// [`Packing::row`](super::layout::trellis::Packing::row).
    trellis: unsafe fn(&PackedTrellis, i: usize, blocks: Range<usize>, QuantizedRows, &mut [RowSums]),
    /// As `planes_transposed`.
    trellis_transposed: unsafe fn(&PackedTrellis, Block, Input, acc: &mut [f32]),
    /// The coefficients of a scale group; columns beyond its width have no meaning.
    trellis_rows: unsafe fn(&PackedGroup, &mut GroupRows),
    /// The largest magnitude of a block of activations, and one slice of it: [`generic::quantize_slice`].
    largest: unsafe fn(&[f32]) -> f32,
    quantize_slice: unsafe fn(&mut [f32], f32, &mut [i8]),
    /// Sixteen elements of each of sixteen rows, `stride` apart, to lanes and back.
    rows_to_lanes: unsafe fn(rows: &[f32], stride: usize, lanes: &mut [Lanes; LANES]),
    lanes_to_rows: unsafe fn(lanes: &[Lanes; LANES], rows: &mut [f32], stride: usize),
    /// `x <- sqrt(n) C x` and its transpose in each lane; the second slice is scratch.
    dct2: unsafe fn(&mut [Lanes], &mut [Lanes]),
    dct3: unsafe fn(&mut [Lanes], &mut [Lanes]),
    dct2_of_four: unsafe fn(&mut [FourLanes], &mut [FourLanes]),
    dct3_of_four: unsafe fn(&mut [FourLanes], &mut [FourLanes]),
}

/// The table of a level that this processor has.
pub(super) struct Kernels(Table);

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
        features::levels().contains(&level).then_some(Self(match level {
            Level::Scalar => scalar::TABLE,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => x86_64::avx2::TABLE,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => x86_64::avx512::TABLE,
            #[cfg(target_arch = "aarch64")]
            Level::Neon => aarch64::neon::TABLE,
            #[cfg(target_arch = "aarch64")]
            Level::NeonDot => aarch64::neon_dot::TABLE,
            // Another architecture's.
            _ => return None,
        }))
    }

    pub(super) fn planes(
        &self,
        tiles: &PackedPlanes,
        i: usize,
        row_tile: usize,
        x: QuantizedRows,
        sums: &mut [RowSums],
    ) {
        assert_eq!(sums.len(), x.batch());
        // SAFETY: `new` made this table after finding the level's instructions on this processor.
        unsafe { (self.0.planes)(tiles, i, row_tile, x, sums) }
    }

    pub(super) fn planes_transposed(&self, tiles: &PackedPlanes, block: Block, g: Input, acc: &mut [f32]) {
        // SAFETY: as in `planes`.
        unsafe { (self.0.planes_transposed)(tiles, block, g, acc) }
    }

    /// Vectors from which on a sparse product is faster [in lanes](Self::spmm).
    pub(super) fn spmm_min_batch(&self) -> usize {
        self.0.spmm_min_batch
    }

    pub(super) fn sparse(&self, term: &PackedSparse, block: Block, x: Input, acc: &mut [f32]) {
        assert!(acc.len().is_multiple_of(block.height));
        // SAFETY: as in `planes`.
        unsafe { (self.0.sparse)(term, block, x, acc) }
    }

    pub(super) fn sparse_transposed(&self, term: &PackedSparse, block: Block, g: Input, acc: &mut [f32]) {
        // SAFETY: as in `planes`.
        unsafe { (self.0.sparse_transposed)(term, block, g, acc) }
    }

    /// `acc[to] += sum of value * x[from]` over the entries that go there, in every lane; `acc` holds groups `stride` apart.
    pub(super) fn spmm(&self, entries: &SortedEntries, x: LaneInput, acc: &mut [Lanes], stride: usize) {
        // SAFETY: as in `planes`.
        unsafe { (self.0.spmm)(entries, x, acc, stride) }
    }

    /// `sums[n] += sum over all lanes of a[to] * b[from]` for every place.
    pub(super) fn sddmm(&self, places: &[Place], a: LaneInput, b: LaneInput, sums: &mut [f32]) {
        // SAFETY: as in `planes`.
        unsafe { (self.0.sddmm)(places, a, b, sums) }
    }

    /// One row of a norm; an empty bias is none.
    pub(super) fn norm(
        &self,
        x: &[f32],
        weight: &[f32],
        bias: &[f32],
        eps: f32,
        centered: bool,
        out: &mut [f32],
    ) {
        // SAFETY: as in `planes`.
        unsafe { (self.0.norm)(x, weight, bias, eps, centered, out) }
    }

    /// The gradient of a row, and its shares of those of weight and bias, added.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn norm_gradient(
        &self,
        x: &[f32],
        weight: &[f32],
        g: &[f32],
        eps: f32,
        centered: bool,
        dx: &mut [f32],
        dweight: &mut [f32],
        dbias: &mut [f32],
    ) {
        // SAFETY: as in `planes`.
        unsafe { (self.0.norm_gradient)(x, weight, g, eps, centered, dx, dweight, dbias) }
    }

    /// `x <- exp(x - shift)`; returns the sum.
    pub(super) fn exp(&self, x: &mut [f32], shift: f32) -> f32 {
        // SAFETY: as in `planes`.
        unsafe { (self.0.exp)(x, shift) }
    }

    pub(super) fn largest(&self, x: &[f32]) -> f32 {
        // SAFETY: as in `planes`.
        unsafe { (self.0.largest)(x) }
    }

    pub(super) fn quantize_slice(&self, x: &mut [f32], scale: f32, slices: &mut [i8]) {
        // SAFETY: as in `planes`.
        unsafe { (self.0.quantize_slice)(x, scale, slices) }
    }

    pub(super) fn trellis(
        &self,
        term: &PackedTrellis,
        i: usize,
        blocks: Range<usize>,
        x: QuantizedRows,
        sums: &mut [RowSums],
    ) {
        assert!(sums.len().is_multiple_of(x.batch()));
        // SAFETY: as in `planes`.
        unsafe { (self.0.trellis)(term, i, blocks, x, sums) }
    }

    pub(super) fn trellis_transposed(&self, term: &PackedTrellis, block: Block, g: Input, acc: &mut [f32]) {
        // SAFETY: as in `planes`.
        unsafe { (self.0.trellis_transposed)(term, block, g, acc) }
    }

    pub(super) fn trellis_rows(&self, scale_group: &PackedGroup, rows: &mut GroupRows) {
        // SAFETY: as in `planes`.
        unsafe { (self.0.trellis_rows)(scale_group, rows) }
    }

    pub(super) fn rows_to_lanes(&self, rows: &[[f32; EDGE]; LANES], lanes: &mut [Lanes]) {
        let (lanes, rest) = lanes.as_chunks_mut();
        assert!(rest.is_empty(), "rows go into lanes sixteen elements at a time");
        for (n, lanes) in lanes.iter_mut().enumerate() {
            // SAFETY: as in `planes`.
            unsafe { (self.0.rows_to_lanes)(&rows.as_flattened()[n * LANES..], EDGE, lanes) }
        }
    }

    /// Sixteen elements of each of sixteen rows, `stride` apart, to lanes.
    pub(super) fn tile_to_lanes(&self, rows: &[f32], stride: usize, lanes: &mut [Lanes; LANES]) {
        assert!(rows.len() >= (LANES - 1) * stride + LANES);
        // SAFETY: as in `planes`.
        unsafe { (self.0.rows_to_lanes)(rows, stride, lanes) }
    }

    /// Lanes back to sixteen rows.
    pub(super) fn lanes_to_rows(&self, lanes: &[Lanes], rows: &mut [[f32; EDGE]; LANES]) {
        let (lanes, rest) = lanes.as_chunks();
        assert!(rest.is_empty(), "lanes go back to rows sixteen elements at a time");
        for (n, lanes) in lanes.iter().enumerate() {
            // SAFETY: as in `planes`.
            unsafe { (self.0.lanes_to_rows)(lanes, &mut rows.as_flattened_mut()[n * LANES..], EDGE) }
        }
    }

    pub(super) fn dct2(&self, x: &mut [Lanes], scratch: &mut [Lanes]) {
        assert!(scratch.len() >= x.len());
        // SAFETY: as in `planes`.
        unsafe { (self.0.dct2)(x, scratch) }
    }

    pub(super) fn dct3(&self, x: &mut [Lanes], scratch: &mut [Lanes]) {
        assert!(scratch.len() >= x.len());
        // SAFETY: as in `planes`.
        unsafe { (self.0.dct3)(x, scratch) }
    }

    pub(super) fn dct2_of_four(&self, x: &mut [FourLanes], scratch: &mut [FourLanes]) {
        assert!(scratch.len() >= x.len());
        // SAFETY: as in `planes`.
        unsafe { (self.0.dct2_of_four)(x, scratch) }
    }

    pub(super) fn dct3_of_four(&self, x: &mut [FourLanes], scratch: &mut [FourLanes]) {
        assert!(scratch.len() >= x.len());
        // SAFETY: as in `planes`.
        unsafe { (self.0.dct3_of_four)(x, scratch) }
    }
}

/// Compiles what [`generic`] and [`trellis`] hold for one level, and the level's table. The level brings what [`walk`] names,
/// `sparse`, `SPMM_MIN_BATCH` and the ways between rows and lanes.
macro_rules! table {
    (fma: $fma:literal $(, $feature:literal)?) => {
        use super::super::{Block, Input, LaneInput, Place, PackedPlanes, SortedEntries, PackedSparse, Table, generic};
        use super::super::{norm as rows, trellis as generic_trellis};

        pub(in super::super) const TABLE: Table = Table {
            planes,
            planes_transposed,
            spmm_min_batch: SPMM_MIN_BATCH,
            sparse,
            sparse_transposed,
            norm,
            norm_gradient,
            exp,
            spmm,
            sddmm,
            trellis,
            trellis_transposed,
            trellis_rows,
            largest,
            quantize_slice,
            rows_to_lanes,
            lanes_to_rows,
            dct2: lanes::dct2,
            dct3: lanes::dct3,
            dct2_of_four: lanes::dct2,
            dct3_of_four: lanes::dct3,
        };

        $(#[target_feature(enable = $feature)])?
        fn planes_transposed(tiles: &PackedPlanes, block: Block, g: Input, acc: &mut [f32]) {
            generic::planes_transposed::<$fma>(tiles, block, g, acc);
        }
        $(#[target_feature(enable = $feature)])?
        fn sparse_transposed(term: &PackedSparse, block: Block, g: Input, acc: &mut [f32]) {
            generic::sparse::<$fma, true>(term, block, g, acc);
        }
        $(#[target_feature(enable = $feature)])?
        fn norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, centered: bool, out: &mut [f32]) {
            rows::norm(x, weight, bias, eps, centered, out);
        }
        #[allow(clippy::too_many_arguments)]
        $(#[target_feature(enable = $feature)])?
        fn norm_gradient(
            x: &[f32],
            weight: &[f32],
            g: &[f32],
            eps: f32,
            centered: bool,
            dx: &mut [f32],
            dweight: &mut [f32],
            dbias: &mut [f32],
        ) {
            rows::norm_gradient(x, weight, g, eps, centered, dx, dweight, dbias);
        }
        $(#[target_feature(enable = $feature)])?
        fn exp(x: &mut [f32], shift: f32) -> f32 {
            rows::exp(x, shift)
        }
        $(#[target_feature(enable = $feature)])?
        fn spmm(
            entries: &SortedEntries,
            x: LaneInput,
            acc: &mut [crate::cpu::transform::Lanes],
            stride: usize,
        ) {
            generic::spmm::<$fma>(entries, x, acc, stride);
        }
        $(#[target_feature(enable = $feature)])?
        fn sddmm(places: &[Place], a: LaneInput, b: LaneInput, sums: &mut [f32]) {
            generic::sddmm::<$fma>(places, a, b, sums);
        }
        $(#[target_feature(enable = $feature)])?
        fn largest(x: &[f32]) -> f32 {
            generic::largest(x)
        }
        $(#[target_feature(enable = $feature)])?
        fn quantize_slice(x: &mut [f32], scale: f32, slices: &mut [i8]) {
            generic::quantize_slice(x, scale, slices);
        }
        mod lanes {
            crate::cpu::transform::transforms!($($feature)?);
        }
    };
}
use table;
