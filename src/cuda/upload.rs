//! The terms on a device. A new term is one file beside this one, and one line in [`upload`].

use super::basis::DeviceBasis;
use super::groups::DeviceGroups;
use super::machine::Machine;
use super::sparse::DeviceSparse;
use super::term::DeviceTerm;
use super::{planes, trellis};
use crate::error::Result;
use rbe_core::codec::Layout;
use rbe_core::codec::term::Term;

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

    /// The term, where it is planes or a trellis.
    pub(super) fn groups(&self) -> Option<&DeviceGroups<M>> {
        if let Uploaded::Groups(term) = self { Some(term) } else { None }
    }

    /// The term, where it is in the weight domain.
    pub(super) fn weights(&self) -> Option<&DeviceBasis<M>> {
        if let Uploaded::Weights(term) = self { Some(term) } else { None }
    }
}
