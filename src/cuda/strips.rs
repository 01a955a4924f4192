//! Planes and trellis on the device: strips of 32 columns as `strips.cuh` has them.

use super::axis::{floats, words};
use super::machine::{Arg, Element, Launch, Machine, Module};
use crate::error::{Error, Result};
use rayon::prelude::*;
use rbe_core::codec::Block;
use rbe_core::codec::Layout;
use rbe_core::codec::term::planes::ScaleGroup;
use rbe_core::codec::term::trellis::{Code, STATE_BITS, STRIP, strips};
use rbe_core::codec::term::{Planes, Trellis};

/// Threads of a block, and its warps, as the kernels have them.
pub(super) const THREADS: usize = 256;
pub(super) const WARPS: usize = 8;
const WARP: usize = 32;
/// Rows of a piece.
const PIECE: usize = 32;
/// Distances of pieces in shared memory.
const SINGLE_STRIDE: usize = PIECE + 1;
const QUAD_STRIDE: usize = PIECE + 4;
/// The most strips of a block row for one block: their inputs lie in shared memory.
const MOST_STRIPS: usize = 64;
/// Blocks for each multiprocessor, so that none waits for the last.
const BLOCKS_EACH: usize = 4;
/// Tokens that a thread sums at once.
pub(super) const TOKENS: usize = 4;

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

/// A term's strips in the device's memory.
pub(super) struct DeviceStrips<M> {
    module: Module,
    layout: Layout,
    table: M,
    words: M,
    /// The trellis' tables.
    values: Option<M>,
    row_scales: Option<M>,
    /// What multiplies the row scales.
    unit: f32,
    /// Floats of shared memory that the code's table takes.
    table_len: usize,
    max_lanes: usize,
}

/// One strip on its way to the device.
struct Source {
    bits: u8,
    scale: f32,
    /// The code's own number.
    number: u32,
}

/// The codes of the block whose strips are at hand.
#[derive(Default)]
struct BlockCodes {
    block: Option<usize>,
    codes: Vec<u8>,
}

impl BlockCodes {
    /// The codes of a block, which `fill` writes where they are another's.
    fn of(&mut self, block: Block, fill: impl FnOnce(&mut [u8])) -> &[u8] {
        if self.block != Some(block.index) {
            self.block = Some(block.index);
            self.codes.resize(block.len(), 0);
            fill(&mut self.codes);
        }
        &self.codes
    }
}

impl<M> DeviceStrips<M> {
    pub(super) fn planes(machine: &impl Machine<Memory = M>, layout: Layout, term: &Planes) -> Result<Self> {
        let by_rows = term.group() == ScaleGroup::Row;
        let (table, data) = lay_out(layout, |held, strip, fields| {
            let block = layout.block_with(strip.row, strip.col);
            let codes = held.of(block, |codes| term.codes(block, codes));
            fields.fill(0);
            for (col, fields) in fields.chunks_exact_mut(fields.len() / STRIP).enumerate().take(strip.width) {
                let first = strip.col - block.col + col;
                let column = codes[first..].iter().step_by(block.width);
                fields.iter_mut().zip(column).for_each(|(field, code)| *field = *code);
            }
            // A coefficient is half the scale times an odd integer.
            let scale = if by_rows { 1.0 } else { 0.5 * term.scale(block, 0) };
            Source { bits: term.planes(block), scale, number: 0 }
        })?;
        let row_scales = if by_rows { Some(machine.upload(&row_scales(layout, term))?) } else { None };
        Self::new(machine, Module::Planes, layout, &table, &data, None, row_scales, 0.5 * term.unit())
    }

    pub(super) fn trellis(
        machine: &impl Machine<Memory = M>,
        layout: Layout,
        term: &Trellis,
    ) -> Result<Self> {
        let (table, data) = lay_out(layout, |_, strip, fields| {
            let block = layout.block_with(strip.row, strip.col);
            let mut source = Source { bits: 0, scale: 0.0, number: 0 };
            fields.fill(0);
            for (col, fields) in fields.chunks_exact_mut(fields.len() / STRIP).enumerate().take(strip.width) {
                let Some((column, scale)) = term.column(block, strip.col - block.col + col) else { break };
                let code = column.code();
                source = Source { bits: code.bits(), scale, number: code.state_bits().into() };
                // Below the block the cycle goes on from its beginning.
                for (row, field) in fields.iter_mut().enumerate() {
                    *field = (column.state(row % strip.height) & ((1 << code.bits()) - 1)) as u8;
                }
            }
            source
        })?;
        let values = machine.upload(&trellis_tables())?;
        Self::new(machine, Module::Trellis, layout, &table, &data, Some(values), None, 0.0)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields")]
    fn new(
        machine: &impl Machine<Memory = M>,
        module: Module,
        layout: Layout,
        table: &[u32],
        data: &[u32],
        values: Option<M>,
        row_scales: Option<M>,
        unit: f32,
    ) -> Result<Self> {
        Ok(Self {
            module,
            layout,
            table: machine.upload(&words(table.iter().copied()))?,
            words: machine.upload(&words(data.iter().copied()))?,
            table_len: if values.is_some() { BOOKS.len() * BOOK_FLOATS * WARP } else { 0 },
            values,
            row_scales,
            unit,
            max_lanes: layout.row_cut().iter().map(|rows| lanes_of(rows.len())).max().unwrap_or(1),
        })
    }

    fn per_row(&self) -> usize {
        self.layout.cols().div_ceil(STRIP)
    }

    fn args(&self) -> Vec<Arg<'_, M>> {
        vec![
            Arg::Memory(&self.table, 0),
            Arg::Memory(&self.words, 0),
            Arg::optional(self.values.as_ref(), 0),
            Arg::optional(self.row_scales.as_ref(), 0),
            Arg::Float(self.unit),
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
            module: self.module,
            kernel: format!("{}_{kernel}", self.module.name()),
            grid,
            threads: THREADS,
            shared_bytes: floats * size_of::<f32>(),
            args,
        }
    }

