//! What every term in the coefficient domain does on a device.

use super::machine::Machine;
use super::operands::{Gather, Panel, Partial, Product};
use crate::error::Result;

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
