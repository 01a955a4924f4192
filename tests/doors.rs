//! What the safe doors of `cpu` refuse: sizes whose product wraps, strides that lead out of a slice, terms and entries that
//! are not where kernels look. None of it may be undefined.

mod samples;

use candle_core::{DType, Device, Tensor};
use candle_rbe::codec::matrix::Orientation;
use candle_rbe::codec::term::planes::{Planes, QuantizedBlock, ScaleGroup};
use candle_rbe::codec::term::sparse::{Entry, FORMATS, Format, Sparse};
use candle_rbe::codec::term::trellis::{QuantizedGroup, Trellis, scale_groups};
use candle_rbe::codec::term::{Basis, Term};
use candle_rbe::codec::{Block, Layout, Matrix, Transform};
use candle_rbe::cpu::{
    self, Attention, Gradients, Heads, Norm, Oriented, PackedMatrix, Precision, Rows, Serial,
};
use candle_rbe::{RbeTensor, ops};
use half::f16;
use samples::{Rules, layout};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Times four it is four.
const WRAPS: usize = (1 << (usize::BITS - 2)) + 1;

/// What `act` says when it panics.
fn refusal<T>(act: impl FnOnce() -> T) -> String {
    let Err(error) = catch_unwind(AssertUnwindSafe(act)) else { panic!("it was not refused") };
    let text = error.downcast_ref::<String>().cloned();
    text.or_else(|| error.downcast_ref::<&str>().map(ToString::to_string)).expect("a sentence")
}

/// One in the last column of each row.
fn last_column(layout: Layout, format: Format) -> Term {
    samples::sparse(layout, format, |block, n| (n % block.width == block.width - 1).then_some(1.0)).unwrap()
}

fn planes(layout: Layout, count: u8, group: ScaleGroup) -> Term {
    let rules = Rules { unit: 1.0, bits: |_| count, scale: |_, _| f16::ONE, code: |_, _| 0 };
    samples::planes(layout, group, rules)
}

fn trellis(layout: Layout, bits: u8) -> Term {
    let rules = Rules { unit: 1.0, bits: |_| bits, scale: |_, _| f16::ONE, code: |_, _| 1 };
    samples::trellis(layout, 12, rules)
}

/// Every term of a layout.
fn terms(layout: Layout) -> Vec<Term> {
    vec![
        samples::basis(layout, false, || 1.0),
        last_column(layout, Format::Word32),
        last_column(layout, Format::RowMask),
        planes(layout, 3, ScaleGroup::Row),
        planes(layout, 8, ScaleGroup::Block),
        trellis(layout, 1),
        trellis(layout, 4),
    ]
}

#[test]
fn products_refuse_so_many_vectors_that_their_sizes_wrap() {
    let own = layout(4, 4, 32);
    for term in terms(own) {
        let parameters = term.parameters();
        let matrix = PackedMatrix::new(&Matrix::new(own, Transform::Dct, None, vec![term], 0.0));
        for vectors in [WRAPS, WRAPS - 1, usize::MAX, usize::MAX / 4] {
            let x = vec![1.0; vectors.wrapping_mul(4).min(1 << 10)];
            let text = refusal(|| Rows::new(&x, vectors, 4));
            assert!(text.contains(&format!("{vectors} x 4")), "{text}");
            // Rows that fit each other, and no output that fits them.
            let (four, mut y) = ([1.0; 4], [0.0; 5]);
            let rows = Rows::new(&four, 1, 4);
            for matrix in [Oriented::from(&matrix), Oriented::from(&matrix).t()] {
                for precision in [Precision::Auto, Precision::Int8, Precision::Int16, Precision::Exact] {
                    let text = refusal(|| cpu::matmul(matrix, rows, &mut y, precision, &Serial));
                    assert!(text.contains("are expected"), "{text}");
                }
                refusal(|| {
                    drop(cpu::matmul_all(&[matrix, matrix], Rows::new(&y, 1, 5), Precision::Exact, &Serial))
                });
                let product = || cpu::parametric_matmul(matrix, &parameters, rows, &mut y, &Serial);
                assert!(refusal(product).contains("are expected"));
                let (mut dx, mut gradients) = ([0.0; 5], parameters.clone());
                refusal(|| {
                    let out = Gradients { x: Some(&mut dx), parameters: &mut gradients };
                    cpu::parametric_gradients(matrix, &parameters, rows, rows, out, &Serial);
                });
            }
        }
    }
}

