//! Planes and trellis on the device: scale groups of 32 columns as `groups.cuh` has them.

use super::axis::{DeviceAxis, words};
use super::ends::Ends;
use super::machine::{Arg, Element, Launch, Machine, Module};
use super::operands::{Gather, Panel, Partial, Product};
use super::term::{DeviceTerm, GEMV_MAX_BATCH, Takes};
use crate::error::{Error, Result};
use rayon::prelude::*;
use rbe_core::codec::term::trellis::{GROUP_COLS, scale_groups};
use rbe_core::codec::{Block, Layout};

/// Threads of a block, and its warps, as the kernels have them.
pub(super) const THREADS: usize = 256;
pub(super) const WARPS: usize = 8;
pub(super) const WARP: usize = 32;
/// Rows of a piece.
const PIECE: usize = 32;
/// Distances of pieces in shared memory.
const SINGLE_STRIDE: usize = PIECE + 1;
const QUAD_STRIDE: usize = PIECE + 4;
/// The most scale groups of a block row for one block where their inputs lie in shared memory, and where that has room for more.
const MOST_GROUPS: usize = 64;
const MOST_TILE_GROUPS: usize = 128;
/// Blocks for each multiprocessor, so that none waits for the last.
const BLOCKS_EACH: usize = 4;
/// Rows of the batch that a thread sums at once.
pub(super) const BATCH_TILE: usize = 4;
/// Shared memory that a device keeps of each block's.
const RESERVED_BYTES: usize = 1024;
/// Blocks of a panel's kernels that a multiprocessor has at once, as they have it.
const PANEL_BLOCKS: usize = 2;
/// Blocks of so many rows go to tensor cores.
const TILE_ROWS: usize = 128;
/// Floats of shared memory for the sums of `tiles.cuh`.
const TILE_FLOATS: usize = WARPS * WARP * 64;
/// Bytes of a load of a warp, and steps that it has on their way: `LOAD` and `STAGES` of `ring.cuh`.
const LOAD: usize = WARP * 16;
const STAGES: usize = 2;
/// Passes of fewer vectors.
const PASSES: usize = 4;
/// Vectors at once of any form without staged ones, of each of which shared memory has a word.
const MOST_VECTORS: usize = 32;
/// The most rows of a block.
const ELEMENTS: usize = 256;
/// Floats of shared memory in which the warps transform inputs and results: `BUFFERS` of `ends.cuh`.
const BUFFERS: usize = WARPS * (ELEMENTS + ELEMENTS / 4);
/// What blocks transform of inputs, all of them together, for each multiprocessor: in 256 elements. Each block row does it again, which
/// is a seventh of what its weights take where its blocks have 256 rows. Beyond about so many, 4 microseconds on an H100, a
/// launch that does it once is shorter.
const ITEMS_EACH: usize = 32;

/// Threads that share a column of so many rows.
fn lanes_of(height: usize) -> usize {
    let pieces = height / PIECE;
    if height.is_multiple_of(PIECE) && pieces.is_power_of_two() {
        pieces
    } else {
        // Sixteen bits of the cycle's beginning follow its end.
        (height + 16).div_ceil(PIECE).next_power_of_two()
    }
}

/// The piece of its column that a lane of a warp has, and which of the columns at once.
fn piece_and_slot(lane: usize, lanes: usize) -> (usize, usize) {
    (lane / 4 % lanes, lane / 4 / lanes * 4 + lane % 4)
}

/// A term's scale groups in the device's memory.
pub(super) struct DeviceGroups<M> {
    layout: Layout,
    table: M,
    words: M,
    max_lanes: usize,
    /// Of a weight.
    most_bits: usize,
    /// The scale that is farthest from zero.
    largest_scale: f32,
    own: Own<M>,
}

