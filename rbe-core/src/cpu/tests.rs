//! Every level against the codec's reference product, on every term, orientation and border.

use super::exec::Exec;
use super::features::levels;
use super::kernels::Kernels;
use super::product::{Call, run};
use super::{Oriented, PackedMatrix, Pool, Precision, Rayon, Rows, Serial};
use crate::codec::matrix::Orientation;
use crate::codec::term::Term;
use crate::codec::term::basis::Basis;
use crate::codec::term::planes::{Planes, QuantizedBlock, ScaleGroup};
use crate::codec::term::sparse::{Entry, FORMATS, Sparse};
use crate::codec::term::trellis::{QuantizedGroup, Trellis, scale_groups};
use crate::codec::{AxisScales, Layout, Matrix, Transform};
use half::f16;

mod attention;
mod dense;
mod gradients;
mod sides;
mod transforms;

/// The product with a matrix or its transpose.
fn product(kernels: &Kernels, matrix: Oriented, x: &[f32], y: &mut [f32], how: (Precision, &dyn Pool)) {
    let (layout, (precision, pool)) = (matrix.sides(), how);
    let x = Rows::new(x, x.len() / layout.input().elements(), layout.input().elements());
    run(Exec { kernels, pool }, &Call { matrices: &[matrix], parameters: None, x, precision }, &mut [y]);
}

/// That with parameters of its own.
fn parametric(exec: Exec, matrix: Oriented, parameters: &[f32], x: Rows, y: &mut [f32]) {
    let (matrices, parameters) = (&[matrix], Some(parameters));
    run(exec, &Call { matrices, parameters, x, precision: Precision::Exact }, &mut [y]);
}

fn basis(layout: Layout) -> Term {
    let theta = |n: usize| std::array::from_fn(|k| ((n * 8 + k) as f32 * 0.9).sin());
    let theta: Vec<_> = (0..layout.blocks()).map(theta).collect();
    Term::Basis(Basis::new(layout, &theta, false))
}

fn planes(layout: Layout, group: ScaleGroup) -> Term {
    let blocks: Vec<_> = layout
        .iter()
        .map(|block| {
            let planes = (block.index % 8 + 1) as u8;
            let mask = ((1u16 << planes) - 1) as u8;
            QuantizedBlock {
                planes,
                scales: (0..group.scales_in(block))
                    .map(|i| f16::from_f32(0.1 + (i % 7) as f32 / 9.0))
                    .collect(),
                codes: (0..block.len()).map(|n| (n * 89 + n / 3) as u8 & mask).collect(),
            }
        })
        .collect();
    Term::Planes(Planes::pack(layout, group, 0.25, &blocks))
}

fn sparse(layout: Layout, format: crate::codec::term::sparse::Format) -> Term {
    let blocks: Vec<Vec<Entry>> = layout
        .iter()
        .map(|block| {
            let entry = |n: usize| Entry {
                row: (n / block.width) as u8,
                col: (n % block.width) as u8,
                value: (n as f32 * 0.77).cos(),
            };
            (block.index % 5..block.len()).step_by(5).map(entry).collect()
        })
        .collect();
    Term::Sparse(Sparse::pack(layout, format, &blocks).unwrap())
}

/// Scale groups with 1 to 4 bits and none in turn.
fn trellis(layout: Layout) -> Term {
    let scale_groups: Vec<_> = scale_groups(layout)
        .map(|scale_group| {
            let bits = ((scale_group.index + 1) % 5) as u8;
            let codes = if bits == 0 { 0 } else { scale_group.len() };
            QuantizedGroup {
                bits,
                scale: f16::from_f32(0.1 + (scale_group.index % 7) as f32 / 9.0),
                codes: (0..codes).map(|n| (n * 89 + n / 3) as u8 & ((1 << bits) - 1)).collect(),
            }
        })
        .collect();
    Term::Trellis(Trellis::pack(layout, 12 + (layout.rows() % 5) as u8, 0.03125, &scale_groups))
}

