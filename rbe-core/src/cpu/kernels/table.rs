//! The table of a level's operations.

use super::generic::attention::{KeyPart, PartialMix};
use super::generic::codes::CodeTile;
use super::generic::dct::supports;
use super::generic::norm::{NormGradient, NormRow};
use super::generic::panels::{IntegerStrip, IntegerVectors};
use super::generic::tiles::TileParts;
use super::generic::viterbi_bytes::ByteRow;
use crate::codec::Block;
use crate::cpu::layout::planes::{Line, PackedPlanes, QUADS};
use crate::cpu::layout::sparse::PackedSparse;
use crate::cpu::layout::trellis::{GroupCodes, PackedGroup, PackedTrellis};
use crate::cpu::layout::{
    EDGE, Input, LANES, LaneInput, Lanes, Place, QuantizedRows, RowSums, SortedEntries, Strip,
};
use std::ops::Range;

/// An operation, and the level whose it is.
#[derive(Clone, Copy)]
pub(in crate::cpu::kernels) struct Op<F> {
    run: F,
    #[cfg_attr(not(test), expect(dead_code, reason = "asked by the test of what a level inherits"))]
    level: &'static str,
}

impl<F> Op<F> {
    pub(in crate::cpu::kernels) const fn new(level: &'static str, run: F) -> Self {
        Self { run, level }
    }
}

pub(in crate::cpu::kernels) type Planes =
    unsafe fn(&PackedPlanes, i: usize, row_tile: usize, QuantizedRows, &mut [RowSums]);
pub(in crate::cpu::kernels) type Trellis =
    unsafe fn(&PackedTrellis, i: usize, groups: Range<usize>, QuantizedRows, &mut [RowSums]);
pub(in crate::cpu::kernels) type Squares = unsafe fn(&PackedGroup) -> u16;
/// `acc += S x` or `acc += S' g` for one block; `acc` is `batch x height` or `batch x width`.
type OfBlock<T> = unsafe fn(&T, Block, Input, acc: &mut [f32]);
pub(in crate::cpu::kernels) type PairDigits = unsafe fn(&[i8], Option<&[i8]>, &mut [i16]);
type PlaneCodes = unsafe fn(&[Line], planes: u8, &mut [Line; QUADS]);
type PanelFloats = unsafe fn(&[Lanes], x: &[f32], &mut [RowSums]);
type RoundVector = unsafe fn(&[f32], &mut [i16]) -> f32;
type RoundStrip = unsafe fn(&[Lanes], &mut [Lanes]) -> Lanes;
pub(in crate::cpu::kernels) type PanelIntegers = unsafe fn(IntegerStrip, IntegerVectors, &mut [RowSums]);
type Spmm = unsafe fn(&SortedEntries, LaneInput, acc: &mut [Lanes], stride: usize);
type Sddmm = unsafe fn(&[Place], LaneInput, LaneInput, sums: &mut [f32]);
type Weigh = unsafe fn(&mut [f32], by: f32, weights: &[f32]);
type TakeDigit = unsafe fn(&mut [f32], scale: f32, digits: &mut [i8], sums: &mut [i32]);
type RowsToLanes = unsafe fn(rows: &[f32], stride: usize, lanes: &mut [Lanes; LANES]);
type LanesToRows = unsafe fn(lanes: &[Lanes; LANES], rows: &mut [f32], stride: usize);
type Norm = unsafe fn(NormRow, bias: &[f32], out: &mut [f32]);
type SiluMul = unsafe fn(gate: &[f32], up: &[f32], out: &mut [f32]);
type Dot = unsafe fn(&[f32], &[f32]) -> f32;
/// [`attend`](super::generic::attention::attend) of a level's registers.
type Attend = unsafe fn(KeyPart, scores: &mut [f32], PartialMix);
type Dct = unsafe fn(&mut [Lanes], &mut [Lanes]);
type DctOfStrip = unsafe fn(&mut Strip, usize, usize);
/// [`step`](super::generic::viterbi::step) with a number of bits.
type Viterbi = unsafe fn(&[u16], &[i16], i16, next: &mut [u16]) -> u16;
/// [`step`](super::generic::viterbi_bytes::step) with a number of bits.
type ViterbiBytes = unsafe fn(ByteRow, table: &mut [Line], next: &mut [u8]) -> u8;