#[test]
fn attention_refuses_sizes_and_strides_that_lead_out_of_its_slices() {
    let q = [1f32; 8];
    let heads = |batch_stride, head_stride| Heads { values: &q, batch_stride, head_stride };
    let right = Attention {
        batch: 2,
        heads: 2,
        kv_heads: 1,
        queries: 1,
        keys: 2,
        width: 2,
        scale: 1.0,
        causal: false,
        key_bias: &[],
    };
    let attend = |shape: Attention, q: Heads, k: Heads, len: usize| {
        let mut out = vec![0.0; len];
        let forward = catch_unwind(AssertUnwindSafe(|| cpu::attention(&shape, [q, k, k], &mut out, &Serial)));
        let g = vec![0.0; len];
        let gradients = || cpu::attention_gradients(&shape, [q, k, k], &g, &g, &Serial);
        let backward = catch_unwind(AssertUnwindSafe(gradients));
        assert_eq!(forward.is_ok(), backward.is_ok(), "{shape:?}");
        forward.is_ok()
    };
    assert!(attend(right, heads(4, 2), heads(4, 4), 8));
    let high = 1 << (usize::BITS - 1);
    for (shape, len) in [
        // 2^63 + 1 elements of two queries are two, of 2^63 queries none.
        (Attention { width: high + 1, batch: 1, heads: 1, queries: 2, ..right }, 2),
        (Attention { queries: high, ..right }, 0),
        (Attention { keys: high, ..right }, 8),
        (Attention { keys: usize::MAX, ..right }, 8),
        (Attention { batch: high, ..right }, 0),
        (Attention { kv_heads: 0, ..right }, 8),
        (Attention { kv_heads: 3, ..right }, 8),
        (Attention { keys: 0, causal: true, ..right }, 8),
        (Attention { key_bias: &[0.0; 3], ..right }, 8),
    ] {
        assert!(!attend(shape, heads(4, 2), heads(4, 4), len), "{shape:?}");
    }
    for (batch, head) in [(5, 2), (4, 3), (usize::MAX, 2), (4, usize::MAX), (high, high), (usize::MAX - 1, 2)]
    {
        assert!(!attend(right, heads(batch, head), heads(4, 4), 8), "queries {batch} and {head} apart");
    }
    for batch in [5, usize::MAX, usize::MAX - 3] {
        assert!(!attend(right, heads(4, 2), heads(batch, 4), 8), "keys {batch} apart");
    }
    // The stride of a single head leads nowhere.
    assert!(attend(right, heads(4, 2), heads(4, usize::MAX), 8));
}

#[test]
fn norms_refuse_rows_of_another_length() {
    let own = Norm { eps: 1e-5, centered: true };
    for (x, weight, bias, out) in [(6, 4, 0, 6), (8, 4, 3, 8), (8, 4, 0, 4), (8, 0, 0, 8)] {
        let [x, weight, bias] = [x, weight, bias].map(|len: usize| vec![1f32; len]);
        let mut out = vec![0f32; out];
        refusal(|| cpu::norm(own, &x, &weight, &bias, &mut out, &Serial));
    }
}

#[test]
fn rows_and_blocks_that_are_not_there_are_refused() {
    let own = layout(102, 72, 32);
    let matrix =
        PackedMatrix::new(&Matrix::new(own, Transform::Dct, Some(1), terms(own)[1..2].to_vec(), 0.0));
    assert_eq!(matrix.decode_block_at(2, 1).len(), 38 * 40);
    for (i, j) in [(3, 0), (0, 2), (usize::MAX, 0), (0, usize::MAX), (usize::MAX / 32, 0), (1 << 59, 1 << 59)]
    {
        let text = refusal(|| matrix.decode_block_at(i, j));
        assert!(text.contains("of a matrix that has 3 x 2"), "{text}");
    }
    for (band, len) in [
        (0..4, 102 * 72),
        (3..3, 0),
        (std::ops::Range { start: 2, end: 1 }, 0),
        (0..usize::MAX, 0),
        (0..1, 32 * 72 - 1),
    ] {
        refusal(|| matrix.decode_band(false, band, &mut vec![0.0; len], &Serial));
    }
    let error = matrix.gather(&[102], &mut [0.0; 72], &Serial).unwrap_err().to_string();
    assert!(error.contains("row 102 of a matrix with 102 rows"), "{error}");
    refusal(|| matrix.gather(&[0, 1], &mut [0.0; 72], &Serial));
}

#[test]
fn a_matrix_has_no_terms_that_are_cut_for_another() {
    let shapes =
        [(1, 1, 32), (32, 33, 32), (33, 32, 32), (64, 64, 32), (64, 64, 64), (256, 256, 256), (300, 40, 128)];
    for own in shapes.map(|(rows, cols, block)| layout(rows, cols, block)) {
        for other in shapes.map(|(rows, cols, block)| layout(rows, cols, block)) {
            for term in terms(other) {
                let name = term.name();
                let build = || Matrix::new(own, Transform::Haar, Some(1), vec![term], 0.0);
                if own != other {
                    let text = refusal(build);
                    assert!(text.contains(name) && text.contains("is cut for"), "{text}");
                    continue;
                }
                let tensor = RbeTensor::from_matrix(&build(), Orientation::Matrix).unwrap();
                let x = Tensor::ones((3, own.cols()), DType::F32, &Device::Cpu).unwrap();
                ops::matmul(&x, &tensor, Precision::Exact).unwrap();
            }
        }
    }
}