/// Matrices of every term, alone and together, with borders of all kinds.
pub(in crate::cpu) fn matrices() -> Vec<Matrix> {
    let mut matrices = Vec::new();
    for (rows, cols, edge) in [
        (1, 1, 32),
        (1, 257, 256),
        (100, 1, 32),
        (172, 64, 64),
        (128, 172, 128),
        (97, 259, 64),
        (300, 512, 256),
        (257, 576, 256),
    ] {
        let layout = Layout::new(rows, cols, edge).unwrap();
        let mut terms = vec![
            vec![basis(layout)],
            vec![planes(layout, ScaleGroup::Block)],
            vec![trellis(layout)],
            vec![sparse(layout, FORMATS[3]), planes(layout, ScaleGroup::Block), trellis(layout)],
            vec![basis(layout), sparse(layout, FORMATS[0]), planes(layout, ScaleGroup::Row)],
        ];
        terms.extend(FORMATS.iter().filter(|f| f.allows(edge)).map(|f| vec![sparse(layout, *f)]));
        for (n, terms) in terms.into_iter().enumerate() {
            let transform =
                [Transform::Dct, Transform::Haar, Transform::Daubechies4][n.saturating_sub(2) % 3];
            // By its error a matrix takes one slice of activations or more, which may be those of its neighbours' input.
            let error = [0.0, 0.1][n % 2];
            matrices.push(Matrix::new(layout, transform, (n % 4 != 3).then_some(5), terms, error));
        }
        let two = vec![trellis(layout), trellis(layout)];
        matrices.push(Matrix::new(layout, Transform::Dct, Some(5), two, 0.0));
        for transform in [Transform::Dct, Transform::Haar] {
            let all = vec![
                basis(layout),
                sparse(layout, FORMATS[0]),
                planes(layout, ScaleGroup::Block),
                trellis(layout),
            ];
            let matrix = Matrix::new(layout, transform, Some(5), all, 0.0);
            matrices.push(matrix.with_scales(scales(rows), scales(cols)));
        }
    }
    matrices
}

/// Scales over four octaves.
fn scales(len: usize) -> Option<AxisScales> {
    let wanted: Vec<f32> = (0..len).map(|n| (4.0 * (n * 7 % len) as f32 / len as f32 - 2.0).exp2()).collect();
    AxisScales::new(&wanted)
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(1e-3f32, |m, value| m.max(value.abs()))
}

/// Largest difference.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0f32, |m, (a, b)| if (a - b).abs() <= m { m } else { (a - b).abs() })
}

fn norm(values: impl Iterator<Item = f32>) -> f32 {
    values.map(|value| value * value).sum::<f32>().sqrt()
}

#[test]
fn every_level_agrees_with_the_codec() {
    for matrix in matrices() {
        let (rows, cols) = (matrix.layout().rows(), matrix.layout().cols());
        let loaded = PackedMatrix::new(&matrix);
        let own = Oriented::from(&loaded);
        // Of many frequencies: a single one's output is as small as the one coefficient it meets.
        let value = |n: usize| (n as u32).wrapping_mul(0x9e37_79b9).cast_signed() as f32 / 2f32.powi(31);
        let input = |len: usize| (0..70 * len).map(value).collect::<Vec<f32>>();
        let (all_x, all_g) = (input(cols), input(rows));
        let all_y: Vec<f32> = all_x.chunks(cols).flat_map(|x| matrix.product(x)).collect();
        let all_dx: Vec<f32> = all_g.chunks(rows).flat_map(|g| matrix.matmul_t(g)).collect();
        // A single output may cancel to nearly nothing; of seventy one does not.
        let (y_size, dx_size) = (largest(&all_y), largest(&all_dx));
        for batch in [1, 2, 5, 70] {
            let (x, g) = (&all_x[..batch * cols], &all_g[..batch * rows]);
            let (y, dx) = (&all_y[..batch * rows], &all_dx[..batch * cols]);
            for level in levels() {
                let kernels = Kernels::new(level).unwrap();
                let context = format!("{level:?} {rows}x{cols} {} batch {batch}", matrix.summary());
                let mut out = vec![f32::NAN; y.len()];
                product(&kernels, own, x, &mut out, (Precision::Exact, &Rayon));
                // Both sides round in F32; 1e-5 is what the layers promise.
                let error = difference(&out, y) / y_size;
                assert!(error <= 1e-5, "{context}: {error}");
                // Rounding loses 1/(127 sqrt 12) of a block's largest element, which is up to sqrt 256 times its
                // RMS: 3.6 % for the worst of inputs. (A single sum may cancel to less; many do not.)
                if rows >= 64 {
                    product(&kernels, own, x, &mut out, (Precision::Int8, &Rayon));
                    let error =
                        norm(out.iter().zip(y).map(|(a, b)| a - b)) / norm(y.iter().copied()).max(1e-3);
                    assert!(error <= 0.037, "{context} int8: {error}");
                    // And of that the second byte leaves a 254th.
                    product(&kernels, own, x, &mut out, (Precision::Int16, &Rayon));
                    let error =
                        norm(out.iter().zip(y).map(|(a, b)| a - b)) / norm(y.iter().copied()).max(1e-3);
                    assert!(error <= 1.5e-4, "{context} int16: {error}");
                }
                let mut out = vec![f32::NAN; dx.len()];
                product(&kernels, own.t(), g, &mut out, (Precision::Exact, &Rayon));
                let error = difference(&out, dx) / dx_size;
                assert!(error <= 5e-6, "{context} transposed: {error}");
            }
        }
    }
}

