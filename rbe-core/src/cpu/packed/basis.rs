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
//! them parameters 3 and 4, and 5 and 6. A parameter's gradient is a sum of products of the input's moments with
//! those of the output's gradient.

use super::{Backward, BlockRow, Forms, Inputs, PackedTerm, Product};
use crate::codec::term::Domain;
use crate::codec::term::basis::{Basis, FUNCTIONS, coordinate};
use crate::codec::term::summand::Summand;
use crate::codec::{Block, Cut, Layout, Sides};
use crate::cpu::exec::Exec;
use crate::cpu::gemm::{Strided, Write, multiply};
use crate::cpu::kernels::Kernels;
use crate::cpu::pool::Shared;
use crate::cpu::rows::Rows;
use std::borrow::Cow;
use std::f32::consts::PI;

/// Functions of one coordinate.
const SCALARS: usize = 4;

/// `1, x^2, cos(pi x), cos(2 pi x)` at every element of a block's side.
fn scalars(len: usize) -> Vec<[f32; SCALARS]> {
    (0..len)
        .map(|index| {
            let x = coordinate(index, len) as f32;
            [1.0, x * x, (PI * x).cos(), (2.0 * PI * x).cos()]
        })
        .collect()
}

/// What an input block is multiplied with: for each of its `len` elements the scalars, then `d` to each of the
/// `out_len` elements of the other side.
fn table(len: usize, out_len: usize) -> Vec<f32> {
    let across: Vec<f32> = (0..out_len).map(|index| coordinate(index, out_len) as f32).collect();
    let mut table = Vec::with_capacity(len * (SCALARS + out_len));
    for (index, scalars) in scalars(len).into_iter().enumerate() {
        let x = coordinate(index, len) as f32;
        table.extend(scalars);
        table.extend(across.iter().map(|y| (x * x + y * y).sqrt()));
    }
    table
}

/// The basis term, which products take as it is.
#[derive(Debug)]
pub(in crate::cpu) struct PackedBasis(Basis);

impl PackedBasis {
    pub(in crate::cpu) fn new(term: &Basis) -> Self {
        Self(term.clone())
    }

    /// The term, or that with the product's parameters.
    fn with(&self, product: &Product) -> Cow<'_, Basis> {
        match product.parameters {
            Some(own) => Cow::Owned(Basis::new(self.0.layout(), own.values().as_chunks().0, false)),
            None => Cow::Borrowed(&self.0),
        }
    }
}

impl PackedTerm for PackedBasis {
    fn domain(&self) -> Domain {
        Domain::Weights
    }

    fn bytes(&self) -> usize {
        self.0.size_in_bytes()
    }

    fn parameters_in(&self, _: Block) -> usize {
        FUNCTIONS
    }

    fn reads(&self, _: &Kernels, _: &Product) -> Forms {
        Forms::FLOATS
    }

    fn add_product(&self, exec: Exec, product: &Product, x: &Inputs, out: &mut [f32]) {
        let basis = self.with(product);
        Moments::new(product.sides, x.rows).add_product(exec, &basis, out);
    }

    fn gradients(&self, exec: Exec, at: &Backward, _: Option<&mut [f32]>, gradient: &mut [f32]) {
        let (u, v) = at.on_matrix();
        gradients_of_blocks(exec, self.0.layout(), u.rows, v.rows, gradient);
    }

    fn add_block(&self, _: &Kernels, block: Block, out: &mut [f32]) {
        self.0.add_rows(block, 0..block.height, out);
    }

    fn add_row(&self, _: &Kernels, block: Block, row: &BlockRow, out: &mut [f32]) {
        self.0.add_rows(block, row.index..row.index + 1, out);
    }
}

/// The moments of every input block, for each row of the batch.
struct Moments {
    sides: Sides,
    batch: usize,
    /// Lengths of output blocks.
    out_lengths: Vec<usize>,
    /// For each output length and input block, of each row: [`SCALARS`] moments, then `m_d`.
    moments: Vec<Vec<f32>>,
}

/// The lengths that blocks of an axis have.
fn block_lengths(cut: &Cut) -> Vec<usize> {
    let first = cut.whole_blocks().saturating_sub(1);
    (first..cut.blocks()).map(|block| cut.range(block).len()).collect()
}

impl Moments {
    /// Gathers the moments of a product's input.
    fn new(sides: Sides, input: Rows) -> Self {
        let (in_cut, batch) = (sides.input(), input.batch);
        let out_lengths = block_lengths(sides.output());
        let mut moments = Vec::new();
        for &out_len in &out_lengths {
            let mut known = (0, Vec::new());
            for range in in_cut.iter() {
                let len = range.len();
                if known.0 != len {
                    known = (len, table(len, out_len));
                }
                let width = SCALARS + out_len;
                let mut block = vec![0.0; batch * width];
                let input = Strided::new(&input.values[range.start..], batch, len, in_cut.elements());
                multiply(&mut block, width, input, Strided::new(&known.1, len, width, width), Write::Over);
                moments.push(block);
            }
        }
        Self { sides, batch, out_lengths, moments }
    }

