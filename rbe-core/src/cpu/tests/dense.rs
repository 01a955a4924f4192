//! The dense product against one in F64, the same dot products on every level, and compressed products that are done as dense ones.

use super::{difference, largest, product, trellis};
use crate::codec::term::sparse::FORMATS;
use crate::codec::{Layout, Matrix, Transform};
use crate::cpu::dense::run;
use crate::cpu::exec::Exec;
use crate::cpu::features::levels;
use crate::cpu::kernels::Kernels;
use crate::cpu::{PackedMatrix, Precision, Rayon, Rows, Serial};

fn noise(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|n| ((n * 37 + seed) as f32 * 0.71).sin()).collect()
}

/// The largest difference from the product in F64, beside the sum of the products' magnitudes.
fn error(weight: &[f32], x: &[f32], y: &[f32], cols: usize) -> f64 {
    let rows = weight.len() / cols;
    let mut worst = 0f64;
    for (x, y) in x.chunks_exact(cols).zip(y.chunks_exact(rows)) {
        for (weight, y) in weight.chunks_exact(cols).zip(y) {
            let products = || weight.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            let size: f64 = products().map(f64::abs).sum();
            worst = worst.max((f64::from(*y) - products().sum::<f64>()).abs() / size);
        }
    }
    worst
}

#[test]
fn any_shape_and_batch() {
    let kernels = Kernels::get();
    for (rows, cols) in [(1, 1), (3, 17), (65, 63), (97, 100), (300, 576), (131, 1009)] {
        for batch in [1, 2, 6, 7, 40] {
            let (weight, x) = (noise(rows * cols, 1), noise(batch * cols, 5));
            for pool in [&Serial as &dyn crate::cpu::Pool, &Rayon] {
                let mut y = vec![f32::NAN; batch * rows];
                run(Exec { kernels, pool }, &weight, Rows::new(&x, batch, cols), &mut y);
                let error = error(&weight, &x, &y, cols);
                // Each product is rounded, and every sum that it goes into, whatever their order.
                let bound = (cols + 1) as f64 * f64::from(f32::EPSILON) / 2.0;
                assert!(error < bound, "{rows}x{cols}, {batch} vectors: {error}");
            }
        }
    }
}

#[test]
fn a_dot_product_has_the_same_bits_on_every_level() {
    for len in [0, 1, 15, 16, 17, 63, 64, 65, 127, 576, 1009] {
        let (a, b) = (noise(len, 3), noise(len, 8));
        let dot = |level| Kernels::new(level).unwrap().dot(&a, &b);
        let first = dot(levels()[0]);
        for level in levels() {
            assert_eq!(dot(level).to_bits(), first.to_bits(), "{len} elements, {level:?}");
        }
    }
}

#[test]
#[should_panic(expected = "the weight")]
fn a_weight_of_another_length_is_refused() {
    run(
        Exec { kernels: Kernels::get(), pool: &Serial },
        &[0.0; 11],
        Rows::new(&[0.0; 4], 1, 4),
        &mut [0.0; 3],
    );
}

/// Two trellises and a sparse term take more digits than floats are worth on every level.
#[test]
fn many_vectors_and_digits_are_multiplied_as_floats() {
    let layout = Layout::new(97, 172, 64).unwrap();
    let terms = vec![super::sparse(layout, FORMATS[0]), trellis(layout), trellis(layout)];
    let matrix = Matrix::new(layout, Transform::Dct, Some(7), terms, 0.1f32);
    let packed = PackedMatrix::new(&matrix);
    let x = noise(150 * 172, 4);
    let expected: Vec<f32> = x.chunks(172).flat_map(|x| matrix.product(x)).collect();
    for level in levels() {
        let kernels = Kernels::new(level).unwrap();
        let mut y = vec![f32::NAN; expected.len()];
        product(&kernels, (&packed).into(), &x, &mut y, (Precision::Exact, &Rayon));
        let error = difference(&y, &expected) / largest(&expected);
        assert!(error <= 1e-5, "{level:?}: {error}");
    }
}
