//! Every level against the codec's reference product, on every term, orientation and border.

use super::features::levels;
use super::kernels::Kernels;
use super::product::{Side, run};
use crate::codec::basis::Basis;
use crate::codec::term::Term;
use crate::codec::term::planes::{Planes, QuantizedBlock, ScaleGroup};
use crate::codec::term::sparse::{Entry, FORMATS, Sparse};
use crate::codec::{Layout, Matrix};
use half::f16;

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

#[test]
fn every_level_agrees_with_the_codec() {
    for (rows, cols, edge) in [
        (1, 1, 32),
        (1, 257, 256),
        (100, 1, 32),
        (172, 64, 64),
        (64, 172, 128),
        (97, 259, 64),
        (300, 300, 256),
    ] {
        let layout = Layout::new(rows, cols, edge).unwrap();
        let mut matrices = vec![
            vec![basis(layout)],
            vec![planes(layout, ScaleGroup::Block)],
            vec![basis(layout), sparse(layout, FORMATS[0]), planes(layout, ScaleGroup::Row)],
        ];
        matrices.extend(FORMATS.iter().filter(|f| f.allows(edge)).map(|f| vec![sparse(layout, *f)]));
        for terms in matrices {
            let summary: Vec<_> = terms.iter().map(Term::summary).collect();
            let matrix = Matrix::new(layout, Default::default(), Some(5), terms, 0.0);
            for tokens in [1, 2, 17] {
                for side in [Side::Forward, Side::Transposed] {
                    let (n_in, n_out) = if side == Side::Forward { (cols, rows) } else { (rows, cols) };
                    let x: Vec<f32> = (0..tokens * n_in).map(|n| (n as f32 * 0.31).sin()).collect();
                    let expected: Vec<f32> = x
                        .chunks(n_in)
                        .flat_map(|x| match side {
                            Side::Forward => matrix.product(x),
                            Side::Transposed => matrix.transposed_product(x),
                        })
                        .collect();
                    let largest = expected.iter().fold(1e-3f32, |m, y| m.max(y.abs()));
                    for level in levels() {
                        let kernels = Kernels::new(level).unwrap();
                        let mut y = vec![f32::NAN; tokens * n_out];
                        run(&kernels, &matrix, side, &x, tokens, &mut y);
                        for (a, b) in y.iter().zip(&expected) {
                            assert!(
                                (a - b).abs() <= 1e-5 * largest,
                                "{level:?} {rows}x{cols} block {edge} {summary:?} {tokens} tokens: {a} {b}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_reference_products_are_products_with_the_decoded_matrix() {
    for (rows, cols, edge) in [(1, 1, 32), (33, 70, 32), (97, 259, 64), (300, 130, 128)] {
        let layout = Layout::new(rows, cols, edge).unwrap();
        let terms = vec![basis(layout), sparse(layout, FORMATS[3]), planes(layout, ScaleGroup::Block)];
        for seed in [None, Some(1)] {
            let matrix = Matrix::new(layout, Default::default(), seed, terms.clone(), 0.0);
            let weights = matrix.decode();
            assert_eq!(super::decode(&matrix), weights);
            let x: Vec<f32> = (0..cols).map(|n| (n as f32 * 0.7).cos()).collect();
            let g: Vec<f32> = (0..rows).map(|n| (n as f32 * 0.3).cos()).collect();
            let exact = |n: usize, of: &dyn Fn(usize) -> (f32, f32)| {
                (0..n).map(of).map(|(a, b)| f64::from(a) * f64::from(b)).sum::<f64>()
            };
            for (row, y) in matrix.product(&x).into_iter().enumerate() {
                let y64 = exact(cols, &|c| (weights[row * cols + c], x[c]));
                assert!((f64::from(y) - y64).abs() < 1e-5 * (rows * cols) as f64);
            }
            for (col, y) in matrix.transposed_product(&g).into_iter().enumerate() {
                let y64 = exact(rows, &|r| (weights[r * cols + col], g[r]));
                assert!((f64::from(y) - y64).abs() < 1e-5 * (rows * cols) as f64);
            }
            let mut row = vec![0.0; cols];
            for r in [0, rows / 2, rows - 1] {
                matrix.decode_row(r, &mut row).unwrap();
                let largest = weights.iter().fold(0f32, |m, w| m.max(w.abs()));
                for (a, b) in row.iter().zip(&weights[r * cols..]) {
                    assert!((a - b).abs() < 1e-5 * largest, "row {r}");
                }
            }
        }
    }
}
