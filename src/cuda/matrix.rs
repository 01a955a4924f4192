//! A compressed matrix on a device, and the products with it.

use super::axis::{DeviceAxis, Part, Spectrum, Sum, transpose};
use super::basis::DeviceBasis;
use super::ends::{Ends, Inputs};
use super::groups::DeviceGroups;
use super::lay_out::PIECE;
use super::machine::{Dense, Element, Machine};
use super::operands::{Gather, Operand, Panel, Partial, Product, Target};
use super::term::{DeviceTerm, Takes};
use super::upload::{Uploaded, upload};
use crate::error::{Error, Result};
use rbe_core::codec::layout::SHORTEST;
use rbe_core::codec::signs::Side;
use rbe_core::codec::sizes;
use rbe_core::codec::{AxisScales, Layout, Matrix, Sides};
use std::ops::Range;
use std::sync::Arc;

/// Bytes of a panel: enough of a large matrix that its product fills a device, whether or not the second cache holds it.
const PANEL_BYTES: usize = 256 << 20;
/// Rows of one pass: the kernels count groups of them in a grid's short dimensions.
const PASS_BATCH: usize = 1 << 15;
/// Floats to whose multiples what lies in one memory is filled up: 256 bytes.
const ALIGNED: usize = 64;

/// The longest side: each block of the shortest counts as one in a grid's short dimension.
const LONGEST_SIDE: usize = 65_535 * SHORTEST;

/// Where the results of a product go, `(batch, out)`, and the bias `(out)` that is added to each, of the same type.
#[derive(Debug)]
pub struct Output<'a, M> {
    /// Results.
    pub y: Operand<'a, M>,
    /// A row that is added.
    pub bias: Option<Operand<'a, M>>,
}

/// A matrix to be multiplied with, and what becomes of it.
type Task<'a, D> = (&'a DeviceMatrix<D>, Target<'a, <D as Machine>::Memory>);

/// How a product with stored coefficients goes.
struct Plan {
    /// Which ends each term takes, and parts of its sum.
    takes: Vec<Takes>,
    splits: Vec<usize>,
    /// Floats before the addend's, behind all parts, and all of them.
    addend_at: usize,
    floats: usize,
}

/// A matrix in a device's memory, ready for products. Any thread may use it: what made it has waited until it was there, and what drops
/// it waits until nobody uses it.
pub struct DeviceMatrix<D: Machine> {
    machine: D,
    layout: Layout,
    /// The farthest that a scale of either side is from 1, up or down.
    largest_scale: f32,
    rows: Arc<DeviceAxis<D::Memory>>,
    cols: Arc<DeviceAxis<D::Memory>>,
    terms: Vec<Uploaded<D::Memory>>,
}

impl<D: Machine> std::fmt::Debug for DeviceMatrix<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceMatrix({:?})", self.layout)
    }
}

impl<D: Machine> Drop for DeviceMatrix<D> {
    fn drop(&mut self) {
        // Another thread's products may not have run yet. A device that cannot be waited for says so at what is asked of it next.
        let _ = self.machine.wait_for_all();
    }
}

/// Refuses what a grid does not count.
fn expect_sides(layout: Layout) -> Result<()> {
    let (rows, cols) = (layout.rows(), layout.cols());
    let side = if rows > cols { "rows" } else { "columns" };
    if rows.max(cols) <= LONGEST_SIDE {
        return Ok(());
    }
    Err(Error::unsupported(format!(
        "a tensor of {rows}x{cols} on a CUDA device, which takes {LONGEST_SIDE} {side}: split it, or leave it on the CPU"
    )))
}

impl<D: Machine> DeviceMatrix<D> {
    /// Lays a matrix out in the device's memory.
    ///
    /// # Errors
    /// When the device has not enough of it, or a side is longer than the kernels count.
    pub fn new(machine: D, matrix: &Matrix) -> Result<Self> {
        let layout = matrix.layout();
        expect_sides(layout)?;
        let axis = |side, axis| DeviceAxis::new(&machine, axis, side, matrix.seed()).map(Arc::new);
        let axes = matrix.axes();
        let (rows, cols) = (axis(Side::Rows, &axes.rows)?, axis(Side::Cols, &axes.cols)?);
        let terms: Result<_> = matrix.terms().iter().map(|term| upload(&machine, layout, term)).collect();
        let terms = terms?;
        let scales =
            [&axes.rows, &axes.cols].map(|axis| axis.scales().map_or_else(Vec::new, AxisScales::values));
        // Each thread of the host may have a stream of its own, and nothing orders them.
        machine.wait()?;
        let largest_scale = scales.concat().iter().fold(1f32, |largest, s| largest.max(*s).max(s.recip()));
        Ok(Self { machine, layout, largest_scale, rows, cols, terms })
    }