/// What a product with panels takes, beside that of a weight of one digit of one vector, a trellis' or a plane's. Measured with AVX2 and with
/// AVX-512; other levels' are estimates.
#[derive(Clone, Copy, Debug)]
pub(in crate::cpu) struct PanelCost {
    /// A weight and a vector.
    pub floats: f32,
    pub integers: f32,
    /// A weight to be decoded and laid out, whatever the vectors.
    pub decoding: f32,
    /// A weight and a digit of a vector in planes whose codes have seven or eight bits.
    pub long_codes: f32,
}

/// The inner loops of one level. Only a level gives its table away, and only where its instructions exist, so the methods are
/// safe.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Kernels {
    /// `sums[v] += S_i x_v` for the rows of a row tile of block row `i` and the vectors `v` of a batch.
    pub(super) planes: Op<Planes>,
    /// Makes integers of 16 bits of a vector's slices, at levels whose products with planes read them so.
    pub(super) pair_digits: Op<Option<PairDigits>>,
    pub(super) planes_transposed: Op<OfBlock<PackedPlanes>>,
    /// `sums[v * tiles + t] += S x_v` over scale groups of block row `i`, counted over the whole width, the rows in the order of
    /// [`Packing::row`](crate::cpu::layout::trellis::Packing::row).
    pub(super) trellis: Op<Trellis>,
    pub(super) trellis_transposed: Op<OfBlock<PackedTrellis>>,
    /// The codes of a scale group; those of columns beyond its width have no meaning.
    pub(super) trellis_codes: Op<unsafe fn(&PackedGroup, &mut GroupCodes)>,
    /// The codes of a tile of planes.
    pub(super) plane_codes: Op<PlaneCodes>,
    /// Adds the coefficients that a tile's codes are.
    pub(super) add_codes: Op<unsafe fn(&CodeTile, &mut [f32])>,
    /// What a scale group's [squares](PackedGroup::squares) are, at levels that have products in 16 bits.
    pub(super) trellis_squares: Op<Option<Squares>>,
    /// `sums[v] += W x_v` for the sixteen outputs of a strip, an input's weights in each of its registers, and vectors one after another.
    pub(super) panel_floats: Op<PanelFloats>,
    /// The same of integers, at levels that have them.
    pub(super) panel_integers: Op<Option<PanelIntegers>>,
    /// Rounds to integers with one step, which it returns.
    pub(super) round_vector: Op<RoundVector>,
    /// The same of a strip of floats, to one of integers.
    pub(super) round_strip: Op<RoundStrip>,
    pub(super) panel_cost: Op<PanelCost>,
    pub(super) sparse: Op<OfBlock<PackedSparse>>,
    pub(super) sparse_transposed: Op<OfBlock<PackedSparse>>,
    /// The smallest batch that `spmm` takes less time for than `sparse`, the way into lanes included.
    pub(super) spmm_min_batch: Op<usize>,
    pub(super) spmm: Op<Spmm>,
    pub(super) sddmm: Op<Sddmm>,
    /// Multiplies a segment by a number and by each element's weight.
    pub(super) weigh: Op<Weigh>,
    /// The largest magnitude of a block of activations, and one digit of it.
    pub(super) largest: Op<unsafe fn(&[f32]) -> f32>,
    pub(super) quantize_slice: Op<TakeDigit>,
    /// Sixteen elements of each of sixteen rows, `stride` apart, to lanes and back.
    pub(super) rows_to_lanes: Op<RowsToLanes>,
    pub(super) lanes_to_rows: Op<LanesToRows>,
    /// `x <- sqrt(n) C x` and its transpose in each lane; the second slice is scratch.
    pub(super) dct2: Op<Dct>,
    pub(super) dct3: Op<Dct>,
    /// The same of each segment of a strip: their length, and how many there are.
    pub(super) dct2_of_strip: Op<DctOfStrip>,
    pub(super) dct3_of_strip: Op<DctOfStrip>,
    /// Adds a vector's sums over parts of the columns to the rows of a block row.
    pub(super) add_tiles: Op<unsafe fn(TileParts, &mut [f32])>,
    pub(super) norm: Op<Norm>,
    pub(super) norm_gradient: Op<unsafe fn(NormRow, g: &[f32], NormGradient)>,
    pub(super) exp: Op<unsafe fn(&mut [f32], f32) -> f32>,
    /// `out = silu(gate) up`.
    pub(super) silu_mul: Op<SiluMul>,
    /// The dot product of dense vectors of one length.
    pub(super) dot: Op<Dot>,
    /// Attention of one position to a part of the keys.
    pub(super) attend: Op<Attend>,
    /// For trellises of 1 to 4 bits.
    pub(super) viterbi: Op<[Viterbi; 4]>,
    /// Those with costs in bytes, and the states that they take at once.
    pub(super) viterbi_bytes: Op<(usize, [ViterbiBytes; 4])>,
}

