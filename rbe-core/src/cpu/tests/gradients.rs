//! The fast gradients against the codec's reference, and that against the definition.

use super::super::product::{Gradients, gradients};
use super::super::{parametric_gradients, parametric_matmul};
use super::*;

/// Numbers in -1..1.
fn wave(len: usize, speed: f32) -> Vec<f32> {
    (0..len).map(|n| (n as f32 * speed).sin()).collect()
}

/// Other parameters, exactly as the format holds them, and the matrix that has them.
fn moved(matrix: &Matrix) -> (Vec<f32>, Matrix) {
    let parameters: Vec<f32> = matrix
        .parameters()
        .iter()
        .enumerate()
        .map(|(n, p)| p * (1.0 + 0.3 * (n as f32 * 0.37).cos()))
        .collect();
    let matrix = matrix.with_parameters(&parameters).unwrap();
    (matrix.parameters(), matrix)
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

/// `|a - b| / |b|`; where `b` is a sum that cancels, relative to `floor`.
fn relative(a: &[f32], b: &[f32], floor: f64) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference = norm(a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    if difference == 0.0 { 0.0 } else { difference / norm(b.iter().map(|b| f64::from(*b))).max(floor) }
}

/// `a b` for row-major matrices, in F64.
fn textbook(a: &[f32], b: &[f32], inner: usize) -> Vec<f32> {
    let cols = b.len() / inner;
    let mut out = Vec::new();
    for a in a.chunks_exact(inner) {
        let mut row = vec![0f64; cols];
        for (a, b) in a.iter().zip(b.chunks_exact(cols)) {
            row.iter_mut().zip(b).for_each(|(sum, b)| *sum += f64::from(*a) * f64::from(*b));
        }
        out.extend(row.into_iter().map(|sum| sum as f32));
    }
    out
}

fn transpose(values: &[f32], cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|col| values.iter().skip(col).step_by(cols).copied()).collect()
}

#[test]
fn the_reference_gradient_is_the_inner_product_with_what_a_parameter_multiplies() {
    for matrix in matrices() {
        let g = wave(matrix.layout().elements(), 0.7);
        let gradient = matrix.parameter_gradient(&g);
        let count = gradient.len();
        assert_eq!(count, matrix.parameter_groups().iter().map(|group| group.count).sum::<usize>());
        let scale = gradient.iter().fold(0f32, |m, d| m.max(d.abs()));
        for n in (0..count).step_by(count.div_ceil(12)) {
            let mut unit = vec![0.0; count];
            unit[n] = 1.0;
            let direction = matrix.with_parameters(&unit).unwrap().decode();
            let exact: f64 = direction.iter().zip(&g).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let error = (f64::from(gradient[n]) - exact).abs();
            assert!(error <= 1e-5 * f64::from(scale), "{} parameter {n}: {error}", matrix.summary());
        }
    }
}

#[test]
fn products_and_gradients_are_those_of_the_decoded_matrix_at_every_level() {
    let mut worst = [0f64; 3];
    for matrix in matrices() {
        let (rows, cols) = (matrix.layout().rows(), matrix.layout().cols());
        let (loaded, (parameters, other)) = (PackedMatrix::new(&matrix), moved(&matrix));
        let weights = other.decode();
        let weights_t = transpose(&weights, cols);
        for (batch, transposed) in [(1, false), (1, true), (70, false), (70, true), (139, false)] {
            let (in_len, out_len) = if transposed { (rows, cols) } else { (cols, rows) };
            let (x, g) = (wave(batch * in_len, 0.31), wave(batch * out_len, 0.83));
            let (forward, back) = if transposed { (&weights, &weights_t) } else { (&weights_t, &weights) };
            let (y, dx) = (textbook(&x, forward, in_len), textbook(&g, back, out_len));
            let (u, v) = if transposed { (&g, &x) } else { (&x, &g) };
            let dw = textbook(&transpose(v, rows), u, batch);
            let dp = other.parameter_gradient(&dw);
            let own = Oriented::new(&loaded, transposed);
            let (rows_x, rows_g) = (Rows::new(&x, batch, in_len), Rows::new(&g, batch, out_len));
            for level in levels() {
                let kernels = Kernels::new(level).unwrap();
                let context =
                    format!("{level:?} {rows}x{cols} {} batch {batch} {transposed}", matrix.summary());
                let pool: &dyn Pool = if batch > 100 { &Rayon } else { &Serial };
                let exec = Exec { kernels: &kernels, pool };
                let mut out = vec![f32::NAN; y.len()];
                parametric(exec, own, &parameters, rows_x, &mut out);
                let (mut out_x, mut out_p) = (vec![f32::NAN; dx.len()], vec![f32::NAN; dp.len()]);
                let both = Gradients { x: Some(&mut out_x), parameters: &mut out_p };
                gradients(exec, own, &parameters, (rows_x, rows_g), both);
                // A product of independent numbers has `|x W| = |x| |W| / sqrt(in)`, a sixteenth for 256.
                let norm = |values: &[f32]| norm(values.iter().map(|value| f64::from(*value)));
                let floor = |input: &[f32]| norm(input) * norm(&weights) / 100.0;
                let errors = [
                    relative(&out, &y, floor(&x)),
                    relative(&out_x, &dx, floor(&g)),
                    relative(&out_p, &dp, 0.0),
                ];
                // A scale's gradient is a sum over its whole block, which may cancel.
                for ((what, error), bound) in
                    ["product", "dx", "dp"].iter().zip(errors).zip([1e-5, 1e-5, 1e-4])
                {
                    assert!(error <= bound, "{context} {what}: {error:e}");
                }
                worst.iter_mut().zip(errors).for_each(|(worst, error)| *worst = worst.max(error));
                // Without an input to differentiate, and on another pool, the bits are the same.
                let mut again = vec![f32::NAN; dp.len()];
                let alone = Gradients { x: None, parameters: &mut again };
                gradients(Exec { pool: &Rayon, ..exec }, own, &parameters, (rows_x, rows_g), alone);
                assert!(batch <= 100 || again == out_p || relative(&again, &out_p, 0.0) < 1e-6, "{context}");
            }
        }
    }
    println!("largest relative errors of product, dx, dp: {worst:?}");
}

#[test]
fn parameters_that_no_format_holds_are_refused() {
    let matrices = matrices();
    let planes = matrices.iter().find(|m| m.summary().starts_with("planes")).unwrap();
    let mut parameters = planes.parameters();
    assert!(planes.with_parameters(&parameters[1..]).unwrap_err().to_string().contains("that has"));
    parameters[0] = -1.0;
    assert!(planes.with_parameters(&parameters).unwrap_err().to_string().contains("cannot be negative"));
    parameters[0] = f32::NAN;
    assert!(planes.with_parameters(&parameters).unwrap_err().to_string().contains("NaN"));
}

#[test]
fn no_vectors_have_no_gradient() {
    for matrix in matrices() {
        let loaded = PackedMatrix::new(&matrix);
        let mut gradient = vec![f32::NAN; matrix.parameters().len()];
        let parameters = matrix.parameters();
        let (rows, cols) = (matrix.layout().rows(), matrix.layout().cols());
        let (x, g) = (Rows::new(&[], 0, cols), Rows::new(&[], 0, rows));
        let out = Gradients { x: None, parameters: &mut gradient };
        parametric_gradients(&loaded, &parameters, x, g, out, &Serial);
        assert!(gradient.iter().all(|d| *d == 0.0));
        parametric_matmul(&loaded, &parameters, x, &mut [], &Serial);
    }
}
