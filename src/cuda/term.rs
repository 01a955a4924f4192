//! What every term in the coefficient domain does on a device.

use super::axis::DeviceAxis;
use super::ends::Ends;
use super::machine::Machine;
use super::operands::{Gather, Panel, Partial, Product};
use crate::error::Result;

/// The largest batch that every matrix is multiplied with as its coefficients are stored (GEMV); a larger one takes a dense panel, but
/// where tensor cores decode for more.
pub const GEMV_MAX_BATCH: usize = 8;

/// Ends of a product.
#[derive(Clone, Copy, Default)]
pub(super) struct Takes {
    /// The transform of inputs.
    pub inputs: bool,
    /// The sum of all parts and its transform.
    pub results: bool,
}

/// A term in the coefficient domain.
pub(super) trait DeviceTerm<D: Machine> {
    /// Lays out now what products in one direction need, and would lay out when first asked.
    fn prepare(&self, _machine: &D, _transposed: bool) -> Result<()> {
        Ok(())
    }

    /// The largest batch that the term multiplies sooner as it is stored than decoded.
    fn most_tokens(&self, _machine: &D, _product: &Product) -> usize {
        GEMV_MAX_BATCH
    }

    /// Parts of a product's sum.
    fn splits(&self, machine: &D, product: &Product) -> usize;

    /// Which ends of a product its own launches take with them, inputs along this axis.
    fn takes(&self, _machine: &D, _product: &Product, _input: &DeviceAxis<D::Memory>) -> Takes {
        Takes::default()
    }

    /// Writes the parts of a product, `(splits, batch, out)`, and the ends that it [`takes`](Self::takes) and is asked for.
    fn product(&self, machine: &D, product: &Product, ends: &Ends<'_, D::Memory>) -> Result<()>;

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
