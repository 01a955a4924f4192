//! The numbers of a matrix that can be trained: those in which it is linear.
//!
//! ```text
//!     W(p)  =  sum_n p_n M_n        M_n fixed by positions, codes, transform and signs
//! ```
//!
//! They come term after term, in a term block after block ([`Term::parameters`]). So the gradient of a loss `L` is
//! `dL/dp_n = <M_n, dL/dW>`, and, the transform being orthonormal, an inner product of coefficients with
//! `A_rows (dL/dW) A_cols'`.

use super::matrix::Matrix;
use super::term::{Domain, ParameterKind, Term};
use crate::error::{Error, Result};

/// The parameters of a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParameterGroup {
    /// The term's name: `residual_trellis` for a trellis that follows another.
    pub name: &'static str,
    /// How many there are.
    pub count: usize,
    /// What they are.
    pub kind: ParameterKind,
}

impl Matrix {
    /// Whose the numbers of [`parameters`](Self::parameters) are, one after another.
    pub fn parameter_groups(&self) -> Vec<ParameterGroup> {
        let mut groups: Vec<ParameterGroup> = Vec::with_capacity(self.terms().len());
        for term in self.terms() {
            let follows = groups.last().is_some_and(|before| before.name == term.name());
            let residual = term.residual_name().filter(|_| follows);
            let count = self.layout().iter().map(|block| term.parameters_in(block)).sum();
            groups.push(ParameterGroup {
                name: residual.unwrap_or(term.name()),
                count,
                kind: term.parameter_kind(),
            });
        }
        groups
    }

    /// All trainable numbers.
    pub fn parameters(&self) -> Vec<f32> {
        self.terms().iter().flat_map(Term::parameters).collect()
    }

    /// The same positions and codes with other numbers, as precise as the format holds them: F16 for scales and sparse
    /// values, F32 or F16 for basis parameters. The recorded error is then no longer known and is set to 1.
    ///
    /// # Errors
    /// When there are more or fewer than [`parameters`](Self::parameters) gives, one is not finite or larger than the format
    /// holds, or a scale of planes or of a trellis is negative, which the format has no place for.
    pub fn with_parameters(&self, parameters: &[f32]) -> Result<Self> {
        let counts: Vec<usize> = self.parameter_groups().iter().map(|group| group.count).collect();
        let expected: usize = counts.iter().sum();
        if parameters.len() != expected {
            let reason = format!("{} parameters for a matrix that has {expected}", parameters.len());
            return Err(Error::shape(reason));
        }
        let mut rest = parameters;
        let mut terms = Vec::new();
        for (term, count) in self.terms().iter().zip(counts) {
            let own;
            (own, rest) = rest.split_at(count);
            terms.push(term.with_parameters(own)?);
        }
        Ok(self.with_terms(terms, 1.0))
    }

    /// The reference gradient `<M_n, g>` for `g = dL/dW` (`rows x cols`).
    ///
    /// # Panics
    /// When `g` has another length.
    pub fn parameter_gradient(&self, g: &[f32]) -> Vec<f32> {
        let layout = self.layout();
        assert_eq!(g.len(), layout.elements());
        let mut gradients: Vec<Vec<f32>> =
            self.parameter_groups().iter().map(|group| vec![0.0; group.count]).collect();
        let mut starts = vec![0; self.terms().len()];
        let mut scratch = vec![0.0; self.axes().scratch_len()];
        for block in layout.iter() {
            let row = |row: usize| &g[(block.row + row) * layout.cols() + block.col..][..block.width];
            let weights: Vec<f32> = (0..block.height).flat_map(row).copied().collect();
            let mut coefficients = weights.clone();
            self.axes().forward_block(block, &mut coefficients, &mut scratch);
            for ((term, gradient), start) in self.terms().iter().zip(&mut gradients).zip(&mut starts) {
                let tile = if term.domain() == Domain::Weights { &weights } else { &coefficients };
                let end = *start + term.parameters_in(block);
                term.add_gradient(block, tile, &mut gradient[*start..end]);
                *start = end;
            }
        }
        gradients.concat()
    }
}