#[cfg(test)]
impl Kernels {
    /// Every operation with the level whose it is.
    pub(in crate::cpu::kernels) fn levels(&self) -> [(&'static str, &'static str); 37] {
        // Whole, so that none is forgotten.
        let Self {
            planes,
            pair_digits,
            planes_transposed,
            trellis,
            trellis_transposed,
            trellis_codes,
            plane_codes,
            add_codes,
            trellis_squares,
            panel_floats,
            panel_integers,
            round_vector,
            round_strip,
            panel_cost,
            sparse,
            sparse_transposed,
            spmm_min_batch,
            spmm,
            sddmm,
            weigh,
            largest,
            quantize_slice,
            rows_to_lanes,
            lanes_to_rows,
            dct2,
            dct3,
            dct2_of_strip,
            dct3_of_strip,
            add_tiles,
            norm,
            norm_gradient,
            exp,
            silu_mul,
            dot,
            attend,
            viterbi,
            viterbi_bytes,
        } = *self;
        [
            ("planes", planes.level),
            ("pair_digits", pair_digits.level),
            ("planes_transposed", planes_transposed.level),
            ("trellis", trellis.level),
            ("trellis_transposed", trellis_transposed.level),
            ("trellis_codes", trellis_codes.level),
            ("plane_codes", plane_codes.level),
            ("add_codes", add_codes.level),
            ("trellis_squares", trellis_squares.level),
            ("panel_floats", panel_floats.level),
            ("panel_integers", panel_integers.level),
            ("round_vector", round_vector.level),
            ("round_strip", round_strip.level),
            ("panel_cost", panel_cost.level),
            ("sparse", sparse.level),
            ("sparse_transposed", sparse_transposed.level),
            ("spmm_min_batch", spmm_min_batch.level),
            ("spmm", spmm.level),
            ("sddmm", sddmm.level),
            ("weigh", weigh.level),
            ("largest", largest.level),
            ("quantize_slice", quantize_slice.level),
            ("rows_to_lanes", rows_to_lanes.level),
            ("lanes_to_rows", lanes_to_rows.level),
            ("dct2", dct2.level),
            ("dct3", dct3.level),
            ("dct2_of_strip", dct2_of_strip.level),
            ("dct3_of_strip", dct3_of_strip.level),
            ("add_tiles", add_tiles.level),
            ("norm", norm.level),
            ("norm_gradient", norm_gradient.level),
            ("exp", exp.level),
            ("silu_mul", silu_mul.level),
            ("dot", dot.level),
            ("attend", attend.level),
            ("viterbi", viterbi.level),
            ("viterbi_bytes", viterbi_bytes.level),
        ]
    }
}

impl Kernels {
    pub(in crate::cpu) fn planes(
        &self,
        tiles: &PackedPlanes,
        i: usize,
        row_tile: usize,
        x: QuantizedRows,
        sums: &mut [RowSums],
    ) {
        assert_eq!(sums.len(), x.batch());
        // SAFETY: a level gives its table away only where the processor has its instructions.
        unsafe { (self.planes.run)(tiles, i, row_tile, x, sums) }
    }

    /// Whether a vector's slices are to be [paired](Self::pair_digits).
    pub(in crate::cpu) fn pairs_digits(&self) -> bool {
        self.pair_digits.run.is_some()
    }

    /// One slice or two as one integer of each column, as [`Activations::pairs`](crate::cpu::layout::Activations::pairs) has them.
    pub(in crate::cpu) fn pair_digits(&self, first: &[i8], second: Option<&[i8]>, pairs: &mut [i16]) {
        assert_eq!(first.len(), pairs.len());
        assert_eq!(second.unwrap_or(first).len(), pairs.len());
        if let Some(run) = self.pair_digits.run {
            // SAFETY: as in `planes`.
            unsafe { run(first, second, pairs) }
        }
    }

