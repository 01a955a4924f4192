//! What is made of a tensor can be read back, with the largest and smallest numbers too, or is refused with a sentence.

mod samples;

use candle_core::{Device, Tensor};
use candle_rbe::codec::matrix::Orientation;
use candle_rbe::codec::term::Term;
use candle_rbe::codec::term::planes::ScaleGroup;
use candle_rbe::codec::term::sparse::FORMATS;
use candle_rbe::codec::{Block, Layout, Matrix, Transform};
use candle_rbe::encode::MatrixRef;
use candle_rbe::{Encoder, EncoderConfig, Rate, RbeTensor, TermChoice};
use half::f16;
use samples::Rules;

/// The largest unit: FORMAT.md.
fn largest_unit() -> f32 {
    2f32.powi(103)
}

fn layout() -> Layout {
    samples::layout(33, 40, 32)
}

fn tensor(terms: Vec<Term>) -> RbeTensor {
    let matrix = Matrix::new(layout(), Transform::Dct, Some(3), terms, 0.25);
    RbeTensor::from_matrix(&matrix, Orientation::Matrix).unwrap()
}

fn basis(value: f32, half: bool) -> Term {
    samples::basis(layout(), half, || value)
}

fn sparse(format: usize, value: f32) -> Term {
    let kept = |_, n: usize| [0, 5, 7].contains(&n).then(|| value * (1.0 - n as f32 / 8.0));
    samples::sparse(layout(), FORMATS[format], kept).unwrap()
}

fn planes(count: u8, scale: f16, unit: f32, group: ScaleGroup) -> Term {
    let rules = Rules { unit, bits: |_| count, scale: |_, _| scale, code: |_, n| n as u8 };
    samples::planes(layout(), group, rules)
}

fn trellis(scale: f16, unit: f32) -> Term {
    let rules = Rules { unit, bits: |_| 2, scale: |_, _| scale, code: |_, _| 1 };
    samples::trellis(layout(), 12, rules)
}

/// Every term alone.
fn tensors() -> Vec<RbeTensor> {
    let mut terms = vec![basis(1.0, false), basis(1.0, true)];
    terms.extend((0..FORMATS.len()).map(|format| sparse(format, 1.0)));
    terms.extend([ScaleGroup::Block, ScaleGroup::Row].map(|group| planes(4, f16::ONE, 1.0, group)));
    terms.push(trellis(f16::ONE, 1.0));
    terms.into_iter().map(|term| tensor(vec![term])).collect()
}

/// Writes a tensor in both forms and reads it back.
fn comes_back(what: &str, made: &RbeTensor) {
    for bytes in [made.to_bytes().unwrap(), made.to_plain_bytes().unwrap()] {
        let again = RbeTensor::from_bytes(&bytes).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(again.to_matrix().unwrap().terms(), made.to_matrix().unwrap().terms(), "{what}");
        assert_eq!(again.relative_error(), made.relative_error(), "{what}");
    }
}

#[test]
fn other_parameters_are_read_back_or_refused() {
    let largest = 65_504.0 * largest_unit();
    for made in tensors() {
        let count = made.parameters().unwrap().elem_count();
        let with = |value: f32, others: f32| {
            let mut parameters = vec![others; count];
            parameters[count / 2] = value;
            made.with_parameters(&Tensor::from_vec(parameters, count, &Device::Cpu).unwrap())
        };
        let own = made.summary();
        for value in [0.0, -0.0, 1.0, 1e-45, 1e-38, 1e-30, 1e30, 1.2e34, largest / 2.0, largest] {
            for others in [0.0, 1.0, 1e-45, value] {
                let other =
                    with(value, others).unwrap_or_else(|error| panic!("{own} with {value:e}: {error}"));
                comes_back(&format!("{own} with {value:e} among {others:e}"), &other);
            }
        }
        let in_f32 = own.contains("basis f32");
        for value in [largest * 1.001, 1e37, f32::MAX] {
            match with(value, 1.0) {
                Ok(other) if in_f32 => comes_back(own, &other),
                Ok(_) => panic!("{own} with {value:e}"),
                Err(error) => {
                    let error = error.to_string();
                    let named =
                        ["basis", "sparse", "planes", "trellis"].iter().any(|term| error.contains(term));
                    assert!(!in_f32 && named && error.contains("at most"), "{own} with {value:e}: {error}");
                }
            }
        }
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = with(value, 1.0).unwrap_err().to_string();
            assert!(error.contains("finite") || error.contains("negative"), "{own} with {value}: {error}");
        }
    }
}