/// What scale groups of one term have and those of another have not.
pub(super) struct Own<M> {
    pub module: Module,
    /// The trellis' table, and how many floats of shared memory are made of it.
    pub values: Option<(M, usize)>,
    /// The kernels for tensor cores, and whether one row is better off with them where some block rows take a launch of their own.
    pub tiles: &'static str,
    pub tiles_beside: bool,
    /// Blocks of these kernels, but the widest, that a multiprocessor has at once: `TILE_BLOCKS` of the code.
    pub tile_blocks: usize,
    /// Whether few vectors in F32 have a kernel of their own.
    pub has_few_exact: bool,
    /// Passes of the most vectors at once that take less time than decoding: on an H200 a trellis took 40 microseconds for each of 32
    /// vectors with 8192x8192 weights, planes 29, and decoding, with a product of its panel, some 110.
    pub broad_passes: usize,
    /// Whether a row's value depends on bits of rows below: `READS_ON` of the code.
    pub reads_on: bool,
    pub row_scales: Option<M>,
    /// What multiplies the row scales.
    pub unit: f32,
}

/// One scale group on its way to the device.
#[derive(Default)]
pub(super) struct Source {
    pub bits: u8,
    pub scale: f32,
    /// The code's own number.
    pub number: u32,
}

/// The codes of the block whose scale groups are at hand.
#[derive(Default)]
pub(super) struct BlockCodes {
    block: Option<usize>,
    codes: Vec<u8>,
}

impl BlockCodes {
    /// The codes of a block, which `fill` writes where they are another's.
    pub(super) fn of(&mut self, block: Block, fill: impl FnOnce(&mut [u8])) -> &[u8] {
        if self.block != Some(block.index) {
            self.block = Some(block.index);
            self.codes.resize(block.len(), 0);
            fill(&mut self.codes);
        }
        &self.codes
    }
}

impl<M> DeviceGroups<M> {
    /// Lays out a term's scale groups. `fill` writes the fields of one, `(32 columns, rows filled up to whole pieces)`; what it
    /// keeps in its first argument it finds again at the block row's next scale group.
    pub(super) fn new(
        machine: &impl Machine<Memory = M>,
        layout: Layout,
        own: Own<M>,
        fill: impl Fn(&mut BlockCodes, Block, &mut [u8]) -> Source + Sync,
    ) -> Result<Self> {
        let (table, data) = lay_out(layout, fill)?;
        let most_bits = table.iter().skip(1).step_by(4).fold(1, |most, bits| most.max(*bits)) as usize;
        let scales = table.iter().skip(2).step_by(4).map(|bits| f32::from_bits(*bits));
        let largest_scale = scales.fold(0f32, |largest, scale| largest.max(scale.abs()));
        let max_lanes = layout.row_cut().iter().map(|rows| lanes_of(rows.len())).max().unwrap_or(1);
        let (table, words) = (machine.upload(&words(table))?, machine.upload(&words(data))?);
        Ok(Self { layout, table, words, max_lanes, most_bits, largest_scale, own })
    }

    /// Floats of shared memory that the code's table takes.
    fn table_len(&self) -> usize {
        self.own.values.as_ref().map_or(0, |(_, count)| *count)
    }

    fn per_row(&self) -> usize {
        self.layout.cols().div_ceil(GROUP_COLS)
    }

