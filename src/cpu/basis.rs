//! The basis term's product without its weights: all functions but `d` are products of a function of the
//! row and one of the column, so a block needs four sums of its inputs and, for `d`, one vector.
//!
//! With the input's moments `m_f = sum_c f(x_c) v_c` for `f` in `1, x^2, cos(pi x), cos(2 pi x)` and
//! `m_d[r] = sum_c d(r, c) v_c`, made once per block column,
//!
//! ```text
//!     out[r] += (t0 m_1 + t2 m_x2 + t3 m_c + t5 m_cc) + t2 m_1 y_r^2 + (t4 m_1 + t7 m_c) cos(pi y_r)
//!               + t6 m_1 cos(2 pi y_r) + t1 m_d[r]
//! ```
//!
//! so a block costs its height instead of its area. Transposed, rows and columns change places, and with
//! them parameters 3 and 4, and 5 and 6.

use super::pool::{Pool, Shared};
use crate::codec::basis::{Basis, FUNCTIONS, coordinate};
use crate::codec::{Block, Layout};
use std::f64::consts::PI;

/// Moments that do not depend on the output's row.
const SCALARS: usize = 4;

/// The moments of every input block, for `tokens` vectors, and what they are multiplied with.
pub(super) struct BasisProduct<'a> {
    basis: &'a Basis,
    layout: Layout,
    transposed: bool,
    tokens: usize,
    /// Lengths of output blocks: the full one and, where there is one, the border's.
    out_lengths: Vec<usize>,
    /// For each input block and token: [`SCALARS`] moments, then `m_d` for each output length.
    moments: Vec<f32>,
}

/// Length of the blocks of an axis: full ones and a shorter last one.
fn block_lengths(len: usize, edge: usize) -> Vec<usize> {
    let full = edge.min(len);
    if len.is_multiple_of(full) { vec![full] } else { vec![full, len % full] }
}

impl<'a> BasisProduct<'a> {
    /// Gathers the moments of `input`, `tokens` vectors of the matrix's `cols` (`rows` when transposed).
    pub(super) fn new(
        basis: &'a Basis,
        layout: Layout,
        transposed: bool,
        input: &[f32],
        tokens: usize,
    ) -> Self {
        let (in_len, out_len) =
            if transposed { (layout.rows(), layout.cols()) } else { (layout.cols(), layout.rows()) };
        let edge = layout.block();
        let out_lengths = block_lengths(out_len, edge);
        let mut product = Self { basis, layout, transposed, tokens, out_lengths, moments: Vec::new() };
        product.moments.reserve(in_len.div_ceil(edge) * tokens * product.moments_len());
        for start in (0..in_len).step_by(edge) {
            let len = edge.min(in_len - start);
            for token in 0..tokens {
                product.push_moments(&input[token * in_len + start..][..len]);
            }
        }
        product
    }

    fn moments_len(&self) -> usize {
        SCALARS + self.out_lengths.iter().sum::<usize>()
    }

    fn push_moments(&mut self, input: &[f32]) {
        let mut scalars = [0.0; SCALARS];
        for (index, value) in input.iter().enumerate() {
            let (x, value) = (coordinate(index, input.len()), f64::from(*value));
            let functions = [1.0, x * x, (PI * x).cos(), (2.0 * PI * x).cos()];
            scalars.iter_mut().zip(functions).for_each(|(sum, f)| *sum += f * value);
        }
        self.moments.extend(scalars.map(|sum| sum as f32));
        for &out_len in &self.out_lengths {
            self.moments.extend((0..out_len).map(|row| {
                let y = coordinate(row, out_len);
                let distance = |(index, value): (usize, &f32)| {
                    let x = coordinate(index, input.len());
                    (x * x + y * y).sqrt() * f64::from(*value)
                };
                input.iter().enumerate().map(distance).sum::<f64>() as f32
            }));
        }
    }

    /// Parameters of a block, as seen from the output's side.
    fn theta(&self, block: Block) -> [f32; FUNCTIONS] {
        let mut theta = self.basis.theta(block);
        if self.transposed {
            theta.swap(3, 4);
            theta.swap(5, 6);
        }
        theta
    }

    /// Adds the product to `out` (`tokens x length of an output`), output block by output block.
    pub(super) fn add(&self, out: &mut [f32], pool: &dyn Pool) {
        let out_len = out.len() / self.tokens;
        let edge = self.layout.block();
        let out = Shared::new(out);
        pool.run(out_len.div_ceil(edge), &|range| {
            for index in range {
                for token in 0..self.tokens {
                    let start = token * out_len + index * edge;
                    let end = token * out_len + ((index + 1) * edge).min(out_len);
                    // SAFETY: an output block belongs to one item.
                    let out = unsafe { out.part(start..end) };
                    self.add_block(index, token, out);
                }
            }
        });
    }

    fn add_block(&self, index: usize, token: usize, out: &mut [f32]) {
        let out_len = out.len();
        let m_d_start = SCALARS + self.out_lengths.iter().take_while(|len| **len != out_len).sum::<usize>();
        let in_blocks = if self.transposed { self.layout.block_rows() } else { self.layout.block_cols() };
        {
            let (mut constant, mut square, mut cosine, mut double_cosine) = (0f64, 0f64, 0f64, 0f64);
            for j in 0..in_blocks {
                let block = if self.transposed {
                    self.layout.block_at(j, index)
                } else {
                    self.layout.block_at(index, j)
                };
                let theta = self.theta(block).map(f64::from);
                let moments = &self.moments[(j * self.tokens + token) * self.moments_len()..];
                let [m_1, m_x2, m_c, m_cc] = std::array::from_fn(|k| f64::from(moments[k]));
                constant += theta[0] * m_1 + theta[2] * m_x2 + theta[3] * m_c + theta[5] * m_cc;
                square += theta[2] * m_1;
                cosine += theta[4] * m_1 + theta[7] * m_c;
                double_cosine += theta[6] * m_1;
                let m_d = &moments[m_d_start..][..out_len];
                out.iter_mut().zip(m_d).for_each(|(out, m_d)| *out += theta[1] as f32 * m_d);
            }
            for (row, out) in out.iter_mut().enumerate() {
                let y = coordinate(row, out_len);
                let sum = constant
                    + square * y * y
                    + cosine * (PI * y).cos()
                    + double_cosine * (2.0 * PI * y).cos();
                *out += sum as f32;
            }
        }
    }
}
