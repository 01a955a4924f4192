//! Every side from 1 to 300, as rows and as columns, at numbers of vectors that take each way through the transforms: a fast path
//! that takes on more than it handles gives a wrong product, not an error.

use super::super::kernels::Kernels;
use super::super::product::{Gradients, gradients};
use super::*;

/// The side that is not tried: blocks of 32 and 40, of 72.
const OTHER: usize = 72;
const VECTORS: [usize; 6] = [1, 4, 5, 16, 17, 64];

/// All terms at once, so that whichever is wrong shows.
fn all_terms(rows: usize, cols: usize, n: usize) -> Matrix {
    let layout = Layout::new(rows, cols, [256, 32, 64, 128][n % 4]).unwrap();
    let terms = vec![
        basis(layout),
        sparse(layout, FORMATS[[0, 3, 2][n % 3]]),
        planes(layout, [ScaleGroup::Block, ScaleGroup::Row][n % 2]),
        trellis(layout),
    ];
    let matrix = Matrix::new(layout, Transform::Dct, (!n.is_multiple_of(5)).then_some(n as u64), terms, 0.0);
    if n % 3 == 1 { matrix.with_scales(scales(rows), scales(cols)) } else { matrix }
}

/// `(vectors, rows)` products with a dense row-major matrix of `cols` columns.
fn dense(weights: &[f32], cols: usize, x: &[f32]) -> Vec<f32> {
    let dot = |w: &[f32], x: &[f32]| {
        w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>() as f32
    };
    x.chunks_exact(cols).flat_map(|x| weights.chunks_exact(cols).map(move |w| dot(w, x))).collect()
}

/// Relative to the result, or where that cancels to nearly nothing, to a hundredth of what it could be.
fn relative(out: &[f32], expected: &[f32], weights: &[f32], x: &[f32]) -> f32 {
    let largest = norm(weights.iter().copied()) * norm(x.iter().copied());
    norm(out.iter().zip(expected).map(|(a, b)| a - b)) / norm(expected.iter().copied()).max(0.01 * largest)
}

#[test]
fn every_side_is_multiplied_as_its_decoded_matrix() {
    let all: Vec<_> = (0..VECTORS[5] * 300)
        .map(|n| (n as u32 + 1).wrapping_mul(0x9e37_79b9).cast_signed() as f32 / 2f32.powi(31))
        .collect();
    // An emulated processor takes many minutes for all: `.ci/run` asks for one in seven there, and the lengths of transforms.
    let one_in = std::env::var("RBE_SIDES_ONE_IN").map_or(1, |n| n.parse::<usize>().expect("a number"));
    for side in (1..=300).filter(|side| side % one_in == 1 % one_in || (one_in > 1 && side % 32 == 0)) {
        for (rows, cols) in [(side, OTHER), (OTHER, side)] {
            let matrix = all_terms(rows, cols, side);
            let loaded = PackedMatrix::new(&matrix);
            let weights = matrix.decode();
            let transpose: Vec<f32> = (0..rows * cols).map(|n| weights[n % rows * cols + n / rows]).collect();
            let (all_x, all_g) = (&all[..VECTORS[5] * cols], &all[..VECTORS[5] * rows]);
            let (all_y, all_dx) = (dense(&weights, cols, all_x), dense(&transpose, rows, all_g));
            let parameters = matrix.parameters();
            for level in levels() {
                let kernels = Kernels::new(level).unwrap();
                let (own, exec) = (Oriented::from(&loaded), Exec { kernels: &kernels, pool: &Serial });
                for batch in VECTORS {
                    let (x, g) = (&all_x[..batch * cols], &all_g[..batch * rows]);
                    let rows_x = Rows::new(x, batch, cols);
                    let (y, dx) = (&all_y[..batch * rows], &all_dx[..batch * cols]);
                    let check = |what: &str, out: &[f32], expected: &[f32], input: &[f32]| {
                        let error = relative(out, expected, &weights, input);
                        assert!(error <= 1e-5, "{level:?} {rows}x{cols} {batch} {what}: {error}");
                    };
                    let (mut out, mut back) = (vec![f32::NAN; y.len()], vec![f32::NAN; dx.len()]);
                    product(&kernels, own, x, &mut out, (Precision::Exact, &Serial));
                    check("forward", &out, y, x);
                    product(&kernels, own.t(), g, &mut back, (Precision::Exact, &Serial));
                    check("transposed", &back, dx, g);
                    out.fill(f32::NAN);
                    parametric(exec, own, &parameters, rows_x, &mut out);
                    check("parametric", &out, y, x);
                    let mut of_parameters = vec![f32::NAN; parameters.len()];
                    back.fill(f32::NAN);
                    let dp = &mut of_parameters[..];
                    let out = Gradients { x: Some(&mut back), parameters: dp };
                    gradients(exec, own, &parameters, (rows_x, Rows::new(g, batch, rows)), out);
                    check("gradient", &back, dx, g);
                    // The product is linear in the parameters, so `<g, y> = <p, d<g, y>/dp>`.
                    let dot = |a: &[f32], b: &[f32]| {
                        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
                    };
                    let largest = [g, &weights, x].map(|values| f64::from(norm(values.iter().copied())));
                    let error = dot(g, y) - dot(&parameters, &of_parameters);
                    assert!(
                        error.abs() <= 1e-6 * largest.iter().product::<f64>(),
                        "{level:?} {rows}x{cols}: {error}"
                    );
                }
            }
        }
    }
}