    fn args(&self) -> Vec<Arg<'_, M>> {
        vec![
            Arg::Memory(&self.table, 0),
            Arg::Memory(&self.words, 0),
            Arg::optional(self.own.values.as_ref().map(|(values, _)| values), 0),
            Arg::optional(self.own.row_scales.as_ref(), 0),
            Arg::Float(self.own.unit),
            Arg::Int(self.layout.rows()),
            Arg::Int(self.layout.cols()),
            Arg::Int(self.layout.block()),
        ]
    }

    fn launch<'a>(
        &self,
        kernel: &str,
        grid: [usize; 3],
        floats: usize,
        args: Vec<Arg<'a, M>>,
    ) -> Launch<'a, M> {
        Launch {
            module: self.own.module,
            kernel: format!("{}_{kernel}", self.own.module.name()),
            grid,
            threads: THREADS,
            shared_bytes: floats * size_of::<f32>(),
            waits: false,
            args,
        }
    }

    /// How a product is shared out.
    fn plan(&self, machine: &impl Machine<Memory = M>, product: &Product) -> GroupPlan {
        let Product { batch, transposed, .. } = *product;
        // Row scales take one row of the batch at a time: they are rare, and a second factor takes registers.
        let one = batch == 1 || (self.own.row_scales.is_some() && !transposed);
        let fits = |rows| {
            let floats = self.transposed_floats(rows);
            !transposed || floats * size_of::<f32>() <= machine.shared_bytes_limit()
        };
        let at_once = if one || !fits(BATCH_TILE) { 1 } else { BATCH_TILE };
        let groups = batch.div_ceil(at_once);
        let tiles = self.tiles(machine, product);
        if let Some(tiles) = tiles {
            let (each, splits) = self.tile_splits(machine, product, &tiles);
            return GroupPlan { at_once, groups, each, splits, tiles: Some(tiles) };
        }
        let wanted = (BLOCKS_EACH * machine.multiprocessors()).div_ceil(groups);
        let (across, along) = if transposed {
            (self.per_row().div_ceil(WARPS), self.layout.block_rows())
        } else {
            (self.layout.block_rows(), self.per_row())
        };
        let splits = wanted.div_ceil(across).clamp(1, along);
        let each = if transposed {
            along.div_ceil(splits)
        } else {
            along.div_ceil(splits).next_multiple_of(WARPS).min(MOST_GROUPS)
        };
        GroupPlan { at_once, groups, each, splits: along.div_ceil(each), tiles: None }
    }

    /// Scale groups of a block on tensor cores, and blocks of a block row: no more blocks than the device has at once, so that none waits
    /// for another's end, unless there are more block rows.
    fn tile_splits(
        &self,
        machine: &impl Machine<Memory = M>,
        product: &Product,
        tiles: &Tiles,
    ) -> (usize, usize) {
        let (along, block_rows) = (self.per_row(), self.layout.block_rows());
        let blocks = self.tile_blocks(tiles.form);
        let splits = (blocks * machine.multiprocessors() / (block_rows * tiles.groups)).clamp(1, along);
        // Inputs that are staged share a multiprocessor's memory with all else of as many blocks, if they can, and a block's in any case.
        let others = (self.table_len() + BUFFERS) * size_of::<f32>()
            + WARPS * STAGES * self.slot_bytes(tiles.form.loads());
        let staged = |blocks| {
            let floats = room(machine, blocks).saturating_sub(others) / size_of::<f32>();
            floats.saturating_sub(product.batch * WARPS) / (product.batch * WARP) / WARPS * WARPS
        };
        let beside = tiles.block_rows < block_rows;
        let most = match tiles.form {
            Form::Few | Form::FewExact if beside => staged(1).min(MOST_GROUPS),
            Form::Few | Form::FewExact => staged(1).min(staged(blocks).clamp(MOST_GROUPS, MOST_TILE_GROUPS)),
            _ if beside => MOST_GROUPS,
            Form::Many | Form::Exact | Form::Wide | Form::Broad => usize::MAX,
        };
        let each = along.div_ceil(splits).next_multiple_of(WARPS).min(most.max(WARPS));
        (each, along.div_ceil(each))
    }

    /// Blocks that a multiprocessor has at once, by the registers of their kernels.
    fn tile_blocks(&self, form: Form) -> usize {
        if matches!(form, Form::Wide | Form::Broad) { 1 } else { self.own.tile_blocks }
    }

    /// Bytes of a warp's step: what it is, vectors, and words, with one more where a share of them is followed by others'.
    fn slot_bytes(&self, step: LoadsOfStep) -> usize {
        let after = usize::from(step.shares > 1 && self.own.reads_on);
        (step.vectors + self.most_bits.div_ceil(step.shares) + after) * LOAD
    }

    /// Whether a block has room for the least steps of a form's warps.
    fn fits(&self, machine: &impl Machine<Memory = M>, form: Form) -> bool {
        let before = (self.table_len() + MOST_VECTORS) * size_of::<f32>();
        before + WARPS * STAGES * self.slot_bytes(form.loads()) <= machine.shared_bytes_limit()
    }

    /// What of a product goes to tensor cores: see `tiles.cuh`.
    fn tiles(&self, machine: &impl Machine<Memory = M>, product: &Product) -> Option<Tiles> {
        let Product { batch, transposed, element } = *product;
        let fits = self.own.row_scales.is_none() && self.layout.cols().is_multiple_of(4);
        if transposed || !fits {
            return None;
        }
        let heights = (0..self.layout.block_rows()).map(|row| self.layout.row_range(row).len());
        let heights: Vec<_> = heights.take_while(|height| *height >= TILE_ROWS).collect();
        if batch == 1 && heights.len() < self.layout.block_rows() && !self.own.tiles_beside {
            return None;
        }
        // Two at most of blocks of 256 rows with all three parts of each in one product, half as many of those of 128.
        let (few, many) = if *heights.last()? == TILE_ROWS { (1, 4) } else { (2, 8) };
        let (form, at_once) = match element {
            Element::F32 if batch <= few && self.own.has_few_exact => (Form::FewExact, few),
            _ if batch <= few => (Form::Few, few),
            Element::F16 | Element::BF16 if batch > 2 * many && self.fits(machine, Form::Broad) => {
                (Form::Broad, 4 * many)
            }
            Element::F16 | Element::BF16 if batch > many => (Form::Wide, 2 * many),
            Element::F16 | Element::BF16 => (Form::Many, many),
            Element::F32 => (Form::Exact, many),
        };
        Some(Tiles { block_rows: heights.len(), form, at_once, groups: batch.div_ceil(at_once) })
    }

    fn transposed_floats(&self, rows: usize) -> usize {
        self.table_len() + WARPS * rows * (self.max_lanes * QUAD_STRIDE + WARP)
    }
}

