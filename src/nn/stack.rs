//! Matrices of one shape in one tensor, a layer's experts: a linear layer for each.

use super::load::{named_layer, path, unread};
use super::{Linear, RBE_SUFFIX, Weight};
use crate::tensor::Unread;
use crate::{Error, RbeTensor};
use candle_core::{Device, Result};
use candle_nn::VarBuilder;
use rbe_core::codec::stack::Stack as Payloads;

/// The matrices of a tensor `(count, rows, columns)`, each dense or compressed, as the file has them.
#[derive(Clone, Debug)]
pub(crate) struct Stack {
    path: String,
    shape: [usize; 3],
    matrices: Vec<Weight>,
}

impl Stack {
    /// Whether `vb` has such a tensor, compressed or not.
    pub(crate) fn is_in(vb: &VarBuilder, name: &str) -> bool {
        vb.contains_tensor(name) || vb.contains_tensor(&format!("{name}{RBE_SUFFIX}"))
    }

    /// Reads `name`, or `name.rbe`. A dense tensor's matrices share its memory.
    ///
    /// # Errors
    /// When there is neither; when the tensor has not three sides, or a payload is damaged.
    pub(crate) fn read(vb: &VarBuilder, name: &str) -> Result<Self> {
        let (path, payload_name) = (path(vb, name), format!("{name}{RBE_SUFFIX}"));
        if !vb.contains_tensor(&payload_name) {
            let dense = vb.get_unchecked(name)?;
            let &[count, rows, columns] = dense.dims() else {
                let reason = format!("a stack of matrices of shape {:?}; it has three sides", dense.dims());
                return Err(Error::shape(reason).in_tensor(path).into());
            };
            let matrices = (0..count).map(|index| Ok(dense.get(index)?.into()));
            let matrices = matrices.collect::<Result<_>>()?;
            return Ok(Self { path, shape: [count, rows, columns], matrices });
        }
        let payload = unread(vb, &payload_name)?;
        let read = tensors(&payload, &path, vb.device());
        let (shape, tensors) = read.map_err(|error| error.in_tensor(path.clone()))?;
        let weight = |(index, tensor)| Weight::named(tensor, vb.dtype(), format!("{path}.{index}"));
        let matrices = tensors.into_iter().enumerate().map(weight).collect();
        Ok(Self { path, shape, matrices })
    }

    /// `(count, rows, columns)`.
    pub(crate) fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// An error about the tensor.
    pub(crate) fn error(&self, reason: impl Into<String>) -> candle_core::Error {
        Error::shape(reason).in_tensor(self.path.clone()).into()
    }

    /// A layer without bias for each matrix, which is `(out, in)`, or `(in, out)`.
    pub(crate) fn linears(self, in_out: bool) -> Result<Vec<Linear>> {
        let layer = |(index, weight): (usize, Weight)| {
            let Some(tensor) = weight.rbe() else {
                let tensor = weight.tensor()?;
                return Ok(Linear::new(if in_out { tensor.t()? } else { tensor.clone() }, None));
            };
            let name = format!("{}.{index}", self.path);
            let tensor = if in_out { tensor.t()? } else { tensor.clone() };
            let weight = Weight::named(tensor.clone(), weight.dtype(), name.clone());
            named_layer(tensor, weight, None, name)
        };
        self.matrices.into_iter().enumerate().map(layer).collect()
    }
}

/// The matrices of a payload, and the shape of all.
fn tensors(payload: &Unread, path: &str, device: &Device) -> crate::Result<([usize; 3], Vec<RbeTensor>)> {
    let stack = Payloads::from_bytes(&payload.bytes)?;
    let shape = stack.shape();
    let tensor = |(index, range)| {
        let mut part = Unread { bytes: payload.bytes.part(range), origin: payload.origin.clone() };
        if let Some(origin) = &mut part.origin {
            origin.tensor = format!("{path}.{index}");
        }
        let tensor = RbeTensor::read(part, device).map_err(|e| e.in_tensor(format!("matrix {index}")))?;
        if tensor.shape().dims() != &shape[1..] {
            let reason =
                format!("matrix {index} has the shape {:?} in a stack of shape {shape:?}", tensor.shape());
            return Err(Error::shape(reason));
        }
        Ok(tensor)
    };
    Ok((shape, stack.ranges().into_iter().enumerate().map(tensor).collect::<crate::Result<_>>()?))
}