    pub(in crate::cpu) fn planes_transposed(
        &self,
        tiles: &PackedPlanes,
        block: Block,
        g: Input,
        acc: &mut [f32],
    ) {
        // SAFETY: as in `planes`.
        unsafe { (self.planes_transposed.run)(tiles, block, g, acc) }
    }

    /// What a product with panels takes.
    pub(in crate::cpu) fn panel_cost(&self) -> PanelCost {
        self.panel_cost.run
    }

    /// Adds the products of a strip with vectors of its inputs, one after another.
    pub(in crate::cpu) fn panel_floats(&self, weights: &[Lanes], x: &[f32], sums: &mut [RowSums]) {
        assert_eq!(x.len(), weights.len() * sums.len());
        // SAFETY: as in `planes`.
        unsafe { (self.panel_floats.run)(weights, x, sums) }
    }

    /// The same of integers.
    ///
    /// # Panics
    /// At a level that has no such products.
    pub(in crate::cpu) fn panel_integers(
        &self,
        strip: IntegerStrip,
        x: IntegerVectors,
        sums: &mut [RowSums],
    ) {
        assert_eq!(x.values.len(), 2 * strip.weights.len() * sums.len());
        assert_eq!(x.steps.len(), sums.len());
        let Some(run) = self.panel_integers.run else { unreachable!("a level without products of integers") };
        // SAFETY: as in `planes`.
        unsafe { run(strip, x, sums) }
    }

    /// Whether there are [such products](Self::panel_integers).
    pub(in crate::cpu) fn has_panel_integers(&self) -> bool {
        self.panel_integers.run.is_some()
    }

    /// Rounds a strip of floats to one of integers, and returns the steps of its outputs.
    pub(in crate::cpu) fn round_strip(&self, floats: &[Lanes], integers: &mut [Lanes]) -> Lanes {
        // SAFETY: as in `planes`.
        unsafe { (self.round_strip.run)(floats, integers) }
    }

    /// Rounds a block of a vector to integers with one step, which it returns.
    pub(in crate::cpu) fn round_vector(&self, x: &[f32], integers: &mut [i16]) -> f32 {
        assert!(integers.len() >= x.len());
        // SAFETY: as in `planes`.
        unsafe { (self.round_vector.run)(x, integers) }
    }

    /// Vectors from which on a sparse product is faster [in lanes](Self::spmm).
    pub(in crate::cpu) fn spmm_min_batch(&self) -> usize {
        self.spmm_min_batch.run
    }

    pub(in crate::cpu) fn sparse(&self, term: &PackedSparse, block: Block, x: Input, acc: &mut [f32]) {
        assert!(acc.len().is_multiple_of(block.height));
        // SAFETY: as in `planes`.
        unsafe { (self.sparse.run)(term, block, x, acc) }
    }

    pub(in crate::cpu) fn sparse_transposed(
        &self,
        term: &PackedSparse,
        block: Block,
        g: Input,
        acc: &mut [f32],
    ) {
        // SAFETY: as in `planes`.
        unsafe { (self.sparse_transposed.run)(term, block, g, acc) }
    }

    /// `acc[to] += sum of value * x[from]` over the entries that go there, in every lane; `acc` holds groups `stride` apart.
    pub(in crate::cpu) fn spmm(
        &self,
        entries: &SortedEntries,
        x: LaneInput,
        acc: &mut [Lanes],
        stride: usize,
    ) {
        // SAFETY: as in `planes`.
        unsafe { (self.spmm.run)(entries, x, acc, stride) }
    }

    /// `sums[n] += sum over all lanes of a[to] * b[from]` for every place.
    pub(in crate::cpu) fn sddmm(&self, places: &[Place], a: LaneInput, b: LaneInput, sums: &mut [f32]) {
        // SAFETY: as in `planes`.
        unsafe { (self.sddmm.run)(places, a, b, sums) }
    }

    /// One row of a norm; an empty bias is none.
    pub(in crate::cpu) fn norm(&self, row: NormRow, bias: &[f32], out: &mut [f32]) {
        // SAFETY: as in `planes`.
        unsafe { (self.norm.run)(row, bias, out) }
    }

    /// The gradient of a row of a norm, and its shares of those of weight and bias.
    pub(in crate::cpu) fn norm_gradient(&self, row: NormRow, g: &[f32], out: NormGradient) {
        // SAFETY: as in `planes`.
        unsafe { (self.norm_gradient.run)(row, g, out) }
    }