    /// How a product with `tokens` vectors is shared out.
    pub(super) fn plan(
        &self,
        machine: &impl Machine<Memory = M>,
        tokens: usize,
        transposed: bool,
    ) -> StripPlan {
        // Row scales take one token at a time: they are rare, and a second factor takes registers.
        let one = tokens == 1 || (self.row_scales.is_some() && !transposed);
        let fits = |tokens| {
            let floats = self.transposed_floats(tokens);
            !transposed || floats * size_of::<f32>() <= machine.shared_bytes_limit()
        };
        let tokens_at_once = if one || !fits(TOKENS) { 1 } else { TOKENS };
        let groups = tokens.div_ceil(tokens_at_once);
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
            along.div_ceil(splits).next_multiple_of(WARPS).min(MOST_STRIPS)
        };
        StripPlan { tokens, tokens_at_once, transposed, each, splits: along.div_ceil(each) }
    }

    fn transposed_floats(&self, tokens: usize) -> usize {
        self.table_len + WARPS * tokens * (self.max_lanes * QUAD_STRIDE + WARP)
    }

    /// The product's parts into `partial` from `offset` floats on: `(splits, tokens, out)`.
    pub(super) fn product(
        &self,
        machine: &impl Machine<Memory = M>,
        plan: StripPlan,
        x: &M,
        partial: &M,
        offset: usize,
    ) -> Result<()> {
        let StripPlan { tokens, tokens_at_once, transposed, each, splits } = plan;
        let groups = tokens.div_ceil(tokens_at_once);
        let out = Arg::Memory(partial, offset * size_of::<f32>());
        let mut args = self.args();
        args.push(Arg::Memory(x, 0));
        if transposed {
            args.extend([Arg::Null, out, Arg::Int(tokens), Arg::Int(each), Arg::Int(self.max_lanes)]);
            let grid = [self.per_row().div_ceil(WARPS), splits, groups];
            let floats = self.transposed_floats(tokens_at_once);
            return machine.launch(self.launch(&format!("transposed_{tokens_at_once}"), grid, floats, args));
        }
        args.extend([out, Arg::Int(tokens), Arg::Int(each)]);
        let scales = if self.row_scales.is_some() { WARPS * self.max_lanes * SINGLE_STRIDE } else { 0 };
        let sums = WARPS * self.max_lanes * SINGLE_STRIDE;
        let floats = (self.table_len + tokens_at_once * each * WARP + scales).max(sums);
        let kind = if self.row_scales.is_some() { "rows_product" } else { "product" };
        let grid = [self.layout.block_rows(), splits, groups];
        machine.launch(self.launch(&format!("{kind}_{tokens_at_once}"), grid, floats, args))
    }

    /// Rows `ids` in the coefficient domain of the columns, `(ids, cols)`; `units` is what the axis made of the ids.
    pub(super) fn gather(
        &self,
        machine: &impl Machine<Memory = M>,
        ids: (&M, usize),
        count: usize,
        units: &M,
        partial: &M,
        offset: usize,
    ) -> Result<()> {
        let mut args = self.args();
        args.extend([Arg::Memory(units, 0), Arg::Memory(ids.0, ids.1 * size_of::<u32>())]);
        args.extend([Arg::Memory(partial, offset * size_of::<f32>()), Arg::Int(count)]);
        args.extend([Arg::Int(1), Arg::Int(self.max_lanes)]);
        let grid = [self.per_row().div_ceil(WARPS), 1, count];
        machine.launch(self.launch("transposed_1", grid, self.transposed_floats(1), args))
    }

    /// A range of block rows and strips, decoded: see `panel` in `strips.cuh`.
    pub(super) fn panel(
        &self,
        machine: &impl Machine<Memory = M>,
        panel: &Panel<'_, M>,
        add: bool,
    ) -> Result<()> {
        let rows = self.layout.row_cut();
        let (first, end) = (panel.first_col / STRIP, panel.end_col.div_ceil(STRIP));
        let first_block_row = rows.block_of(panel.first_row);
        let block_rows = rows.block_of(panel.end_row - 1) + 1 - first_block_row;
        let mut args = self.args();
        args.extend([
            Arg::Memory(panel.memory, 0),
            Arg::Int(first),
            Arg::Int(end),
            Arg::Int(first_block_row),
        ]);
        args.extend([Arg::Int(panel.stride), Arg::Int(usize::from(add))]);
        let grid = [(end - first).div_ceil(WARPS), block_rows, 1];
        let kernel = format!("panel_{}", panel.element.suffix());
        machine.launch(self.launch(&kernel, grid, self.table_len, args))
    }
}

