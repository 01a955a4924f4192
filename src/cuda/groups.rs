//! Planes and trellis on the device: scale groups of 32 columns as `groups.cuh` has them.

use super::axis::{DeviceAxis, words};
use super::blocks::{BUFFERS, ELEMENTS, THREADS, WARP, WARPS, blocks_at_once, room};
use super::ends::Ends;
use super::lay_out::{BlockCodes, PIECE, Source, lanes_of, lay_out};
use super::machine::{Arg, Element, Launch, Machine, Module};
use super::operands::{Gather, Panel, Partial, Product};
use super::term::{DeviceTerm, GEMV_MAX_BATCH, Takes};
use super::tiles::{Form, LOAD, LoadsOfStep, MOST_VECTORS, PASSES, STAGES, Slots, TILE_FLOATS, Tiles};
use crate::error::Result;
use rbe_core::codec::term::trellis::GROUP_COLS;
use rbe_core::codec::{Block, Layout};
use std::sync::Arc;

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
/// Blocks of a panel's kernels that a multiprocessor has at once, as they have it.
const PANEL_BLOCKS: usize = 2;
/// Blocks of so many rows go to tensor cores.
const TILE_ROWS: usize = 128;
/// What blocks transform of inputs, all of them together, for each multiprocessor: in 256 elements. Each block row does it again, which
/// is a seventh of what its weights take where its blocks have 256 rows. Beyond about so many, 4 microseconds on an H100, a
/// launch that does it once is shorter.
const ITEMS_EACH: usize = 32;

/// A term's scale groups in the device's memory.
pub(super) struct DeviceGroups<M> {
    layout: Layout,
    /// First word, bits, scale and the code's own of each.
    entries: Vec<u32>,
    table: M,
    /// Where first words are counted from, and what else they lie in.
    words: Arc<M>,
    others: Vec<Arc<M>>,
    max_lanes: usize,
    /// Of a weight.
    most_bits: usize,
    /// The scale that is farthest from zero.
    largest_scale: f32,
    own: Arc<Own<M>>,
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

impl<M> DeviceGroups<M> {
    /// Lays out a term's scale groups, whose fields `fill` writes: see [`lay_out`].
    pub(super) fn new(
        machine: &impl Machine<Memory = M>,
        layout: Layout,
        own: Own<M>,
        fill: impl Fn(&mut BlockCodes, Block, &mut [u8]) -> Source + Sync,
    ) -> Result<Self> {
        let (entries, data) = lay_out(layout, fill)?;
        let data = Arc::new(machine.upload(&words(data))?);
        Self::of(machine, layout, entries, (data, Vec::new()), Arc::new(own))
    }

    fn of(
        machine: &impl Machine<Memory = M>,
        layout: Layout,
        entries: Vec<u32>,
        (first_words, others): (Arc<M>, Vec<Arc<M>>),
        own: Arc<Own<M>>,
    ) -> Result<Self> {
        let most_bits = entries.iter().skip(1).step_by(4).fold(1, |most, bits| most.max(*bits)) as usize;
        let scales = entries.iter().skip(2).step_by(4).map(|bits| f32::from_bits(*bits));
        let largest_scale = scales.fold(0f32, |largest, scale| largest.max(scale.abs()));
        let max_lanes = layout.row_cut().iter().map(|rows| lanes_of(rows.len())).max().unwrap_or(1);
        let table = machine.upload(&words(entries.iter().copied()))?;
        Ok(Self {
            layout,
            entries,
            table,
            words: first_words,
            others,
            max_lanes,
            most_bits,
            largest_scale,
            own,
        })
    }

    /// The scale groups of terms that lie one below the other, as those of one of this layout; their words stay where they are. `None` where
    /// they are not of one kind, rows have scales of their own, or words lie too far from each other for a table to count.
    pub(super) fn stacked(
        machine: &impl Machine<Memory = M>,
        layout: Layout,
        parts: &[&Self],
    ) -> Result<Option<Self>> {
        const WORD: u64 = size_of::<u32>() as u64;
        let address = |part: &&Self| machine.address(&part.words);
        let Some(lowest) = parts.iter().copied().min_by_key(address) else { return Ok(None) };
        let own = lowest.own.clone();
        let is_alike = |part: &&Self| {
            part.own.row_scales.is_none()
                && (part.own.module, part.own.tiles) == (own.module, own.tiles)
                && part.others.is_empty()
        };
        if !parts.iter().all(is_alike) {
            return Ok(None);
        }
        let mut entries = Vec::new();
        for part in parts {
            let apart = address(part) - machine.address(&lowest.words);
            // A load is of four words.
            if !apart.is_multiple_of(4 * WORD) {
                return Ok(None);
            }
            for entry in part.entries.as_chunks::<4>().0 {
                let Ok(first) = u32::try_from(apart / WORD + u64::from(entry[0])) else { return Ok(None) };
                entries.extend([first, entry[1], entry[2], entry[3]]);
            }
        }
        let words = parts.iter().map(|part| part.words.clone()).collect();
        Self::of(machine, layout, entries, (lowest.words.clone(), words), own).map(Some)
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
        let blocks = self.tile_blocks(machine, tiles.form);
        let splits = (blocks * machine.multiprocessors() / (block_rows * tiles.groups)).clamp(1, along);
        // Inputs that are staged share a multiprocessor's memory with all else of as many blocks, if they can, and a block's in any case.
        let others = self.least_bytes(tiles.form);
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

    /// Blocks that a multiprocessor has at once, by the registers of their kernels and by its shared memory.
    fn tile_blocks(&self, machine: &impl Machine<Memory = M>, form: Form) -> usize {
        let by_registers = if matches!(form, Form::Wide | Form::Broad) { 1 } else { self.own.tile_blocks };
        blocks_at_once(machine, self.least_bytes(form).max(TILE_FLOATS * size_of::<f32>()), by_registers)
    }

    /// Bytes of shared memory of a block of a form, but for inputs that it stages.
    fn least_bytes(&self, form: Form) -> usize {
        let inputs = if form.stages() { BUFFERS } else { MOST_VECTORS };
        (self.table_len() + inputs) * size_of::<f32>() + WARPS * STAGES * self.slot_bytes(form.loads())
    }

    /// Bytes of a warp's step: what it is, vectors, and words, with one more where a share of them is followed by others'.
    fn slot_bytes(&self, step: LoadsOfStep) -> usize {
        let after = usize::from(step.shares > 1 && self.own.reads_on);
        (step.vectors + self.most_bits.div_ceil(step.shares) + after) * LOAD
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
        // Two at most of blocks of 256 rows with both parts of each in one product, half as many of those of 128.
        let (few, many) = if *heights.last()? == TILE_ROWS { (1, 4) } else { (2, 8) };
        let (form, at_once) = match element {
            Element::F32 if batch <= few && self.own.has_few_exact => (Form::FewExact, few),
            _ if batch <= few => (Form::Few, few),
            Element::F16 | Element::BF16
                if batch > 2 * many && self.least_bytes(Form::Broad) <= machine.shared_bytes_limit() =>
            {
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
        let blocks = blocks_at_once(machine, slots.end() * size_of::<f32>(), PANEL_BLOCKS);
        let splits = (blocks * machine.multiprocessors() / block_rows).clamp(1, end - first);
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
