//! A compressed matrix on a device, and the products with it.

use super::axis::{DeviceAxis, Part, Sum, Target, transpose};
use super::basis::DeviceBasis;
use super::groups::{DeviceGroups, GroupPlan, Panel};
use super::machine::{Dense, Element, Machine};
use super::sparse::DeviceSparse;
use crate::error::Result;
use rbe_core::codec::signs::Side;
use rbe_core::codec::sizes;
use rbe_core::codec::term::Term;
use rbe_core::codec::{Layout, Matrix};

/// The most vectors that are multiplied with the coefficients as they are stored; more take a dense panel.
pub const FEW: usize = 8;
/// Bytes of a panel: a part of a large matrix, so that it is still in the second cache when it is read.
const PANEL_BYTES: usize = 32 << 20;
/// Vectors of one pass: the kernels count groups of them in a grid's short dimensions.
const VECTORS: usize = 1 << 15;
/// Rows that a thread of a panel has.
const PIECE: usize = 32;

/// Vectors in a device's memory.
#[derive(Debug)]
pub struct Operand<'a, M> {
    /// Where.
    pub memory: &'a M,
    /// Elements before the first.
    pub offset: usize,
    /// Of what type.
    pub element: Element,
}

/// A spectral term in its layout.
enum DeviceTerm<M> {
    Strips(DeviceGroups<M>),
    Sparse(DeviceSparse<M>),
}

/// What a term was asked for, with its place among the parts of the sum.
enum Share {
    Strips(GroupPlan),
    Sparse,
}

/// A matrix in a device's memory, ready for products.
pub struct DeviceMatrix<D: Machine> {
    machine: D,
    layout: Layout,
    /// The farthest that a scale of either side is from 1, up or down.
    largest_scale: f32,
    rows: DeviceAxis<D::Memory>,
    cols: DeviceAxis<D::Memory>,
    terms: Vec<DeviceTerm<D::Memory>>,
    basis: Option<DeviceBasis<D::Memory>>,
}

impl<D: Machine> std::fmt::Debug for DeviceMatrix<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceMatrix({:?})", self.layout)
    }
}

impl<D: Machine> DeviceMatrix<D> {
    /// Lays a matrix out in the device's memory.
    ///
    /// # Errors
    /// When the device has not enough of it.
    pub fn new(machine: D, matrix: &Matrix) -> Result<Self> {
        let layout = matrix.layout();
        let axis = |side, axis| DeviceAxis::new(&machine, axis, side, matrix.seed());
        let axes = matrix.axes();
        let (rows, cols) = (axis(Side::Rows, &axes.rows)?, axis(Side::Cols, &axes.cols)?);
        let (mut terms, mut basis) = (Vec::new(), None);
        for term in matrix.terms() {
            match term {
                Term::Basis(term) => basis = Some(DeviceBasis::new(&machine, layout, term)?),
                Term::Sparse(term) => terms.push(DeviceTerm::Sparse(DeviceSparse::new(layout, term))),
                Term::Planes(term) => {
                    terms.push(DeviceTerm::Strips(DeviceGroups::planes(&machine, layout, term)?));
                }
                Term::Trellis(term) => {
                    terms.push(DeviceTerm::Strips(DeviceGroups::trellis(&machine, layout, term)?));
                }
            }
        }
        let scales = [&axes.rows, &axes.cols].map(|axis| axis.scale_values().unwrap_or_default());
        let largest_scale = scales.concat().iter().fold(1f32, |largest, s| largest.max(*s).max(s.recip()));
        Ok(Self { machine, layout, largest_scale, rows, cols, terms, basis })
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
        self.terms.iter().try_for_each(|term| match term {
            DeviceTerm::Sparse(sparse) => sparse.prepare(&self.machine, transposed),
            DeviceTerm::Strips(_) => Ok(()),
        })
    }