#[test]
fn only_entries_in_their_block_in_order_and_once_are_packed() {
    let mut state = 1u64;
    let mut random = move |end: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 20) as usize % end
    };
    let shapes = [(1, 1, 32), (32, 33, 32), (64, 64, 64), (300, 40, 128), (40, 300, 256), (5, 5, 256)];
    let (mut packed, mut refused) = (0, 0);
    for n in 0..2400 {
        let (rows, cols, edge) = shapes[n % 6];
        let (own, format) = (layout(rows, cols, edge), FORMATS[n / 6 % 4]);
        if !format.allows(edge) {
            continue;
        }
        let (sorted, wild) = (random(2) == 0, random(2) == 0);
        let blocks: Vec<Vec<Entry>> = own
            .iter()
            .map(|block| {
                let count = random(20);
                let mut entries: Vec<Entry> = (0..count)
                    .map(|_| match wild && random(64) == 0 {
                        true => Entry { row: random(256) as u8, col: random(256) as u8, value: 1.0 },
                        false => Entry {
                            row: random(block.height) as u8,
                            col: random(block.width) as u8,
                            value: 1.0,
                        },
                    })
                    .collect();
                if sorted {
                    entries.sort_by_key(|entry| (entry.row, entry.col));
                    entries.dedup();
                }
                entries
            })
            .collect();
        let fits = own.iter().zip(&blocks).all(|(block, entries)| {
            entries.iter().all(|e| usize::from(e.row) < block.height && usize::from(e.col) < block.width)
                && entries.windows(2).all(|two| (two[0].row, two[0].col) < (two[1].row, two[1].col))
        });
        let term = Sparse::pack(own, format, &blocks);
        assert_eq!(term.is_ok(), fits, "{blocks:?}");
        let Ok(term) = term else {
            refused += 1;
            continue;
        };
        packed += 1;
        let matrix = Matrix::new(own, Transform::Haar, None, vec![Term::Sparse(term)], 0.0);
        let loaded = PackedMatrix::new(&matrix);
        assert_eq!(loaded.decode(&Serial).unwrap(), matrix.decode());
        let x = vec![1.0; 2 * cols];
        let x = Rows::new(&x, 2, cols);
        cpu::matmul(&loaded, x, &mut vec![0.0; 2 * rows], Precision::Exact, &Serial);
    }
    assert!(packed > 300 && refused > 300, "{packed} packed, {refused} refused");
}

#[test]
fn scales_and_units_that_no_payload_has_are_not_packed() {
    let own = layout(40, 33, 32);
    let block = |scale: f16| {
        move |b: Block| QuantizedBlock { planes: 1, scales: vec![scale], codes: vec![0; b.len()] }
    };
    let scale_group = |scale: f16| move |s: Block| QuantizedGroup { bits: 1, scale, codes: vec![0; s.len()] };
    let pack = |unit: f32, scale: f16| {
        let blocks: Vec<_> = own.iter().map(block(scale)).collect();
        let scale_groups: Vec<_> = scale_groups(own).map(scale_group(scale)).collect();
        [
            catch_unwind(|| _ = Planes::pack(own, ScaleGroup::Block, unit, &blocks)).is_ok(),
            catch_unwind(|| _ = Trellis::pack(own, 12, unit, &scale_groups)).is_ok(),
        ]
    };
    let largest = 2f32.powi(103);
    for unit in [1.0, 2f32.powi(-126), largest] {
        assert_eq!(pack(unit, f16::MAX), [true; 2], "{unit:e}");
    }
    for unit in [0.0, -1.0, 3.0, 2.0 * largest, f32::MIN_POSITIVE / 2.0, f32::NAN, f32::INFINITY] {
        assert_eq!(pack(unit, f16::ONE), [false; 2], "{unit:e}");
    }
    for scale in [-f16::ONE, -f16::ZERO, f16::INFINITY, f16::NAN] {
        assert_eq!(pack(1.0, scale), [false; 2], "{scale}");
    }
    for theta in [f32::NAN, f32::INFINITY] {
        for half in [false, true] {
            refusal(|| Basis::new(own, &vec![[theta; 8]; own.blocks()], half));
        }
    }
    refusal(|| Basis::new(own, &vec![[f32::MAX; 8]; own.blocks()], true));
}