    /// `x <- exp(x - shift)`; returns the sum.
    pub(in crate::cpu) fn exp(&self, x: &mut [f32], shift: f32) -> f32 {
        // SAFETY: as in `planes`.
        unsafe { (self.exp.run)(x, shift) }
    }

    /// The dot product of dense vectors.
    pub(in crate::cpu) fn dot(&self, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        // SAFETY: as in `planes`.
        unsafe { (self.dot.run)(a, b) }
    }

    pub(in crate::cpu) fn weigh(&self, x: &mut [f32], by: f32, weights: &[f32]) {
        assert_eq!(x.len(), weights.len());
        // SAFETY: as in `planes`.
        unsafe { (self.weigh.run)(x, by, weights) }
    }

    /// What a part of the keys comes to; `scores` is scratch.
    pub(in crate::cpu) fn attend(&self, part: KeyPart, scores: &mut [f32], out: PartialMix) {
        // SAFETY: as in `planes`.
        unsafe { (self.attend.run)(part, scores, out) }
    }

    pub(in crate::cpu) fn largest(&self, x: &[f32]) -> f32 {
        // SAFETY: as in `planes`.
        unsafe { (self.largest.run)(x) }
    }

    pub(in crate::cpu) fn quantize_slice(
        &self,
        x: &mut [f32],
        scale: f32,
        digits: &mut [i8],
        sums: &mut [i32],
    ) {
        // SAFETY: as in `planes`.
        unsafe { (self.quantize_slice.run)(x, scale, digits, sums) }
    }

    pub(in crate::cpu) fn trellis(
        &self,
        term: &PackedTrellis,
        i: usize,
        groups: Range<usize>,
        x: QuantizedRows,
        sums: &mut [RowSums],
    ) {
        assert!(sums.len().is_multiple_of(x.batch()));
        // SAFETY: as in `planes`.
        unsafe { (self.trellis.run)(term, i, groups, x, sums) }
    }

    pub(in crate::cpu) fn trellis_transposed(
        &self,
        term: &PackedTrellis,
        block: Block,
        g: Input,
        acc: &mut [f32],
    ) {
        // SAFETY: as in `planes`.
        unsafe { (self.trellis_transposed.run)(term, block, g, acc) }
    }

    pub(in crate::cpu) fn trellis_codes(&self, scale_group: &PackedGroup, codes: &mut GroupCodes) {
        // SAFETY: as in `planes`.
        unsafe { (self.trellis_codes.run)(scale_group, codes) }
    }

    /// The codes of a tile of so many planes.
    pub(in crate::cpu) fn plane_codes(&self, tile: &[Line], planes: u8, codes: &mut [Line; QUADS]) {
        // SAFETY: as in `planes`.
        unsafe { (self.plane_codes.run)(tile, planes, codes) }
    }

    pub(in crate::cpu) fn add_codes(&self, tile: &CodeTile, out: &mut [f32]) {
        // SAFETY: as in `planes`.
        unsafe { (self.add_codes.run)(tile, out) }
    }

    /// Tells a term what products in 16 bits want to know of it.
    pub(in crate::cpu) fn with_squares(&self, term: PackedTrellis) -> PackedTrellis {
        match self.trellis_squares.run {
            // SAFETY: as in `planes`.
            Some(squares) => term.with_squares(|scale_group| unsafe { squares(scale_group) }),
            None => term,
        }
    }

    pub(in crate::cpu) fn rows_to_lanes(&self, rows: &[[f32; EDGE]; LANES], lanes: &mut [Lanes]) {
        let (lanes, rest) = lanes.as_chunks_mut();
        assert!(rest.is_empty(), "rows go into lanes sixteen elements at a time");
        for (n, lanes) in lanes.iter_mut().enumerate() {
            // SAFETY: as in `planes`.
            unsafe { (self.rows_to_lanes.run)(&rows.as_flattened()[n * LANES..], EDGE, lanes) }
        }
    }

    /// Sixteen elements of each of sixteen rows, `stride` apart, to lanes.
    pub(in crate::cpu) fn tile_to_lanes(&self, rows: &[f32], stride: usize, lanes: &mut [Lanes; LANES]) {
        assert!(rows.len() >= (LANES - 1) * stride + LANES);
        // SAFETY: as in `planes`.
        unsafe { (self.rows_to_lanes.run)(rows, stride, lanes) }
    }

