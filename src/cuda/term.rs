//! The terms on a device. A new term is one file beside this one, and one line in [`upload`].

use super::basis::DeviceBasis;
use super::groups::DeviceGroups;
use super::machine::{Arg, Element, Machine};
use super::sparse::DeviceSparse;
use super::{planes, trellis};
use crate::error::Result;
use rbe_core::codec::Layout;
use rbe_core::codec::term::Term;
use std::ops::Range;

/// A term in the device's memory.
pub(super) enum Uploaded<M> {
    /// In the weight domain.
    Weights(DeviceBasis<M>),
    /// In the coefficient domain, as planes and trellis have it.
    Groups(DeviceGroups<M>),
    /// In the coefficient domain, coefficient by coefficient.
    Sparse(DeviceSparse<M>),
}

/// Lays a term out in the device's memory.
///
/// # Errors
/// When the device has not enough of it.
pub(super) fn upload<D: Machine>(machine: &D, layout: Layout, term: &Term) -> Result<Uploaded<D::Memory>> {
    Ok(match term {
        Term::Basis(term) => Uploaded::Weights(DeviceBasis::new(machine, layout, term)?),
        Term::Sparse(term) => Uploaded::Sparse(DeviceSparse::new(layout, term)),
        Term::Planes(term) => Uploaded::Groups(planes::upload(machine, layout, term)?),
        Term::Trellis(term) => Uploaded::Groups(trellis::upload(machine, layout, term)?),
    })
}

impl<M> Uploaded<M> {
    /// The term, where it is in the coefficient domain.
    pub(super) fn spectral<D: Machine<Memory = M>>(&self) -> Option<&dyn DeviceTerm<D>> {
        match self {
            Uploaded::Weights(_) => None,
            Uploaded::Groups(term) => Some(term),
            Uploaded::Sparse(term) => Some(term),
        }
    }

    /// The term, where it is in the weight domain.
    pub(super) fn weights(&self) -> Option<&DeviceBasis<M>> {
        if let Uploaded::Weights(term) = self { Some(term) } else { None }
    }
}

/// A term in the coefficient domain.
pub(super) trait DeviceTerm<D: Machine> {
    /// Lays out now what products in one direction need, and would lay out when first asked.
    fn prepare(&self, _machine: &D, _transposed: bool) -> Result<()> {
        Ok(())
    }

    /// Parts of a product's sum.
    fn splits(&self, machine: &D, product: &Product) -> usize;

    /// Writes the parts of a product with `x`, `(batch, in)` in F32: `(splits, batch, out)`.
    fn product(
        &self,
        machine: &D,
        product: &Product,
        x: &D::Memory,
        partial: &Partial<'_, D::Memory>,
    ) -> Result<()>;

    /// Writes rows in the coefficient domain of the columns, `(count, cols)`; `units` is what the axis made of their numbers.
    fn gather(
        &self,
        machine: &D,
        rows: &Gather<'_, D::Memory>,
        units: &D::Memory,
        partial: &Partial<'_, D::Memory>,
    ) -> Result<()>;

    /// Whether [`panel`](Self::panel) writes every element; else it adds to zeros too.
    fn fills_panels(&self) -> bool {
        false
    }

    /// Writes the coefficients of a panel, or adds them to what is there.
    fn panel(&self, machine: &D, panel: &Panel<'_, D::Memory>, add: bool) -> Result<()>;
}

/// What is multiplied: `batch` rows with a matrix or its transpose.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub batch: usize,
    pub transposed: bool,
}

/// Where a term's parts of a sum go: so many floats into a memory.
pub(super) struct Partial<'a, M> {
    pub memory: &'a M,
    pub offset: usize,
}

impl<'a, M> Partial<'a, M> {
    pub(super) fn arg(&self) -> Arg<'a, M> {
        Arg::Memory(self.memory, self.offset * size_of::<f32>())
    }
}

/// Rows that are asked for: `count` numbers (`u32`), so many into a memory.
#[derive(Clone, Copy)]
pub(super) struct Gather<'a, M> {
    pub ids: &'a M,
    pub offset: usize,
    pub count: usize,
}

impl<'a, M> Gather<'a, M> {
    pub(super) fn arg(&self) -> Arg<'a, M> {
        Arg::Memory(self.ids, self.offset * size_of::<u32>())
    }
}

/// A dense piece of the coefficients, column by column: `(cols, stride)`; it begins at block boundaries.
pub(super) struct Panel<'a, M> {
    pub memory: &'a M,
    pub element: Element,
    pub rows: Range<usize>,
    pub cols: Range<usize>,
    /// Rows, filled up to whole pieces.
    pub stride: usize,
}