    /// `y = x W'`, or `y = x W` when `transposed`: `x` is `(tokens, in)`, `y` `(tokens, out)` of the same type.
    ///
    /// # Errors
    /// When the device has not enough memory or refuses a launch.
    pub fn product(
        &self,
        x: &Operand<'_, D::Memory>,
        tokens: usize,
        transposed: bool,
        y: &Operand<'_, D::Memory>,
    ) -> Result<()> {
        let (input, output) = self.sides(transposed);
        for first in (0..tokens).step_by(VECTORS) {
            let count = VECTORS.min(tokens - first);
            let x = Operand { offset: x.offset + first * input.len, ..*x };
            let to = Target { memory: y.memory, element: y.element, offset: y.offset + first * output.len };
            let addend = match &self.basis {
                Some(basis) => {
                    let x_place = (x.memory, x.offset);
                    Some(basis.product(&self.machine, x_place, x.element, count, transposed)?)
                }
                None => None,
            };
            if count <= FEW || self.terms.is_empty() {
                self.product_of_few(&x, count, transposed, addend.as_ref(), &to)?;
            } else {
                self.product_of_many(&x, count, transposed, addend.as_ref(), &to)?;
            }
        }
        Ok(())
    }

    /// The axes of inputs and outputs.
    fn sides(&self, transposed: bool) -> (&DeviceAxis<D::Memory>, &DeviceAxis<D::Memory>) {
        if transposed { (&self.rows, &self.cols) } else { (&self.cols, &self.rows) }
    }

    fn product_of_few(
        &self,
        x: &Operand<'_, D::Memory>,
        tokens: usize,
        transposed: bool,
        addend: Option<&D::Memory>,
        to: &Target<'_, D::Memory>,
    ) -> Result<()> {
        let machine = &self.machine;
        let (input, output) = self.sides(transposed);
        let shares = self.terms.iter().map(|term| match term {
            DeviceTerm::Strips(scale_groups) => {
                let plan = scale_groups.plan(machine, tokens, transposed);
                (Share::Strips(plan), plan.splits)
            }
            DeviceTerm::Sparse(sparse) => (Share::Sparse, sparse.splits(transposed)),
        });
        let shares: Vec<_> = shares.collect();
        let splits: usize = shares.iter().map(|(_, splits)| splits).sum();
        let mut parts = None;
        if splits > 0 {
            let spectrum = input.forward(
                machine,
                x.memory,
                x.offset,
                x.element,
                tokens,
                Element::F32,
                input.len,
                1.0,
            )?;
            let partial =
                machine.allocate(sizes::elements(&[splits, tokens, output.len, size_of::<f32>()]))?;
            let mut before = 0;
            for (term, (share, splits)) in self.terms.iter().zip(shares) {
                let offset = before * tokens * output.len;
                before += splits;
                match (term, share) {
                    (DeviceTerm::Strips(scale_groups), Share::Strips(plan)) => {
                        scale_groups.product(machine, plan, &spectrum, &partial, offset)?;
                    }
                    (DeviceTerm::Sparse(sparse), _) => {
                        sparse.product(machine, tokens, transposed, &spectrum, &partial, offset)?;
                    }
                    (DeviceTerm::Strips(_), Share::Sparse) => {}
                }
            }
            parts = Some(partial);
        }
        let whole = Part { first: 0, len: output.len };
        let sum = Sum {
            parts: parts.as_ref(),
            element: Element::F32,
            splits,
            stride: output.len,
            addend,
            scale: 1.0,
        };
        output.inverse(machine, whole, &sum, tokens, to)
    }