/// How a product is shared out among blocks.
#[derive(Clone, Copy)]
pub(super) struct StripPlan {
    tokens: usize,
    tokens_at_once: usize,
    transposed: bool,
    /// Strips, or block rows, of one split.
    each: usize,
    pub splits: usize,
}

/// A dense piece of the coefficients, column by column: `(cols, stride)`; it begins at block boundaries.
pub(super) struct Panel<'a, M> {
    pub memory: &'a M,
    pub element: Element,
    pub first_row: usize,
    pub end_row: usize,
    pub first_col: usize,
    pub end_col: usize,
    /// Rows, filled up to whole pieces.
    pub stride: usize,
}

/// Numbers of bits whose codes differ in their tables; one bit has those of two.
const BOOKS: [u8; 3] = [2, 3, 4];
/// Levels, how often the offset counts at each, and offsets.
const BOOK_FLOATS: usize = 3 * 16;

/// The trellis kernels' tables, by [windows](rbe_core::codec::term::trellis::Windows): of each book the floats, and then of each
/// what windows change others to, four bits each: two tables for levels and two for offsets.
fn trellis_tables() -> Vec<u8> {
    let books = BOOKS.map(|bits| Code::new(bits, *STATE_BITS.end()).windows());
    let tables = books.iter().flat_map(|book| {
        let times = book.doubled.map(|doubled| if doubled { 2.0 } else { 1.0 });
        [book.levels.map(f32::from), times, book.offsets.map(f32::from)].into_iter().flatten()
    });
    let mixes = books.iter().flat_map(|book| book.mix_level.into_iter().chain(book.mix_offset));
    let nibbles = mixes.flat_map(|mix| {
        let word = |half: &[u8]| half.iter().rev().fold(0, |word, window| word << 4 | u32::from(*window));
        [word(&mix[..8]), word(&mix[8..])]
    });
    [floats(tables), words(nibbles)].concat()
}

/// `(block columns, rows)` F16 scales.
fn row_scales(layout: Layout, term: &Planes) -> Vec<u8> {
    let scale = |i: usize, j: usize, row: usize| {
        let block = layout.block_at(i, j);
        half::f16::from_f32(term.scale(block, row - block.row) / term.unit())
    };
    (0..layout.block_cols())
        .flat_map(|j| (0..layout.rows()).map(move |row| (j, row)))
        .flat_map(|(j, row)| scale(layout.row_cut().block_of(row), j, row).to_le_bytes())
        .collect()
}

/// The strips' table and words, block rows on all cores. `fill` writes a strip's fields, `(32 columns, rows filled up to
/// whole pieces)`; what it keeps in its first argument it finds again at the block row's next strip.
fn lay_out(
    layout: Layout,
    fill: impl Fn(&mut BlockCodes, Block, &mut [u8]) -> Source + Sync,
) -> Result<(Vec<u32>, Vec<u32>)> {
    let strips: Vec<_> = strips(layout).collect();
    let block_rows: Vec<_> = strips
        .par_chunks(layout.cols().div_ceil(STRIP))
        .map(|strips| {
            let (mut held, mut fields, mut data) = (BlockCodes::default(), Vec::new(), Vec::new());
            let entry = |strip: &Block| {
                let lanes = lanes_of(strip.height);
                fields.resize(STRIP * lanes * PIECE, 0);
                let source = fill(&mut held, *strip, &mut fields);
                let start = data.len();
                push_words(&fields, lanes, usize::from(source.bits), &mut data);
                (start, source)
            };
            let entries: Vec<_> = strips.iter().map(entry).collect();
            (entries, data)
        })
        .collect();
    let (mut table, mut data) = (Vec::with_capacity(4 * strips.len()), Vec::new());
    for (entries, own) in block_rows {
        for (start, source) in entries {
            let start = u32::try_from(data.len() + start)
                .map_err(|_| Error::shape("a term of more than 16 GiB; a device's strips hold less"))?;
            table.extend([start, u32::from(source.bits), source.scale.to_bits(), source.number]);
        }
        data.extend(own);
    }
    Ok((table, data))
}

/// The words of one strip in the order in which threads load them.
fn push_words(fields: &[u8], lanes: usize, bits: usize, data: &mut Vec<u32>) {
    let together = if lanes >= 4 { 4 } else { 1 };
    let slots = WARP / lanes;
    for group in 0..lanes / together {
        for load in 0..bits {
            for lane in 0..WARP {
                for element in 0..together {
                    let flat = load * together + element;
                    let column = (group * slots + lane / lanes) * together + flat / bits;
                    let piece = &fields[(column * lanes + lane % lanes) * PIECE..][..PIECE];
                    data.push(word(piece, bits, flat % bits));
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