impl<D: Machine> DeviceTerm<D> for DeviceGroups<D::Memory> {
    /// Some passes on tensor cores: one more takes longer than to decode all of it and to read that again.
    fn most_tokens(&self, machine: &D, product: &Product) -> usize {
        let most = |tiles: Tiles| {
            let passes = if tiles.form == Form::Broad { self.own.broad_passes } else { PASSES };
            GEMV_MAX_BATCH.max(passes * tiles.at_once)
        };
        self.tiles(machine, product).map_or(GEMV_MAX_BATCH, most)
    }

    fn splits(&self, machine: &D, product: &Product) -> usize {
        self.plan(machine, product).splits
    }

    /// Inputs where one launch has all of the batch at once, and that of few enough block rows; results of all products with the
    /// matrix itself.
    fn takes(&self, machine: &D, product: &Product, input: &DeviceAxis<D::Memory>) -> Takes {
        if product.transposed {
            return Takes::default();
        }
        let block_rows = self.layout.block_rows();
        let is_one_pass = product.batch == 1
            || self
                .tiles(machine, product)
                .is_some_and(|tiles| tiles.form.stages() && tiles.block_rows == block_rows);
        let is_cheap = input.fast_items().is_some_and(|items| {
            items * product.batch * block_rows <= ITEMS_EACH * machine.multiprocessors()
        });
        Takes { inputs: is_one_pass && is_cheap, results: true }
    }

    fn product(&self, machine: &D, product: &Product, ends: &Ends<'_, D::Memory>) -> Result<()> {
        let GroupPlan { at_once, groups, each, splits, tiles } = self.plan(machine, product);
        let batch = product.batch;
        if product.transposed {
            let mut args = self.args();
            args.extend([ends.x(), Arg::Null, ends.own_parts(batch).arg()]);
            args.extend([batch, each, self.max_lanes].map(Arg::Int));
            let grid = [self.per_row().div_ceil(WARPS), splits, groups];
            let floats = self.transposed_floats(at_once);
            return machine.launch(self.launch(&format!("transposed_{at_once}"), grid, floats, args));
        }
        let args = |first: usize| {
            let mut args = self.args();
            args.extend(ends.args());
            args.extend([first, batch, each].map(Arg::Int));
            args
        };
        let tiled = tiles.as_ref().map_or(0, |tiles| tiles.block_rows);
        if let Some(Tiles { block_rows, form, groups, .. }) = tiles {
            // Inputs, and for each warp what is farthest from zero.
            let staged = if form.stages() { BUFFERS + batch * (each * WARP + WARPS) } else { MOST_VECTORS };
            let slots = Slots { at: self.table_len() + staged, bytes: self.slot_bytes(form.loads()) };
            let floats = slots.end().max(TILE_FLOATS);
            let kernel = format!("{}_{}", self.own.tiles, form.suffix());
            let mut args = args(0);
            args.extend(slots.args());
            args.push(Arg::Float(self.largest_scale));
            let launch = self.launch(&kernel, [block_rows, splits, groups], floats, args);
            machine.launch(Launch { waits: true, ..launch })?;
        }
        if tiled == self.layout.block_rows() {
            return Ok(());
        }
        let by_rows = self.own.row_scales.is_some();
        let scales = if by_rows { WARPS * self.max_lanes * SINGLE_STRIDE } else { 0 };
        let sums = WARPS * self.max_lanes * SINGLE_STRIDE;
        let staged = self.table_len().max(BUFFERS) + at_once * each * WARP + scales;
        let floats = staged.max(sums).max(BUFFERS + at_once * ELEMENTS);
        let kind = if by_rows { "rows_product" } else { "product" };
        let grid = [self.layout.block_rows() - tiled, splits, groups];
        machine.launch(self.launch(&format!("{kind}_{at_once}"), grid, floats, args(tiled)))
    }

