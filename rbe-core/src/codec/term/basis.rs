//! The basis term: eight smooth functions per block, fitted by least squares.

use super::summand::{Compression, Domain, ParameterKind, Summand};
use crate::codec::bytes::{Reader, Writer};
use crate::codec::layout::{Block, Layout};
use crate::codec::units;
use crate::error::{Error, Result};
use half::f16;
use std::f64::consts::PI;
use std::ops::Range;

/// Number of basis functions, so of parameters per block.
pub const FUNCTIONS: usize = 8;

/// The half-sample grid: where element `index` of `len` lies in `(-1, 1)`.
pub fn coordinate(index: usize, len: usize) -> f64 {
    (2 * index + 1) as f64 / len as f64 - 1.0
}

/// `t`, `cos(pi t)`, `cos(2 pi t)` of an axis.
type AxisFunctions = [f64; 3];

fn of_axis(t: f64) -> AxisFunctions {
    [t, (PI * t).cos(), (2.0 * PI * t).cos()]
}

/// Those of all places of an axis.
fn axis(len: usize) -> Vec<AxisFunctions> {
    (0..len).map(|index| of_axis(coordinate(index, len))).collect()
}

fn combined([y, cos_y, cos_2y]: AxisFunctions, [x, cos_x, cos_2x]: AxisFunctions) -> [f64; FUNCTIONS] {
    let squared = x * x + y * y;
    [1.0, squared.sqrt(), squared, cos_x, cos_y, cos_2x, cos_2y, cos_x * cos_y]
}

/// The basis functions at a point of the block:
/// `1, d, d^2, cos(pi x), cos(pi y), cos(2 pi x), cos(2 pi y), cos(pi x) cos(pi y)` with `d = sqrt(x^2 + y^2)`.
pub fn functions(y: f64, x: f64) -> [f64; FUNCTIONS] {
    combined(of_axis(y), of_axis(x))
}

/// The weights that eight parameters generate at the given `(row, column)` positions of a block.
#[doc(alias = "WeightGenerator")]
pub fn weights_at(theta: &[f32; FUNCTIONS], block: Block, positions: &[(usize, usize)]) -> Vec<f32> {
    positions
        .iter()
        .map(|&(row, col)| {
            let phi = functions(coordinate(row, block.height), coordinate(col, block.width));
            phi.iter().zip(theta).map(|(phi, theta)| phi * f64::from(*theta)).sum::<f64>() as f32
        })
        .collect()
}

/// How parameters are stored.
#[derive(Clone, Debug, PartialEq)]
enum Parameters {
    F32(Vec<f32>),
    /// Values times a power of two.
    F16 {
        unit: f32,
        values: Vec<f16>,
    },
}

/// The term `sum_k theta_k phi_k` of every block, in the weight domain.
#[derive(Clone, Debug, PartialEq)]
pub struct Basis {
    layout: Layout,
    parameters: Parameters,
}

impl Basis {
    /// Stores the parameters of all blocks, in row-major order of blocks; in F16 when `half` is set.
    ///
    /// # Panics
    /// When there are not as many as blocks, or one is not finite or too large ([`checked`](Self::checked)).
    pub fn new(layout: Layout, theta: &[[f32; FUNCTIONS]], half: bool) -> Self {
        Self::checked(layout, theta, half).unwrap_or_else(|error| panic!("{error}"))
    }

    /// [`new`](Self::new) of parameters that may be too large.
    ///
    /// # Errors
    /// When one is not finite, or beyond what F16 numbers times a unit can be.
    ///
    /// # Panics
    /// When there are not as many as blocks.
    pub fn checked(layout: Layout, theta: &[[f32; FUNCTIONS]], half: bool) -> Result<Self> {
        assert_eq!(theta.len(), layout.blocks());
        let flat = theta.as_flattened();
        if let Some(index) = flat.iter().position(|parameter| !parameter.is_finite()) {
            let value = flat[index];
            return Err(Error::config(format!("basis parameter {index} is {value}; it must be finite")));
        }
        let parameters = if half {
            let unit = units::unit_for(flat.iter().copied(), 14);
            Parameters::F16 { unit, values: units::in_units(flat, unit, "basis parameter")? }
        } else {
            Parameters::F32(flat.to_vec())
        };
        Ok(Self { layout, parameters })
    }

    /// The layout of the matrix.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// `d <g, weights> / d theta` of one block: the inner products of each function with `g` (`height x width`).
    pub fn gradient(&self, block: Block, g: &[f32]) -> [f32; FUNCTIONS] {
        let mut gradient = [0.0; FUNCTIONS];
        let xs = axis(block.width);
        for (y, g) in axis(block.height).iter().zip(g.chunks_exact(block.width)) {
            for (x, g) in xs.iter().zip(g) {
                let phi = combined(*y, *x);
                gradient.iter_mut().zip(phi).for_each(|(sum, phi)| *sum += phi * f64::from(*g));
            }
        }
        gradient.map(|sum| sum as f32)
    }

