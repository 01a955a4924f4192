//! The sparse term on the device: one output's coefficients after another, as `sparse.cu` has them.

use super::axis::{floats, words};
use super::blocks::{THREADS, WARPS};
use super::ends::Ends;
use super::groups::BATCH_TILE;
use super::machine::{Arg, Launch, Machine, Module};
use super::operands::{Gather, Panel, Partial, Product};
use super::term::DeviceTerm;
use crate::error::{Error, Result};
use rbe_core::codec::term::Sparse;
use rbe_core::codec::term::sparse::Format;
use rbe_core::codec::term::sparse::format::MU_LAW;
use rbe_core::codec::{Layout, Sides};
use std::sync::OnceLock;

/// Inputs that a 16-bit position can name.
const PART: usize = 1 << 16;
/// Words of one load: lists are filled up to whole ones.
const PER_LOAD: usize = 4;
const MASK_BITS: usize = 32;

/// The term, laid out by rows for products and panels and by columns for transposed products and for single rows; each
/// when it is first asked for, so that who needs one has one.
pub(super) struct DeviceSparse<M> {
    term: Sparse,
    layout: Layout,
    by_rows: OnceLock<Lists<M>>,
    by_columns: OnceLock<Lists<M>>,
}

/// Coefficients by outputs.
struct Lists<M> {
    starts: M,
    kind: Kind<M>,
    /// Sets of lists, one for each `PART` inputs.
    parts: usize,
}

enum Kind<M> {
    Words { words: M, scales: Option<M>, levels: M },
    Masks { masks: M, values: M },
}

/// A coefficient on its way to the device.
#[derive(Clone, Copy)]
struct Entry {
    out: usize,
    input: usize,
    field: u16,
}

impl<M> DeviceSparse<M> {
    pub(super) fn new(layout: Layout, term: &Sparse) -> Self {
        Self { term: term.clone(), layout, by_rows: OnceLock::new(), by_columns: OnceLock::new() }
    }

    /// Outputs and inputs.
    fn sides(&self, transposed: bool) -> (usize, usize) {
        let sides = Sides::new(self.layout, transposed);
        (sides.output().elements(), sides.input().elements())
    }

    fn place(&self, transposed: bool) -> &OnceLock<Lists<M>> {
        if transposed { &self.by_columns } else { &self.by_rows }
    }

    /// The lists of one direction, laid out if that has not been done.
    fn lists(&self, machine: &impl Machine<Memory = M>, transposed: bool) -> Result<&Lists<M>> {
        let place = self.place(transposed);
        if place.get().is_none() {
            let lists = self.lay_out(machine, transposed)?;
            // They are there before another thread can hear of them.
            machine.wait()?;
            // Where two threads get here at once, one of the two equal layouts is dropped.
            let _ = place.set(lists);
        }
        place.get().ok_or_else(|| Error::config("the sparse term's lists were not laid out"))
    }

    /// Every coefficient, sorted by output and then input.
    fn entries(&self, transposed: bool) -> Vec<Entry> {
        let mut entries = Vec::with_capacity(self.term.coefficients());
        for block in self.layout.iter() {
            self.term.for_each_field(block, 0..block.height, |row, col, field| {
                let (row, col) = (block.row + row, block.col + col);
                let (out, input) = if transposed { (col, row) } else { (row, col) };
                entries.push(Entry { out, input, field });
            });
        }
        entries.sort_unstable_by_key(|entry| (entry.input / PART, entry.out, entry.input));
        entries
    }

    fn lay_out(&self, machine: &impl Machine<Memory = M>, transposed: bool) -> Result<Lists<M>> {
        let (outs, inputs) = self.sides(transposed);
        let entries = self.entries(transposed);
        let too_large = |_| Error::shape("a sparse term of more than 4 G coefficients");
        let masks = self.term.format() == Format::RowMask;
        let parts = if masks { 1 } else { inputs.div_ceil(PART) };
        let (mut starts, mut list, mut next) = (Vec::with_capacity(parts * outs + 1), Vec::new(), 0);
        if masks {
            let width = inputs.div_ceil(MASK_BITS);
            let mut bits = vec![0u32; outs * width];
            // Masks have one part whatever its length: the order of outputs, then inputs.
            let mut entries = entries;
            entries.sort_unstable_by_key(|entry| (entry.out, entry.input));
            for out in 0..outs {
                starts.push(u32::try_from(next).map_err(too_large)?);
                next += entries[next..].iter().take_while(|entry| entry.out == out).count();
            }
            for entry in &entries {
                bits[entry.out * width + entry.input / MASK_BITS] |= 1 << (entry.input % MASK_BITS);
            }
            let values = entries.iter().flat_map(|entry| entry.field.to_le_bytes());
            let kind = Kind::Masks {
                masks: machine.upload(&words(bits))?,
                values: machine.upload(&values.collect::<Vec<_>>())?,
            };
            return Ok(Lists { starts: machine.upload(&words(starts))?, kind, parts });
        }
        for (part, out) in (0..parts).flat_map(|part| (0..outs).map(move |out| (part, out))) {
            starts.push(u32::try_from(list.len()).map_err(too_large)?);
            let own = entries[next..]
                .iter()
                .take_while(|entry| (entry.input / PART, entry.out) == (part, out))
                .count();
            let position = |entry: &Entry| ((entry.input % PART) as u32) << 16;
            let own = &entries[next..next + own];
            next += own.len();
            list.extend(own.iter().map(|entry| position(entry) | u32::from(entry.field)));
            if let Some(last) = own.last() {
                // What fills a list up has the value 0 where the last entry is, so positions stay in order.
                list.resize(list.len().next_multiple_of(PER_LOAD), position(last));
            }
        }
        starts.push(u32::try_from(list.len()).map_err(too_large)?);
        let has_scales = matches!(self.term.format(), Format::Word24 | Format::Word24Mu);
        let scales = self.layout.iter().map(|block| self.term.scale(block));
        let kind = Kind::Words {
            words: machine.upload(&words(list))?,
            scales: if has_scales { Some(machine.upload(&floats(scales))?) } else { None },
            levels: machine.upload(&floats(*MU_LAW))?,
        };
        Ok(Lists { starts: machine.upload(&words(starts))?, kind, parts })
    }