    /// The moments of an input block and row for output blocks of this length.
    fn of(&self, input: usize, row: usize, out_len: usize) -> ([f32; SCALARS], &[f32]) {
        // Every length of an output block is one of them.
        let which = self.out_lengths.iter().position(|len| *len == out_len).unwrap_or(0);
        let block = &self.moments[which * self.sides.input().blocks() + input];
        let (scalars, m_d) = block[row * (SCALARS + out_len)..][..SCALARS + out_len].split_at(SCALARS);
        (std::array::from_fn(|n| scalars[n]), m_d)
    }

    /// Adds the product to `out` (`batch x outputs`), output block by output block.
    fn add_product(&self, exec: Exec, basis: &Basis, out: &mut [f32]) {
        let cut = self.sides.output();
        let out = Shared::new(out);
        exec.pool.run(cut.blocks(), &|range| {
            for index in range {
                let place = cut.range(index);
                let functions = scalars(place.len());
                for row in 0..self.batch {
                    let start = row * cut.elements() + place.start;
                    // SAFETY: an output block belongs to one item.
                    let out = unsafe { out.part(start..start + place.len()) };
                    self.add_output_block(basis, (index, row), &functions, out);
                }
            }
        });
    }

    /// Output block `index` of row `row`.
    fn add_output_block(
        &self,
        basis: &Basis,
        (index, row): (usize, usize),
        functions: &[[f32; SCALARS]],
        out: &mut [f32],
    ) {
        let mut sums = [0f32; SCALARS];
        for input in 0..self.sides.input().blocks() {
            let mut theta = basis.theta(self.sides.block(index, input));
            if self.sides.is_transposed() {
                // As seen from the output's side.
                theta.swap(3, 4);
                theta.swap(5, 6);
            }
            let ([m_1, m_x2, m_c, m_cc], m_d) = self.of(input, row, out.len());
            sums[0] += theta[0] * m_1 + theta[2] * m_x2 + theta[3] * m_c + theta[5] * m_cc;
            sums[1] += theta[2] * m_1;
            sums[2] += theta[4] * m_1 + theta[7] * m_c;
            sums[3] += theta[6] * m_1;
            out.iter_mut().zip(m_d).for_each(|(out, m_d)| *out += theta[1] * m_d);
        }
        for (out, functions) in out.iter_mut().zip(functions) {
            *out += sums.iter().zip(functions).map(|(sum, function)| sum * function).sum::<f32>();
        }
    }
}

/// Writes `d (sum of v' W u) / d theta` of every block: `u` are rows of the matrix's `cols`, `v` of its `rows`.
fn gradients_of_blocks(exec: Exec, layout: Layout, u: Rows, v: Rows, gradient: &mut [f32]) {
    let (inputs, batch) = (Moments::new(Sides::new(layout, false), u), u.batch);
    let gradient = Shared::new(gradient);
    exec.pool.run(layout.block_rows(), &|range| {
        for i in range {
            let rows = layout.row_range(i);
            let functions = scalars(rows.len());
            let of_row = |row: usize| &v.values[row * layout.rows()..][rows.clone()];
            let mut outputs = vec![0.0; batch * SCALARS];
            let v = Strided::new(&v.values[rows.start..], batch, rows.len(), layout.rows());
            let functions = Strided::new(functions.as_flattened(), rows.len(), SCALARS, SCALARS);
            multiply(&mut outputs, SCALARS, v, functions, Write::Over);
            for j in 0..layout.block_cols() {
                let mut sums = [0f64; FUNCTIONS];
                for (row, outputs) in outputs.as_chunks::<SCALARS>().0.iter().enumerate() {
                    let (m, m_d) = inputs.of(j, row, rows.len());
                    let [m_1, m_x2, m_c, m_cc] = m.map(f64::from);
                    let [n_1, n_y2, n_c, n_cc] = outputs.map(f64::from);
                    let distance: f32 = of_row(row).iter().zip(m_d).map(|(v, m_d)| v * m_d).sum();
                    let terms = [
                        m_1 * n_1,
                        f64::from(distance),
                        m_x2 * n_1 + m_1 * n_y2,
                        m_c * n_1,
                        m_1 * n_c,
                        m_cc * n_1,
                        m_1 * n_cc,
                        m_c * n_c,
                    ];
                    sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
                }
                let start = layout.block_at(i, j).index * FUNCTIONS;
                // SAFETY: a block's parameters belong to its block row, and that to one item.
                let own = unsafe { gradient.part(start..start + FUNCTIONS) };
                own.iter_mut().zip(sums).for_each(|(own, sum)| *own = sum as f32);
            }
        }
    });
}