    /// The eight parameters of a block.
    pub fn theta(&self, block: Block) -> [f32; FUNCTIONS] {
        let first = block.index * FUNCTIONS;
        match &self.parameters {
            Parameters::F32(values) => std::array::from_fn(|k| values[first + k]),
            Parameters::F16 { unit, values } => std::array::from_fn(|k| values[first + k].to_f32() * unit),
        }
    }
}

impl Summand for Basis {
    fn name(&self) -> &'static str {
        "basis"
    }

    fn domain(&self) -> Domain {
        Domain::Weights
    }

    fn layout(&self) -> Layout {
        self.layout
    }

    fn add_rows(&self, block: Block, rows: Range<usize>, out: &mut [f32]) {
        let theta = self.theta(block).map(f64::from);
        let xs = axis(block.width);
        for (row, out) in rows.zip(out.chunks_exact_mut(block.width)) {
            let y = of_axis(coordinate(row, block.height));
            for (x, out) in xs.iter().zip(out) {
                let phi = combined(y, *x);
                *out += phi.iter().zip(&theta).map(|(phi, theta)| phi * theta).sum::<f64>() as f32;
            }
        }
    }

    fn stored_numbers(&self) -> usize {
        FUNCTIONS * self.layout.blocks()
    }

    fn parameter_kind(&self) -> ParameterKind {
        ParameterKind::Functions
    }

    fn parameters(&self) -> Vec<f32> {
        self.layout.iter().flat_map(|block| self.theta(block)).collect()
    }

    fn parameters_in(&self, _: Block) -> usize {
        FUNCTIONS
    }

    fn with_parameters(&self, parameters: &[f32]) -> Result<Self> {
        let (theta, rest) = parameters.as_chunks();
        assert!(rest.is_empty());
        Self::checked(self.layout, theta, matches!(self.parameters, Parameters::F16 { .. }))
    }

    fn add_gradient(&self, block: Block, g: &[f32], gradient: &mut [f32]) {
        gradient.iter_mut().zip(self.gradient(block, g)).for_each(|(sum, d)| *sum += d);
    }

    fn times_power_of_two(&self, exponent: i32) -> Result<Self> {
        let parameters = match &self.parameters {
            Parameters::F16 { unit, values } => {
                Parameters::F16 { unit: units::scaled_unit(*unit, exponent)?, values: values.clone() }
            }
            Parameters::F32(values) => {
                let factor = units::scaled_unit(1.0, exponent)?;
                Parameters::F32(values.iter().map(|value| value * factor).collect())
            }
        };
        Ok(Self { layout: self.layout, parameters })
    }

    fn read(reader: &mut Reader, layout: Layout, _: Compression) -> Result<Self> {
        let count = layout.blocks() * FUNCTIONS;
        let parameters = match reader.u8("basis precision")? {
            0 => Parameters::F32(reader.f32s(count, "basis parameters")?),
            1 => Parameters::F16 {
                unit: units::read_unit(reader, "basis unit")?,
                values: reader.f16s(count, "basis parameters")?,
            },
            other => return Err(Error::payload(format!("unknown basis precision {other}"))),
        };
        Ok(Self { layout, parameters })
    }

    fn size_in_bytes(&self) -> usize {
        let unit = size_of::<f32>();
        1 + match &self.parameters {
            Parameters::F32(values) => size_of_val(&values[..]),
            Parameters::F16 { values, .. } => unit + size_of_val(&values[..]),
        }
    }

    fn summary(&self) -> String {
        let width = if matches!(self.parameters, Parameters::F32(_)) { "f32" } else { "f16" };
        format!("basis {width}")
    }

    fn write(&self, writer: &mut Writer) {
        match &self.parameters {
            Parameters::F32(values) => {
                writer.u8(0);
                values.iter().for_each(|value| writer.f32(*value));
            }
            Parameters::F16 { unit, values } => {
                writer.u8(1);
                writer.f32(*unit);
                writer.f16s(values);
            }
        }
    }
}

/// Least squares onto the basis functions for one block size.
///
/// The normal equations' matrix `G = Phi' Phi` depends on the block's size alone; its factorisation is made
/// once. Functions that others already span (all but one on a 1x1 block) get the parameter 0.
#[derive(Clone, Debug)]
pub struct Fit {
    /// `Phi`, one row of eight per element, row-major over the block.
    phi: Vec<[f64; FUNCTIONS]>,
    /// Unit lower triangle of `G = L D L'`; rows and columns of dependent functions are zero.
    lower: [[f64; FUNCTIONS]; FUNCTIONS],
    /// `1 / D`, and 0 for a dependent function.
    inverse_pivots: [f64; FUNCTIONS],
}