    /// Matrices one below the other as one, whose products take one launch where theirs take one each. Their weights stay where they are, and
    /// as long as this needs them.
    ///
    /// `None` where they do not see their input through one operator, are not each of one term, planes or a trellis, of the same kind as the
    /// others', or one that another follows has a number of rows that is no multiple of its blocks'.
    ///
    /// # Errors
    /// When the device has not enough memory, or there would be too many rows.
    pub fn stacked(parts: &[Arc<Self>]) -> Result<Option<Self>>
    where
        D: Clone,
    {
        let Some(first) = parts.first() else { return Ok(None) };
        let machine = first.machine.clone();
        let is_alike = |part: &Arc<Self>| {
            part.terms.len() == 1
                && part.layout.block() == first.layout.block()
                && part.cols.is_same(&first.cols)
        };
        let terms: Option<Vec<_>> = parts.iter().map(|part| part.terms.first()?.groups()).collect();
        let (true, Some(terms)) = (parts.iter().all(is_alike), terms) else { return Ok(None) };
        let rows: Vec<_> = parts.iter().map(|part| &*part.rows).collect();
        let Some(rows) = DeviceAxis::stacked(&machine, &rows)? else { return Ok(None) };
        let layout = Layout::new(rows.len, first.layout.cols(), first.layout.block())?;
        expect_sides(layout)?;
        let Some(groups) = DeviceGroups::stacked(&machine, layout, &terms)? else { return Ok(None) };
        machine.wait()?;
        let largest_scale = parts.iter().fold(1f32, |largest, part| largest.max(part.largest_scale));
        let (rows, cols) = (Arc::new(rows), first.cols.clone());
        Ok(Some(Self { machine, layout, largest_scale, rows, cols, terms: vec![Uploaded::Groups(groups)] }))
    }

    /// The device.
    pub fn machine(&self) -> &D {
        &self.machine
    }