    fn args<'a>(&self, lists: &'a Lists<M>, transposed: bool) -> (&'static str, Vec<Arg<'a, M>>) {
        let (outs, inputs) = self.sides(transposed);
        let unit = Arg::Float(self.term.unit());
        match &lists.kind {
            Kind::Masks { masks, values } => {
                let memory = [&lists.starts, masks, values].map(|memory| Arg::Memory(memory, 0));
                let mut args = Vec::from(memory);
                args.extend([unit, Arg::Int(outs), Arg::Int(inputs)]);
                ("masks", args)
            }
            Kind::Words { words, scales, levels } => {
                // As `enum Format` has them.
                let format = match self.term.format() {
                    Format::Word24 => 1,
                    Format::Word24Mu => 2,
                    Format::Word32 | Format::RowMask => 0,
                };
                let block_cols = self.layout.block_cols();
                let (out_stride, in_stride) = if transposed { (1, block_cols) } else { (block_cols, 1) };
                let mut args = vec![Arg::Memory(&lists.starts, 0), Arg::Memory(words, 0)];
                args.extend([
                    Arg::optional(scales.as_ref(), 0),
                    Arg::Memory(levels, 0),
                    unit,
                    Arg::Int(format),
                ]);
                args.extend([outs, inputs, self.layout.block(), out_stride, in_stride].map(Arg::Int));
                ("words", args)
            }
        }
    }

    fn launch<'a>(kernel: String, grid: [usize; 3], args: Vec<Arg<'a, M>>) -> Launch<'a, M> {
        Launch { module: Module::Sparse, kernel, grid, threads: THREADS, shared_bytes: 0, waits: false, args }
    }
}

impl<D: Machine> DeviceTerm<D> for DeviceSparse<D::Memory> {
    fn prepare(&self, machine: &D, transposed: bool) -> Result<()> {
        self.lists(machine, transposed).map(|_| ())
    }

    fn splits(&self, _: &D, product: &Product) -> usize {
        let (_, inputs) = self.sides(product.transposed);
        if self.term.format() == Format::RowMask { 1 } else { inputs.div_ceil(PART) }
    }

    fn product(&self, machine: &D, product: &Product, ends: &Ends<'_, D::Memory>) -> Result<()> {
        let Product { batch, transposed, .. } = *product;
        let lists = self.lists(machine, transposed)?;
        let (kind, mut args) = self.args(lists, transposed);
        args.extend([ends.x(), ends.own_parts(batch).arg(), Arg::Int(batch)]);
        let at_once = if batch == 1 { 1 } else { BATCH_TILE };
        let (outs, _) = self.sides(transposed);
        let grid = [outs.div_ceil(WARPS), lists.parts, batch.div_ceil(at_once)];
        machine.launch(Self::launch(format!("sparse_{kind}_product_{at_once}"), grid, args))
    }

    fn gather(
        &self,
        machine: &D,
        rows: &Gather<'_, D::Memory>,
        units: &D::Memory,
        partial: &Partial<'_, D::Memory>,
    ) -> Result<()> {
        let lists = self.lists(machine, true)?;
        let (kind, mut args) = self.args(lists, true);
        args.extend([rows.arg(), Arg::Memory(units, 0)]);
        if kind == "masks" {
            args.push(Arg::Int(self.layout.block()));
        }
        args.push(partial.arg());
        let grid = [rows.count, self.layout.cols().div_ceil(THREADS), 1];
        machine.launch(Self::launch(format!("sparse_{kind}_gather"), grid, args))
    }

    /// Adds to what is there, which is zero where nothing is to be added to.
    fn panel(&self, machine: &D, panel: &Panel<'_, D::Memory>, _add: bool) -> Result<()> {
        let lists = self.lists(machine, false)?;
        let (kind, mut args) = self.args(lists, false);
        args.push(Arg::Memory(panel.memory, 0));
        let range = [panel.rows.start, panel.rows.end, panel.cols.start, panel.cols.end, panel.stride];
        args.extend(range.map(Arg::Int));
        let grid = [panel.rows.len().div_ceil(WARPS), lists.parts, 1];
        let kernel = format!("sparse_{kind}_panel_{}", panel.element.suffix());
        machine.launch(Self::launch(kernel, grid, args))
    }
}