#[test]
fn first_planes_are_read_back_or_refused() {
    for group in [ScaleGroup::Block, ScaleGroup::Row] {
        for (scale, unit) in [
            (f16::ONE, 1.0),
            (f16::MAX, 1.0),
            (f16::from_f32(1000.0), 2f32.powi(-126)),
            (f16::MIN_POSITIVE_SUBNORMAL, largest_unit()),
            (f16::MAX, largest_unit() / 128.0),
        ] {
            let whole = tensor(vec![planes(8, scale, unit, group)]);
            for count in 1..=8 {
                let what = format!("{count} planes of scale {scale} by {unit:e}");
                let first = whole.first_planes(count).unwrap_or_else(|error| panic!("{what}: {error}"));
                comes_back(&what, &first);
                let scales = |tensor: &RbeTensor| tensor.parameters().unwrap().to_vec1::<f32>().unwrap();
                let coarser = f32::from(1u16 << (8 - count));
                let expected: Vec<f32> = scales(&whole).iter().map(|scale| scale * coarser).collect();
                assert_eq!(scales(&first), expected, "{what}");
            }
        }
        let beyond = tensor(vec![planes(8, f16::MAX, largest_unit(), group)]);
        comes_back("the largest scales", &beyond);
        let error = beyond.first_planes(3).unwrap_err().to_string();
        assert!(error.contains("a scale of the first 3 planes") && error.contains("at most"), "{error}");
    }
}

#[test]
fn pruned_tensors_are_read_back_or_refused() {
    let values = |tensor: &RbeTensor| tensor.dequantize().unwrap();
    for value in [0.0, 1e-45, 1e-30, 1.0, 1e30, 1e34] {
        for format in 0..FORMATS.len() {
            for terms in [vec![sparse(format, value)], vec![basis(value, false), sparse(format, value)]] {
                let whole = tensor(terms);
                let zeros = values(&whole).zeros_like().unwrap();
                for threshold in [0.0, 0.5 * value, 2.0 * value, f32::MAX, f32::INFINITY] {
                    for original in [None, Some(&values(&whole)), Some(&zeros)] {
                        let what = format!("{} of {value:e} at {threshold:e}", whole.summary());
                        match whole.prune_coefficients(threshold, original) {
                            Ok((pruned, report)) => {
                                assert_eq!(pruned.relative_error(), f64::from(report.error_after as f32));
                                comes_back(&what, &pruned);
                            }
                            Err(error) => {
                                let error = error.to_string();
                                assert!(error.contains("finite"), "{what}: {error}");
                            }
                        }
                    }
                }
            }
        }
    }
    // Basis parameters that together leave F32.
    let whole = tensor(vec![basis(f32::MAX, false), sparse(0, 1e34)]);
    let error = whole.prune_coefficients(f32::INFINITY, None).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("finite"), "{error}");
}

/// 4992 x 4992 in blocks of 256, `entries` of them on the first one's diagonal.
fn nearly_nothing(entries: usize) -> Matrix {
    let layout = samples::layout(4992, 4992, 256);
    let kept = |block: Block, n: usize| {
        (block.index == 0 && n.is_multiple_of(257) && n / 257 < entries).then_some(1.0)
    };
    let term = samples::sparse(layout, FORMATS[0], kept).unwrap();
    Matrix::new(layout, Transform::Dct, None, vec![term], 0.25)
}

#[test]
fn a_form_that_is_too_small_to_be_read_is_not_written() {
    // Of 25 million elements readers want 994 bytes. With 40 coefficients the plain form has them, the coded one has not.
    let enough = nearly_nothing(40);
    let coded = enough.to_bytes(Orientation::Matrix);
    assert_eq!(coded, enough.to_plain_bytes(Orientation::Matrix));
    assert_eq!((enough.size_in_bytes(), coded.len()), (coded.len(), 850 + 4 * 40));
    comes_back("40 coefficients", &RbeTensor::from_matrix(&enough, Orientation::Matrix).unwrap());
    let many = nearly_nothing(255);
    assert!(many.size_in_bytes() < many.plain_size_in_bytes());
    comes_back("255 coefficients", &RbeTensor::from_matrix(&many, Orientation::Matrix).unwrap());
    let error = RbeTensor::from_matrix(&nearly_nothing(10), Orientation::Matrix).unwrap_err().to_string();
    assert!(error.contains("4992x4992 elements in 890 bytes"), "{error}");
}

#[test]
fn a_large_matrix_of_zeros_is_encoded_in_blocks_that_readers_take() {
    let zeros = vec![0.0; 4992 * 4992];
    let config = |block| EncoderConfig { term: TermChoice::Sparse, block, ..Rate::RelativeError(0.1).into() };
    let encoded =
        Encoder::new(config(None)).unwrap().encode_matrix(MatrixRef::new(&zeros, 4992, 4992)).unwrap();
    assert!(encoded.layout().block() < 256);
    comes_back("zeros", &RbeTensor::from_matrix(&encoded, Orientation::Matrix).unwrap());
    let error = Encoder::new(config(Some(256)))
        .unwrap()
        .encode_matrix(MatrixRef::new(&zeros, 4992, 4992))
        .unwrap_err();
    assert!(error.to_string().contains("blocks of edge 128"), "{error}");
}