    fn gather(
        &self,
        machine: &D,
        rows: &Gather<'_, D::Memory>,
        units: &D::Memory,
        partial: &Partial<'_, D::Memory>,
    ) -> Result<()> {
        let mut args = self.args();
        args.extend([Arg::Memory(units, 0), rows.arg(), partial.arg(), Arg::Int(rows.count)]);
        args.extend([Arg::Int(1), Arg::Int(self.max_lanes)]);
        let grid = [self.per_row().div_ceil(WARPS), 1, rows.count];
        machine.launch(self.launch("transposed_1", grid, self.transposed_floats(1), args))
    }

    fn fills_panels(&self) -> bool {
        true
    }

    /// See `panel` in `panel.cuh`.
    fn panel(&self, machine: &D, panel: &Panel<'_, D::Memory>, add: bool) -> Result<()> {
        let cut = self.layout.row_cut();
        let (first, end) = (panel.cols.start / GROUP_COLS, panel.cols.end.div_ceil(GROUP_COLS));
        let first_block_row = cut.block_of(panel.rows.start);
        let block_rows = cut.block_of(panel.rows.end - 1) + 1 - first_block_row;
        let slots =
            Slots { at: self.table_len(), bytes: self.slot_bytes(LoadsOfStep { vectors: 0, shares: 1 }) };
        let splits = (PANEL_BLOCKS * machine.multiprocessors() / block_rows).clamp(1, end - first);
        let each = (end - first).div_ceil(splits).next_multiple_of(WARPS);
        let mut args = self.args();
        args.push(Arg::Memory(panel.memory, 0));
        args.extend([first, end, each, first_block_row, panel.stride, usize::from(add)].map(Arg::Int));
        args.extend(slots.args());
        let grid = [(end - first).div_ceil(each), block_rows, 1];
        let kernel = format!("panel_{}", panel.element.suffix());
        machine.launch(self.launch(&kernel, grid, slots.end(), args))
    }
}

/// How a product is shared out among blocks.
struct GroupPlan {
    /// Rows of the batch that a thread sums at once, and how often.
    at_once: usize,
    groups: usize,
    /// Scale groups, or block rows, of one split.
    each: usize,
    splits: usize,
    tiles: Option<Tiles>,
}

/// How vectors are shared out, as `tiles.cuh` has it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Few,
    FewExact,
    Many,
    Exact,
    Wide,
    Broad,
}

impl Form {
    /// Whether a block has its inputs in shared memory.
    fn stages(self) -> bool {
        matches!(self, Form::Few | Form::FewExact)
    }

    /// What a warp's step loads: `SETS`, where vectors are not staged, and `SHARES` of `tiles.cuh`.
    fn loads(self) -> LoadsOfStep {
        let (vectors, shares) = match self {
            Form::Few | Form::FewExact => (0, 1),
            Form::Many | Form::Exact => (1, 1),
            Form::Wide => (2, 1),
            Form::Broad => (4, 2),
        };
        LoadsOfStep { vectors, shares }
    }

    /// What the kernels' names end in.
    fn suffix(self) -> &'static str {
        match self {
            Form::Few => "few",
            Form::FewExact => "few_exact",
            Form::Many => "many",
            Form::Exact => "exact",
            Form::Wide => "wide",
            Form::Broad => "broad",
        }
    }
}

