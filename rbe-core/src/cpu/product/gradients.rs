//! Gradients of a product: in its input, and in the numbers that the matrix is linear in.
//!
//! For training the batch is large, so every coefficient is unpacked once and multiplied with all rows:
//!
//! - planes and trellis ([`dense`](super::dense)): blocks of coefficients, a dense product each. The gradient of a scale comes
//!   out of the product that the input's gradient needs anyway: with `h_s = U_s' g^`, the scale group `s` without its scale,
//!   the input's share is `scale h_s` and the scale's gradient `<h_s, x^_s>`;
//! - sparse: sixteen rows in the lanes of a register, one multiply-add an entry;
//! - basis: moments, as in the product.
//!
//! Sums are in a fixed order, whatever the number of threads.

use super::{Oriented, Pass, Spectrum, finish};
use crate::codec::sizes::expect_len;
use crate::codec::term::Domain;
use crate::cpu::exec::Exec;
use crate::cpu::layout::Activations;
use crate::cpu::packed::{Backward, Inputs};
use crate::cpu::pool::Pool;
use crate::cpu::rows::Rows;
use crate::cpu::spmm::InLanes;

/// Where gradients go.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Of the input, `batch x inputs`, where it is asked for.
    pub x: Option<&'a mut [f32]>,
    /// Of the parameters.
    pub parameters: &'a mut [f32],
}

/// The gradients of `<g, y>` with `y` as [`parametric_matmul`](super::parametric_matmul) has it.
///
/// # Panics
/// When a slice has another length.
pub fn parametric_gradients<'a>(
    matrix: impl Into<Oriented<'a>>,
    parameters: &[f32],
    x: Rows,
    g: Rows,
    gradients: Gradients,
    pool: &dyn Pool,
) {
    self::gradients(Exec::new(pool), matrix.into(), parameters, (x, g), gradients);
}

/// `(x, g)` are the input and the gradient of the output.
pub(in crate::cpu) fn gradients(
    exec: Exec,
    matrix: Oriented,
    parameters: &[f32],
    (x, g): (Rows, Rows),
    mut out: Gradients,
) {
    let sides = matrix.sides();
    expect_len("the input", x.values.len(), &[x.batch, sides.input().elements()]);
    expect_len("the output's gradient", g.values.len(), &[x.batch, sides.output().elements()]);
    assert!(out.x.as_ref().is_none_or(|dx| dx.len() == x.values.len()));
    assert_eq!(out.parameters.len(), parameters.len());
    out.parameters.fill(0.0);
    let parameters = matrix.matrix.split(parameters);
    if x.batch == 0 {
        return;
    }
    let back = Pass { exec, matrix: matrix.t(), slices: 0, parameters: Some(&parameters), x: g };
    let forms = Pass { matrix, x, ..back }.forms() | back.forms();
    let (mut x_spectrum, mut g_spectrum) = (Spectrum::default(), Spectrum::default());
    let (in_axis, out_axis) = matrix.axes();
    x_spectrum.fill(exec, in_axis, x, forms);
    g_spectrum.fill(exec, out_axis, g, forms);
    if let Some(dx) = out.x.as_deref_mut() {
        dx.fill(0.0);
    }
    let mut rest = &mut *out.parameters;
    for (parameters, term) in parameters.iter().zip(matrix.matrix.terms()) {
        let own = rest.split_off_mut(..parameters.values().len()).unwrap_or_default();
        let (lanes, slices) = (&InLanes::default(), &Activations::default());
        let plain = |rows| Inputs { rows, lanes, slices };
        let is_spectral = term.domain() == Domain::Coefficients;
        let (x, g) = match is_spectral {
            true => (x_spectrum.inputs(x), g_spectrum.inputs(g)),
            false => (plain(x), plain(g)),
        };
        let dx = out.x.as_deref_mut().filter(|_| is_spectral);
        term.gradients(exec, &Backward { sides, parameters, x, g }, dx, own);
    }
    if let Some(dx) = out.x.as_deref_mut() {
        finish(exec, std::iter::once(back), &mut [dx]);
    }
}