impl Fit {
    /// The fit for blocks of `height x width`.
    pub fn new(height: usize, width: usize) -> Self {
        let (ys, xs) = (axis(height), axis(width));
        let phi: Vec<_> = ys.iter().flat_map(|y| xs.iter().map(|x| combined(*y, *x))).collect();
        let mut gram = [[0.0; FUNCTIONS]; FUNCTIONS];
        for phi in &phi {
            for a in 0..FUNCTIONS {
                for b in 0..=a {
                    gram[a][b] += phi[a] * phi[b];
                }
            }
        }
        let mut lower = [[0.0; FUNCTIONS]; FUNCTIONS];
        let mut pivots = [0.0; FUNCTIONS];
        let mut inverse_pivots = [0.0; FUNCTIONS];
        for k in 0..FUNCTIONS {
            let pivot = gram[k][k] - (0..k).map(|m| lower[k][m] * lower[k][m] * pivots[m]).sum::<f64>();
            // What is left of a dependent function is rounding; a true one keeps far more.
            if pivot > 1e-9 * gram[k][k] {
                pivots[k] = pivot;
                inverse_pivots[k] = 1.0 / pivot;
            }
            for row in k + 1..FUNCTIONS {
                let shared: f64 = (0..k).map(|m| lower[row][m] * lower[k][m] * pivots[m]).sum();
                lower[row][k] = (gram[row][k] - shared) * inverse_pivots[k];
            }
        }
        Self { phi, lower, inverse_pivots }
    }

    /// The parameters that minimise `|values - sum theta_k phi_k|^2`; `values` is a block, row-major.
    ///
    /// # Panics
    /// When `values` is not as long as the block.
    pub fn solve(&self, values: &[f32]) -> [f32; FUNCTIONS] {
        assert_eq!(values.len(), self.phi.len());
        let mut theta = [0.0; FUNCTIONS];
        for (phi, value) in self.phi.iter().zip(values) {
            theta.iter_mut().zip(phi).for_each(|(t, phi)| *t += phi * f64::from(*value));
        }
        for k in 0..FUNCTIONS {
            theta[k] -= (0..k).map(|m| self.lower[k][m] * theta[m]).sum::<f64>();
        }
        theta.iter_mut().zip(&self.inverse_pivots).for_each(|(t, inverse)| *t *= inverse);
        for k in (0..FUNCTIONS).rev() {
            // A dependent function's column of L is zero, so its parameter stays 0.
            theta[k] -= (k + 1..FUNCTIONS).map(|m| self.lower[m][k] * theta[m]).sum::<f64>();
        }
        theta.map(|t| t as f32)
    }

    /// `values -= sum theta_k phi_k`.
    pub fn subtract(&self, theta: &[f32; FUNCTIONS], values: &mut [f32]) {
        for (phi, value) in self.phi.iter().zip(values) {
            let sum: f64 = phi.iter().zip(theta).map(|(phi, theta)| phi * f64::from(*theta)).sum();
            *value -= sum as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(height: usize, width: usize) -> Block {
        Block { index: 0, row: 0, col: 0, height, width }
    }

    #[test]
    fn recovers_parameters_that_generated_a_block() {
        let theta = [0.5, -1.25, 2.0, 0.125, -0.75, 1.5, 0.25, -3.0];
        for (h, w) in [(32, 32), (64, 40), (17, 256)] {
            let positions: Vec<_> = (0..h * w).map(|n| (n / w, n % w)).collect();
            let values = weights_at(&theta, block(h, w), &positions);
            let fitted = Fit::new(h, w).solve(&values);
            for (a, b) in fitted.iter().zip(&theta) {
                assert!((a - b).abs() < 2e-4, "{h}x{w}: {fitted:?}");
            }
        }
    }

    #[test]
    fn the_residual_is_orthogonal_to_every_function_even_where_they_depend_on_each_other() {
        for (h, w) in [(1, 1), (1, 7), (2, 2), (3, 1), (5, 64), (64, 64)] {
            let values: Vec<f32> = (0..h * w).map(|n| ((n * n) as f32 * 0.37).sin()).collect();
            let fit = Fit::new(h, w);
            let mut residual = values.clone();
            fit.subtract(&fit.solve(&values), &mut residual);
            for k in 0..FUNCTIONS {
                let dot: f64 = fit.phi.iter().zip(&residual).map(|(phi, r)| phi[k] * f64::from(*r)).sum();
                assert!(dot.abs() < 1e-4 * (h * w) as f64, "{h}x{w}, function {k}: {dot}");
            }
        }
    }

    #[test]
    fn six_functions_are_single_cosines() {
        // On this grid cos(m pi x) is DCT-II function 2m, up to sign.
        let n = 64;
        let plan = crate::codec::transform::Plan::new(Default::default(), n);
        for (k, frequency) in [(0, 0), (3, 2), (5, 4)] {
            let mut x: Vec<f32> = (0..n).map(|i| functions(0.3, coordinate(i, n))[k] as f32).collect();
            plan.forward(&mut x, &mut vec![0.0; plan.scratch_len()]);
            for (m, c) in x.iter().enumerate() {
                assert_eq!(c.abs() > 1e-5, m == frequency, "function {k}, coefficient {m} is {c}");
            }
        }
    }
}