#[test]
fn products_in_integers_have_the_same_bits_on_every_level_and_pool_and_beside_others() {
    for matrix in matrices().iter().filter(|m| matches!(m.terms(), [Term::Planes(_) | Term::Trellis(_)])) {
        let loaded = PackedMatrix::new(matrix);
        let batch = 40;
        let x: Vec<f32> = (0..batch * matrix.layout().cols()).map(|n| (n as f32 * 0.7).cos()).collect();
        for precision in [Precision::Exact, Precision::Int16, Precision::Int8] {
            let results = levels().into_iter().flat_map(|level| {
                let kernels = Kernels::new(level).unwrap();
                let run = |pool: &dyn super::Pool| {
                    let mut y = vec![0.0; batch * matrix.layout().rows()];
                    product(&kernels, Oriented::from(&loaded), &x, &mut y, (precision, pool));
                    y.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                };
                [run(&Serial), run(&Rayon)]
            });
            let results: Vec<_> = results.collect();
            assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{}", matrix.summary());
            // Few segments go through the transforms by themselves, more side by side.
            let (rows, cols) = (matrix.layout().rows(), matrix.layout().cols());
            for few in [1, 2, 5, 9] {
                let mut y = vec![0.0; few * rows];
                let (kernels, x) = (Kernels::get(), &x[..few * cols]);
                product(kernels, Oriented::from(&loaded), x, &mut y, (precision, &Serial));
                let same = y.iter().zip(&results[0]).all(|(y, expected)| y.to_bits() == *expected);
                assert!(same, "{few} vectors: {}", matrix.summary());
            }
        }
    }
}

#[test]
fn products_of_one_input_are_each_ones_own() {
    let matrices = matrices();
    let batch = 9;
    for first in &matrices {
        // All that take as many inputs, in an order in which some neighbours share their operator and some do not.
        let group: Vec<_> = matrices
            .iter()
            .filter(|m| m.layout().cols() == first.layout().cols())
            .map(PackedMatrix::new)
            .collect();
        let group: Vec<Oriented> = group.iter().map(Oriented::from).collect();
        assert!(group.windows(2).any(|pair| pair[0].shares_input(pair[1])));
        assert!(group.windows(2).any(|pair| !pair[0].shares_input(pair[1])));
        let x: Vec<f32> = (0..batch * first.layout().cols()).map(|n| (n as f32 * 0.7).cos()).collect();
        for batch in [1, batch] {
            let x = &x[..batch * first.layout().cols()];
            let x = Rows::new(x, batch, first.layout().cols());
            for precision in [Precision::Auto, Precision::Exact] {
                let together = super::matmul_all(&group, x, precision, &Rayon);
                let mut rest = &together[..];
                for matrix in &group {
                    let mut alone = vec![f32::NAN; batch * matrix.sides().output().elements()];
                    super::matmul(*matrix, x, &mut alone, precision, &Rayon);
                    assert_eq!(rest.split_off(..alone.len()), Some(&alone[..]));
                }
                assert!(rest.is_empty());
            }
        }
    }
}