    /// The matrix's layout.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Lays out now what products in one direction need, and would lay out when first asked.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn prepare(&self, transposed: bool) -> Result<()> {
        self.spectral().try_for_each(|term| term.prepare(&self.machine, transposed))
    }

    /// The terms in the coefficient domain.
    fn spectral(&self) -> impl Iterator<Item = &dyn DeviceTerm<D>> {
        self.terms.iter().filter_map(Uploaded::spectral)
    }

    /// The terms in the weight domain.
    fn weights(&self) -> Option<&DeviceBasis<D::Memory>> {
        self.terms.iter().find_map(Uploaded::weights)
    }

    /// `y = x W' + bias`, or `y = x W + bias` when `transposed`: `x` is `(batch, in)`, `y` `(batch, out)` and `bias` `(out)` of the same
    /// type.
    ///
    /// # Errors
    /// When the device has not enough memory or refuses a launch.
    pub fn matmul(
        &self,
        x: &Operand<'_, D::Memory>,
        batch: usize,
        transposed: bool,
        bias: Option<&Operand<'_, D::Memory>>,
        y: &Operand<'_, D::Memory>,
    ) -> Result<()> {
        Self::matmul_all(
            &[(self, Output { y: y.from(0), bias: bias.map(|bias| bias.from(0)) })],
            x,
            batch,
            transposed,
        )
    }

    /// [`matmul`](Self::matmul) of one input with several matrices on one device. Neighbours that see it through one operator have it
    /// transformed once, unless each does so in its own launch.
    ///
    /// # Errors
    /// As [`matmul`](Self::matmul).
    pub fn matmul_all(
        products: &[(&Self, Output<'_, D::Memory>)],
        x: &Operand<'_, D::Memory>,
        batch: usize,
        transposed: bool,
    ) -> Result<()> {
        let input = |matrix: &'_ Self| matrix.sides(transposed).0.len;
        let is_shared = |a: &Self, b: &Self| a.sides(transposed).0.is_same(b.sides(transposed).0);
        for group in products.chunk_by(|(a, _), (b, _)| is_shared(a, b)) {
            for first in (0..batch).step_by(PASS_BATCH) {
                let product =
                    Product { batch: PASS_BATCH.min(batch - first), transposed, element: x.element };
                let x = x.from(first * input(group[0].0));
                let targets = group.iter().map(|(matrix, output)| {
                    let y = output.y.from(first * matrix.sides(transposed).1.len);
                    (*matrix, Target { y, addend: None, bias: output.bias.as_ref() })
                });
                let (stored, decoded): (Vec<_>, Vec<_>) =
                    targets.partition(|(matrix, _)| matrix.takes_as_stored(&product));
                Self::gemv(stored, &product, &x)?;
                Self::gemm(decoded, &product, &x)?;
            }
        }
        Ok(())
    }

    /// Whether so many rows are multiplied with the coefficients as they are stored.
    fn takes_as_stored(&self, product: &Product) -> bool {
        self.spectral().all(|term| product.batch <= term.most_tokens(&self.machine, product))
    }

    /// The axes of inputs and outputs.
    fn sides(&self, transposed: bool) -> (&DeviceAxis<D::Memory>, &DeviceAxis<D::Memory>) {
        Sides::new(self.layout, transposed).of(&self.rows, &self.cols)
    }

    /// With the coefficients as they are stored; all see their input through one operator.
    fn gemv(products: Vec<Task<'_, D>>, product: &Product, x: &Operand<'_, D::Memory>) -> Result<()> {
        let Some((first, _)) = products.first() else { return Ok(()) };
        let (machine, input) = (&first.machine, first.sides(product.transposed).0);
        let plans: Vec<_> = products.iter().map(|(matrix, _)| matrix.plan(product)).collect();
        // All of it lies in one memory that is kept: the inputs' coefficients where a product takes them, and behind them what one
        // product after another needs.
        let transforms = plans.iter().flat_map(|plan| &plan.takes).any(|takes| !takes.inputs);
        let coefficients = product.batch * input.len;
        let own_at = if transforms {
            (coefficients + product.batch * input.all_items()).next_multiple_of(ALIGNED)
        } else {
            0
        };
        let floats = own_at + plans.iter().map(|plan| plan.floats).max().unwrap_or(0);
        let scratch = machine.scratch(sizes::elements(&[floats, size_of::<f32>()]))?;
        if transforms {
            let operand = Operand { memory: &*scratch, offset: 0, element: Element::F32 };
            // The products find them there: `share_of` of `kernels/tiles.cuh`.
            let largest = Some(Partial { memory: &*scratch, offset: coefficients });
            let to = Spectrum { operand, stride: input.len, scale: 1.0, largest };
            input.forward(machine, x, product.batch, to)?;
        }
        let room = Partial { memory: &*scratch, offset: own_at };
        for ((matrix, to), plan) in products.into_iter().zip(&plans) {
            matrix.stored_product(product, plan, x, &room, to)?;
        }
        Ok(())
    }

    /// How a product with the coefficients as they are stored goes.
    fn plan(&self, product: &Product) -> Plan {
        let (machine, batch) = (&self.machine, product.batch);
        let (input, output) = self.sides(product.transposed);
        let takes: Vec<_> = self.spectral().map(|term| term.takes(machine, product, input)).collect();
        let splits: Vec<_> = self.spectral().map(|term| term.splits(machine, product)).collect();
        let all_parts: usize = splits.iter().sum();
        let addend_at = sizes::elements(&[all_parts, batch, output.len]).next_multiple_of(ALIGNED);
        let addend = if self.weights().is_some() { batch * output.len } else { 0 };
        Plan { takes, splits, addend_at, floats: addend_at + addend }
    }

    /// One of them; the inputs' coefficients, where there are such, lie at the beginning of the memory that `room` is in.
    fn stored_product(
        &self,
        product: &Product,
        plan: &Plan,
        x: &Operand<'_, D::Memory>,
        room: &Partial<'_, D::Memory>,
        to: Target<'_, D::Memory>,
    ) -> Result<()> {
        let (machine, batch) = (&self.machine, product.batch);
        let (input, output) = self.sides(product.transposed);
        let Plan { takes, splits, addend_at, .. } = plan;
        let all_parts: usize = splits.iter().sum();
        let parts = Partial { ..*room };
        let spectrum = Partial { offset: 0, ..*room };
        let addend = self.weights().map(|_| Partial { offset: room.offset + addend_at, memory: room.memory });
        let to = Target { addend, ..to };
        if let (Some(basis), Some(sums)) = (self.weights(), &to.addend) {
            basis.product(machine, product, x, sums)?;
        }
        // The last of those that can makes the results, after all others.
        let finisher = takes.iter().rposition(|takes| takes.results);
        let counters = finisher.map(|_| machine.counters(self.layout.block_rows() * batch)).transpose()?;
        let terms: Vec<_> = self.spectral().collect();
        let order = (0..terms.len()).filter(|n| Some(*n) != finisher).chain(finisher);
        for n in order {
            let inputs = if takes[n].inputs { Inputs::Rows(x) } else { Inputs::Coefficients(&spectrum) };
            let results = counters.as_deref().filter(|_| Some(n) == finisher).map(|counters| (counters, &to));
            let first_part = splits[..n].iter().sum();
            let ends = Ends { inputs, input, output, parts: &parts, all_parts, first_part, results };
            terms[n].product(machine, product, &ends)?;
        }
        if finisher.is_some() {
            return Ok(());
        }
        let sum = Sum {
            offset: room.offset,
            ..Sum::of((all_parts > 0).then_some(room.memory), all_parts, output.len)
        };
        output.inverse(machine, output.whole(), &sum, batch, &to)
    }

    /// What the coefficients of inputs are divided by: `|T D x| <= sqrt(length of a block) max|D| max|x|` for each, so none leaves
    /// the type that held `x`, nor do those of a result that the type holds.
    fn guard(&self, element: Element) -> f32 {
        match element {
            Element::F32 => 1.0,
            Element::F16 | Element::BF16 => {
                let longest = self.layout.row_cut().longest().max(self.layout.col_cut().longest());
                ((longest as f32).sqrt() * self.largest_scale).log2().ceil().exp2()
            }
        }
    }

    /// With the coefficients reconstructed part by part; all see their input through one operator.
    fn gemm(products: Vec<Task<'_, D>>, product: &Product, x: &Operand<'_, D::Memory>) -> Result<()> {
        let Some((first, _)) = products.first() else { return Ok(()) };
        let Product { batch, transposed, element } = *product;
        let (machine, input) = (&first.machine, first.sides(transposed).0);
        let guard = products.iter().map(|(matrix, _)| matrix.guard(element)).fold(1.0, f32::max);
        let inner = if transposed { input.len.next_multiple_of(PIECE) } else { input.len };
        let spectrum = machine.allocate(sizes::elements(&[batch, inner, element.bytes()]))?;
        let operand = || Operand { memory: &spectrum, offset: 0, element };
        input.forward(
            machine,
            x,
            batch,
            Spectrum { operand: operand(), stride: inner, scale: 1.0 / guard, largest: None },
        )?;
        for (matrix, to) in products {
            let spectrum = Spectrum { operand: operand(), stride: inner, scale: guard, largest: None };
            matrix.decoded_product(product, x, &spectrum, to)?;
        }
        Ok(())
    }

    /// One of them, from the coefficients of inputs.
    fn decoded_product(
        &self,
        product: &Product,
        x: &Operand<'_, D::Memory>,
        spectrum: &Spectrum<'_, D::Memory>,
        to: Target<'_, D::Memory>,
    ) -> Result<()> {
        let Product { batch, transposed, element } = *product;
        let (machine, output) = (&self.machine, self.sides(transposed).1);
        let Spectrum { operand, stride: inner, scale, .. } = spectrum;
        let sums = match self.weights() {
            Some(basis) => {
                let sums = machine.allocate(sizes::elements(&[batch, output.len, size_of::<f32>()]))?;
                basis.product(machine, product, x, &Partial { memory: &sums, offset: 0 })?;
                Some(sums)
            }
            None => None,
        };
        let addend = sums.as_ref().map(|memory| Partial { memory, offset: 0 });
        let to = Target { addend, ..to };
        for part in self.parts(output, *inner, element) {
            let own = part.first..part.first + part.len;
            let (rows, cols) =
                if transposed { (0..self.layout.rows(), own) } else { (own, 0..self.layout.cols()) };
            let stride = rows.len().next_multiple_of(PIECE);
            let panel = self.panel(element, rows, cols)?;
            let outs = if transposed { part.len } else { stride };
            let size = Dense { element, rows: batch, inner: *inner, cols: outs, transposed };
            let product = machine.matmul(operand.memory, &panel, size)?;
            let sum = Sum { element, scale: *scale, ..Sum::of(Some(&product), 1, outs) };
            output.inverse(machine, part, &sum, batch, &to)?;
        }
        Ok(())
    }

    /// The parts of an axis whose panels, `depth` elements deep, have about `PANEL_BYTES`.
    fn parts(&self, axis: &DeviceAxis<D::Memory>, depth: usize, element: Element) -> Vec<Part> {
        let edge = self.layout.block();
        let each = (PANEL_BYTES / (depth * element.bytes() * edge)).max(1) * edge;
        // Whole blocks; what follows them goes with the last.
        let last = axis.cut.whole_blocks().saturating_sub(1) * edge / each * each;
        let parts = (0..=last).step_by(each);
        parts.map(|first| Part { first, len: if first == last { axis.len - first } else { each } }).collect()
    }

    /// The coefficients of a range of rows and columns, `(cols, rows filled up to whole pieces)`.
    fn panel(&self, element: Element, rows: Range<usize>, cols: Range<usize>) -> Result<D::Memory> {
        let machine = &self.machine;
        let stride = rows.len().next_multiple_of(PIECE);
        let bytes = sizes::elements(&[cols.len(), stride, element.bytes()]);
        let is_filled = self.spectral().next().is_some_and(DeviceTerm::fills_panels);
        let memory = if is_filled { machine.allocate(bytes)? } else { machine.allocate_zeroed(bytes)? };
        let panel = Panel { memory: &memory, element, rows, cols, stride };
        for (index, term) in self.spectral().enumerate() {
            term.panel(machine, &panel, index > 0)?;
        }
        Ok(memory)
    }

    /// Rows `ids` (`u32`, `count` of them) of the matrix as `y`, `(count, cols)`. An id that is no row gives a row of NaN:
    /// to say more would be to wait for the device.
    ///
    /// # Errors
    /// When the device has not enough memory or refuses a launch.
    pub fn gather(&self, ids: &D::Memory, count: usize, y: &Operand<'_, D::Memory>) -> Result<()> {
        let (machine, cols) = (&self.machine, self.layout.cols());
        let terms = self.spectral().count();
        // Their rows of coefficients in F32 lie in memory at once.
        for first in (0..count).step_by(PASS_BATCH) {
            let rows = Gather { ids, offset: first, count: PASS_BATCH.min(count - first) };
            let weights = self.weights().map(|basis| basis.rows(machine, Some(&rows), rows.count));
            let addend = weights.transpose()?;
            let mut partial = None;
            if terms > 0 {
                let units = self.rows.forward_units(machine, &rows)?;
                let memory =
                    machine.allocate(sizes::elements(&[terms, rows.count, cols, size_of::<f32>()]))?;
                for (index, term) in self.spectral().enumerate() {
                    let partial = Partial { memory: &memory, offset: index * rows.count * cols };
                    term.gather(machine, &rows, &units, &partial)?;
                }
                partial = Some(memory);
            }
            let sum = Sum::of(partial.as_ref(), terms, cols);
            let addend = addend.as_ref().map(|memory| Partial { memory, offset: 0 });
            let to = Target { y: y.from(first * cols), addend, bias: None };
            self.cols.inverse(machine, self.cols.whole(), &sum, rows.count, &to)?;
        }
        Ok(())
    }

    /// Decodes everything into `weights`, `(rows, cols)` in F32.
    ///
    /// # Errors
    /// When the device has not enough memory or refuses a launch.
    pub fn decode(&self, weights: &D::Memory) -> Result<()> {
        let (machine, rows, cols) = (&self.machine, self.layout.rows(), self.layout.cols());
        let addend = self.weights().map(|basis| basis.rows(machine, None, rows)).transpose()?;
        let mut by_rows = None;
        if self.spectral().next().is_some() {
            // S' column by column through the rows' axis, then row by row through the columns'.
            let stride = rows.next_multiple_of(PIECE);
            let panel = self.panel(Element::F32, 0..rows, 0..cols)?;
            let by_columns = machine.allocate(sizes::elements(&[cols, rows, size_of::<f32>()]))?;
            let sum = Sum::of(Some(&panel), 1, stride);
            let to = Target::of(&by_columns, Element::F32);
            self.rows.inverse(machine, self.rows.whole(), &sum, cols, &to)?;
            by_rows = Some(transpose(machine, &by_columns, cols, rows, rows)?);
        }
        let sum = Sum::of(by_rows.as_ref(), usize::from(by_rows.is_some()), cols);
        let addend = addend.as_ref().map(|memory| Partial { memory, offset: 0 });
        let to = Target { addend, ..Target::of(weights, Element::F32) };
        self.cols.inverse(machine, self.cols.whole(), &sum, rows, &to)
    }
}