/// What a warp's step loads beside its words.
#[derive(Clone, Copy)]
struct LoadsOfStep {
    /// Vectors that travel with it.
    vectors: usize,
    /// Warps that share its words.
    shares: usize,
}

/// Bytes of shared memory for each of so many blocks of a multiprocessor.
fn room<M>(machine: &impl Machine<Memory = M>, blocks: usize) -> usize {
    ((machine.shared_bytes_limit() + RESERVED_BYTES) / blocks).saturating_sub(RESERVED_BYTES)
}

/// Where the warps' steps lie in shared memory: see `ring.cuh`.
struct Slots {
    /// Floats before them.
    at: usize,
    /// Of each step.
    bytes: usize,
}

impl Slots {
    /// Floats until their end.
    fn end(&self) -> usize {
        self.at + WARPS * STAGES * self.bytes / size_of::<f32>()
    }

    fn args<'a, M>(&self) -> [Arg<'a, M>; 2] {
        [self.at, self.bytes].map(Arg::Int)
    }
}

/// The part of a product that is for tensor cores.
struct Tiles {
    /// The first so many.
    block_rows: usize,
    form: Form,
    /// So many vectors, where all blocks are as high as the lowest.
    at_once: usize,
    /// How often, for all of the batch.
    groups: usize,
}

/// The scale groups' table and words, block rows on all cores; `fill` is that of [`DeviceGroups::new`].
fn lay_out(
    layout: Layout,
    fill: impl Fn(&mut BlockCodes, Block, &mut [u8]) -> Source + Sync,
) -> Result<(Vec<u32>, Vec<u32>)> {
    let scale_groups: Vec<_> = scale_groups(layout).collect();
    let block_rows: Vec<_> = scale_groups
        .par_chunks(layout.cols().div_ceil(GROUP_COLS))
        .map(|scale_groups| {
            let (mut held, mut fields, mut data) = (BlockCodes::default(), Vec::new(), Vec::new());
            let entry = |scale_group: &Block| {
                let lanes = lanes_of(scale_group.height);
                fields.resize(GROUP_COLS * lanes * PIECE, 0);
                let source = fill(&mut held, *scale_group, &mut fields);
                let start = data.len();
                push_words(&fields, lanes, usize::from(source.bits), &mut data);
                (start, source)
            };
            let entries: Vec<_> = scale_groups.iter().map(entry).collect();
            (entries, data)
        })
        .collect();
    let (mut table, mut data) = (Vec::with_capacity(4 * scale_groups.len()), Vec::new());
    for (entries, own) in block_rows {
        for (start, source) in entries {
            let start = u32::try_from(data.len() + start).map_err(|_| {
                Error::shape("a term of more than 16 GiB on a CUDA device: split the weight by its rows")
            })?;
            table.extend([start, u32::from(source.bits), source.scale.to_bits(), source.number]);
        }
        data.extend(own);
    }
    Ok((table, data))
}

/// The words of one scale group in the order in which threads load them.
fn push_words(fields: &[u8], lanes: usize, bits: usize, data: &mut Vec<u32>) {
    let together = if lanes >= 4 { 4 } else { 1 };
    let slots = WARP / lanes;
    for group in 0..lanes / together {
        for load in 0..bits {
            for lane in 0..WARP {
                let (piece, slot) = piece_and_slot(lane, lanes);
                for element in 0..together {
                    let column = (group * slots + slot) * together + element;
                    let piece = &fields[(column * lanes + piece) * PIECE..][..PIECE];
                    data.push(word(piece, bits, load));
                }
            }
        }
    }
}

/// Word `index` of the stream of 32 fields of `bits` bits.
fn word(fields: &[u8], bits: usize, index: usize) -> u32 {
    let first = index * 32 / bits;
    let fields = fields.iter().enumerate().skip(first).take(32 / bits + 2);
    fields.fold(0, |word, (n, field)| {
        let at = (n * bits).cast_signed() - (index * 32).cast_signed();
        let field = u64::from(*field);
        word | if at < 0 { field >> -at } else { field << at } as u32
    })
}