    /// Lanes back to sixteen rows.
    pub(in crate::cpu) fn lanes_to_rows(&self, lanes: &[Lanes], rows: &mut [[f32; EDGE]; LANES]) {
        let (lanes, rest) = lanes.as_chunks();
        assert!(rest.is_empty(), "lanes go back to rows sixteen elements at a time");
        for (n, lanes) in lanes.iter().enumerate() {
            // SAFETY: as in `planes`.
            unsafe { (self.lanes_to_rows.run)(lanes, &mut rows.as_flattened_mut()[n * LANES..], EDGE) }
        }
    }

    pub(in crate::cpu) fn dct2(&self, x: &mut [Lanes], scratch: &mut [Lanes]) {
        assert!(scratch.len() >= x.len());
        // SAFETY: as in `planes`.
        unsafe { (self.dct2.run)(x, scratch) }
    }

    pub(in crate::cpu) fn dct3(&self, x: &mut [Lanes], scratch: &mut [Lanes]) {
        assert!(scratch.len() >= x.len());
        // SAFETY: as in `planes`.
        unsafe { (self.dct3.run)(x, scratch) }
    }

    /// [`dct2`](Self::dct2) of the first `count` segments of `len` elements, each by itself.
    pub(in crate::cpu) fn dct2_of_strip(&self, strip: &mut Strip, len: usize, count: usize) {
        assert!(supports(len) && count * len <= EDGE);
        // SAFETY: as in `planes`.
        unsafe { (self.dct2_of_strip.run)(strip, len, count) }
    }

    /// [`dct3`](Self::dct3), likewise.
    pub(in crate::cpu) fn add_tiles(&self, tiles: TileParts, out: &mut [f32]) {
        assert!(tiles.parts > 0);
        // SAFETY: as in `planes`.
        unsafe { (self.add_tiles.run)(tiles, out) }
    }

    pub(in crate::cpu) fn dct3_of_strip(&self, strip: &mut Strip, len: usize, count: usize) {
        assert!(supports(len) && count * len <= EDGE);
        // SAFETY: as in `planes`.
        unsafe { (self.dct3_of_strip.run)(strip, len, count) }
    }

    /// `out = silu(gate) up`, element by element.
    pub(in crate::cpu) fn silu_mul(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        // SAFETY: as in `planes`.
        unsafe { (self.silu_mul.run)(gate, up, out) }
    }

    /// The step of Viterbi's search in a trellis of `bits` bits, 1 to 4.
    pub(in crate::cpu) fn viterbi(&self, bits: u8) -> ViterbiStep {
        ViterbiStep(self.viterbi.run[usize::from(bits) - 1])
    }

    /// That with costs in bytes.
    pub(in crate::cpu) fn viterbi_bytes(&self, bits: u8) -> ViterbiByteStep {
        let (lanes, run) = self.viterbi_bytes.run;
        ViterbiByteStep { lanes, run: run[usize::from(bits) - 1] }
    }
}

/// A step of Viterbi's search, of a level that the processor has.
#[derive(Clone, Copy, Debug)]
pub(in crate::cpu) struct ViterbiStep(Viterbi);

impl ViterbiStep {
    /// Writes the costs of all classes after a row's value to `next` and returns the least. `values` holds the value of every
    /// state; `costs`, those before, has [`OVERREAD`](super::OVERREAD) elements more than `next`.
    pub(in crate::cpu) fn run(self, costs: &[u16], values: &[i16], target: i16, next: &mut [u16]) -> u16 {
        // SAFETY: as in `planes`.
        unsafe { (self.0)(costs, values, target, next) }
    }
}

/// [`ViterbiStep`] with costs in bytes.
#[derive(Clone, Copy, Debug)]
pub(in crate::cpu) struct ViterbiByteStep {
    lanes: usize,
    run: ViterbiBytes,
}

impl ViterbiByteStep {
    /// Classes in a register, for [`StateBlocks`](super::StateBlocks).
    pub(in crate::cpu) fn lanes(self) -> usize {
        self.lanes
    }

    /// Writes the costs of all classes after a row's value to `next` and returns the least. `table` is scratch of
    /// [`table_lines`](super::StateBlocks::table_lines).
    pub(in crate::cpu) fn run(self, row: ByteRow, table: &mut [Line], next: &mut [u8]) -> u8 {
        // SAFETY: as in `planes`.
        unsafe { (self.run)(row, table, next) }
    }
}
