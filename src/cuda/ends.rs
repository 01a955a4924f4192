//! Both ends of a term's product, as `kernels/ends.cuh` has them.

use super::axis::DeviceAxis;
use super::machine::Arg;
use super::operands::{Operand, Partial, Target};

/// What a product's inputs are.
#[derive(Clone, Copy)]
pub(super) enum Inputs<'a, M> {
    /// Rows as they came: the product transforms them itself.
    Rows(&'a Operand<'a, M>),
    /// Their transform.
    Coefficients(&'a Partial<'a, M>),
}

/// Both ends of a term's product: see `kernels/ends.cuh`.
pub(super) struct Ends<'a, M> {
    pub inputs: Inputs<'a, M>,
    pub input: &'a DeviceAxis<M>,
    pub output: &'a DeviceAxis<M>,
    /// All parts of the sum, of every term, `(all_parts, batch, out)`, and the first that is this term's.
    pub parts: &'a Partial<'a, M>,
    pub all_parts: usize,
    pub first_part: usize,
    /// Zeros to count blocks with, and where the results go, if the product is to make them too.
    pub results: Option<(&'a M, &'a Target<'a, M>)>,
}

/// The kernels' number of inputs that are transformed already.
const COEFFICIENTS: usize = 3;

impl<'a, M> Ends<'a, M> {
    /// This term's parts.
    pub(super) fn own_parts(&self, batch: usize) -> Partial<'a, M> {
        let offset = self.parts.offset + self.first_part * batch * self.output.len;
        Partial { memory: self.parts.memory, offset }
    }

    /// The inputs' address.
    pub(super) fn x(&self) -> Arg<'a, M> {
        match self.inputs {
            Inputs::Rows(x) => x.arg(),
            Inputs::Coefficients(x) => x.arg(),
        }
    }

    /// As `ENDS_PARAMETERS` of `kernels/ends.cuh` has them.
    pub(super) fn args(&self) -> Vec<Arg<'a, M>> {
        let x_number = match self.inputs {
            Inputs::Rows(x) => x.element.number(),
            Inputs::Coefficients(_) => COEFFICIENTS,
        };
        let (counters, target) = self.results.unzip();
        let mut args = vec![self.x(), Arg::Int(x_number)];
        args.extend(self.input.tables(0, false));
        args.extend([self.parts.arg(), Arg::optional(counters, 0)]);
        args.extend([self.first_part, self.all_parts].map(Arg::Int));
        args.extend(target.map_or([Arg::Null, Arg::Null, Arg::Null], |target| target.args(0)));
        args.push(Arg::Int(target.map_or(0, |target| target.y.element.number())));
        args.extend(self.output.tables(0, true));
        args
    }
}