    fn product_of_many(
        &self,
        x: &Operand<'_, D::Memory>,
        tokens: usize,
        transposed: bool,
        addend: Option<&D::Memory>,
        to: &Target<'_, D::Memory>,
    ) -> Result<()> {
        let machine = &self.machine;
        let element = x.element;
        let (input, output) = self.sides(transposed);
        // `|T D x| <= sqrt(length of a block) max|D| max|x|` for each coefficient: so divided, none leaves the type that held
        // `x`, nor do those of a result that the type holds.
        let guard = match element {
            Element::F32 => 1.0,
            Element::F16 | Element::BF16 => {
                let longest = self.layout.row_cut().longest().max(self.layout.col_cut().longest());
                ((longest as f32).sqrt() * self.largest_scale).log2().ceil().exp2()
            }
        };
        let inner = if transposed { input.len.next_multiple_of(PIECE) } else { input.len };
        let spectrum =
            input.forward(machine, x.memory, x.offset, element, tokens, element, inner, 1.0 / guard)?;
        for part in self.parts(output, inner, element) {
            let (rows, cols) = if transposed {
                (0..self.layout.rows(), part.first..part.first + part.len)
            } else {
                (part.first..part.first + part.len, 0..self.layout.cols())
            };
            let stride = rows.len().next_multiple_of(PIECE);
            let panel = self.panel(element, rows, cols)?;
            let outs = if transposed { part.len } else { stride };
            let size = Dense { element, rows: tokens, inner, cols: outs, transposed };
            let product = machine.matmul(&spectrum, &panel, size)?;
            let sum = Sum { parts: Some(&product), element, splits: 1, stride: outs, addend, scale: guard };
            output.inverse(machine, part, &sum, tokens, to)?;
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
    fn panel(
        &self,
        element: Element,
        rows: std::ops::Range<usize>,
        cols: std::ops::Range<usize>,
    ) -> Result<D::Memory> {
        let machine = &self.machine;
        let stride = rows.len().next_multiple_of(PIECE);
        let bytes = sizes::elements(&[cols.len(), stride, element.bytes()]);
        let first_is_dense = matches!(self.terms.first(), Some(DeviceTerm::Strips(_)));
        let memory =
            if first_is_dense { machine.allocate(bytes)? } else { machine.allocate_zeroed(bytes)? };
        let panel = Panel {
            memory: &memory,
            element,
            first_row: rows.start,
            end_row: rows.end,
            first_col: cols.start,
            end_col: cols.end,
            stride,
        };
        for (index, term) in self.terms.iter().enumerate() {
            match term {
                DeviceTerm::Strips(scale_groups) => scale_groups.panel(machine, &panel, index > 0)?,
                DeviceTerm::Sparse(sparse) => sparse.panel(machine, &panel)?,
            }
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
        // Their rows of coefficients in F32 lie in memory at once.
        for first in (0..count).step_by(VECTORS) {
            let (ids, count) = ((ids, first), VECTORS.min(count - first));
            let addend = match &self.basis {
                Some(basis) => Some(basis.rows(machine, Some(ids), count)?),
                None => None,
            };
            let mut partial = None;
            if !self.terms.is_empty() {
                let units = self.rows.forward_units(machine, ids.0, ids.1, count)?;
                let parts =
                    machine.allocate(sizes::elements(&[self.terms.len(), count, cols, size_of::<f32>()]))?;
                for (index, term) in self.terms.iter().enumerate() {
                    let offset = index * count * cols;
                    match term {
                        DeviceTerm::Strips(scale_groups) => {
                            scale_groups.gather(machine, ids, count, &units, &parts, offset)?;
                        }
                        DeviceTerm::Sparse(sparse) => {
                            sparse.gather(machine, ids, count, &units, &parts, offset)?;
                        }
                    }
                }
                partial = Some(parts);
            }
            let sum = Sum {
                parts: partial.as_ref(),
                element: Element::F32,
                splits: self.terms.len(),
                stride: cols,
                addend: addend.as_ref(),
                scale: 1.0,
            };
            let to = Target { memory: y.memory, element: y.element, offset: y.offset + first * cols };
            self.cols.inverse(machine, Part { first: 0, len: cols }, &sum, count, &to)?;
        }
        Ok(())
    }

    /// Decodes everything into `weights`, `(rows, cols)` in F32.
    ///
    /// # Errors
    /// When the device has not enough memory or refuses a launch.
    pub fn decode(&self, weights: &D::Memory) -> Result<()> {
        let (machine, rows, cols) = (&self.machine, self.layout.rows(), self.layout.cols());
        let addend = match &self.basis {
            Some(basis) => Some(basis.rows(machine, None, rows)?),
            None => None,
        };
        let mut by_rows = None;
        if !self.terms.is_empty() {
            // S' column by column through the rows' axis, then row by row through the columns'.
            let stride = rows.next_multiple_of(PIECE);
            let panel = self.panel(Element::F32, 0..rows, 0..cols)?;
            let by_columns = machine.allocate(sizes::elements(&[cols, rows, size_of::<f32>()]))?;
            let sum = Sum {
                parts: Some(&panel),
                element: Element::F32,
                splits: 1,
                stride,
                addend: None,
                scale: 1.0,
            };
            let to = Target { memory: &by_columns, element: Element::F32, offset: 0 };
            self.rows.inverse(machine, Part { first: 0, len: rows }, &sum, cols, &to)?;
            by_rows = Some(transpose(machine, &by_columns, cols, rows, rows)?);
        }
        let sum = Sum {
            parts: by_rows.as_ref(),
            element: Element::F32,
            splits: self.terms.len().min(1),
            stride: cols,
            addend: addend.as_ref(),
            scale: 1.0,
        };
        let to = Target { memory: weights, element: Element::F32, offset: 0 };
        self.cols.inverse(machine, Part { first: 0, len: cols }, &sum, rows, &to)
    }
}