#[test]
fn a_payload_decodes_to_the_same_weights_packed_and_as_the_codec_reads_it() {
    for matrix in matrices() {
        let weights = matrix.decode();
        for bytes in [matrix.to_bytes(Orientation::Matrix), matrix.to_plain_bytes(Orientation::Matrix)] {
            let (read, _) = Matrix::from_bytes(&bytes).unwrap();
            let loaded = PackedMatrix::new(&read);
            assert_eq!((read.terms(), &loaded.decode(&Rayon).unwrap()), (matrix.terms(), &weights));
            for level in levels() {
                let kernels = Kernels::new(level).unwrap();
                let cols = matrix.layout().cols();
                for block in matrix.layout().iter() {
                    let mut out = vec![f32::NAN; block.len()];
                    loaded.decode_block(
                        &kernels,
                        block,
                        &mut out,
                        &mut vec![0.0; matrix.axes().scratch_len()],
                    );
                    for (row, out) in out.chunks(block.width).enumerate() {
                        let own = &weights[(block.row + row) * cols + block.col..][..block.width];
                        assert_eq!(out, own, "{level:?} {}, {block:?}", matrix.summary());
                    }
                }
            }
        }
        let loaded = PackedMatrix::new(&matrix);
        let (rows, cols) = (matrix.layout().rows(), matrix.layout().cols());
        let picked: Vec<usize> = [0, rows / 2, rows - 1, 0].to_vec();
        let mut out = vec![0.0; picked.len() * cols];
        loaded.gather(&picked, &mut out, &Serial).unwrap();
        let expected: Vec<f32> = picked.iter().flat_map(|r| weights[r * cols..][..cols].to_vec()).collect();
        assert!(difference(&out, &expected) < 5e-6 * largest(&expected), "{}", matrix.summary());
        assert!(loaded.gather(&[rows], &mut out[..cols], &Serial).is_err());
    }
}

#[test]
fn an_input_that_is_not_finite_shows_in_the_output() {
    let layout = Layout::new(64, 96, 32).unwrap();
    let matrix = Matrix::new(layout, Transform::Dct, None, vec![planes(layout, ScaleGroup::Block)], 0.0);
    let loaded = PackedMatrix::new(&matrix);
    for bad in [f32::NAN, f32::INFINITY] {
        for precision in [Precision::Exact, Precision::Int16, Precision::Int8] {
            let mut x = vec![1.0; 96];
            x[40] = bad;
            let mut y = vec![0.0; 64];
            super::matmul(&loaded, Rows::new(&x, 1, 96), &mut y, precision, &Serial);
            assert!(y.iter().all(|y| !y.is_finite()));
        }
    }
}

#[test]
fn the_reference_products_are_products_with_the_decoded_matrix() {
    for matrix in matrices() {
        let (rows, cols) = (matrix.layout().rows(), matrix.layout().cols());
        let weights = matrix.decode();
        let x: Vec<f32> = (0..cols).map(|n| (n as f32 * 0.7).cos()).collect();
        let g: Vec<f32> = (0..rows).map(|n| (n as f32 * 0.3).cos()).collect();
        let sum = |terms: &mut dyn Iterator<Item = (f32, f32)>| {
            terms.map(|(a, b)| f64::from(a) * f64::from(b)).sum::<f64>() as f32
        };
        let y: Vec<f32> =
            weights.chunks(cols).map(|w| sum(&mut w.iter().copied().zip(x.iter().copied()))).collect();
        assert!(difference(&matrix.product(&x), &y) < 5e-6 * largest(&y));
        let column = |c: usize| (0..rows).map(|r| weights[r * cols + c]).collect::<Vec<_>>();
        let dx: Vec<f32> =
            (0..cols).map(|c| sum(&mut column(c).into_iter().zip(g.iter().copied()))).collect();
        assert!(difference(&matrix.matmul_t(&g), &dx) < 5e-6 * largest(&dx));
        let mut row = vec![0.0; cols];
        for r in [0, rows / 2, rows - 1] {
            matrix.decode_row(r, &mut row).unwrap();
            // What a row is summed of is as large as the matrix.
            assert!(difference(&row, &weights[r * cols..][..cols]) < 5e-6 * largest(&weights));
        }
    }
}
