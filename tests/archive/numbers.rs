//! Numbers at the ends of their types: held, or refused with the tensor's name.

use crate::sample::*;
use candle_core::{DType, Device, Tensor};
use candle_rbe::archive::{self, Archive, DecodeOptions, Dtype, Selection};

fn decode(room: &Room, input: &str, dtype: Option<Dtype>) -> Result<Archive, String> {
    let out = room.path("decoded");
    let options = DecodeOptions { dtype, overwrite: true };
    archive::decode(room.path(input), &out, &options, &mut |_| go()).map_err(|e| e.to_string())?;
    Ok(Archive::open(out).unwrap())
}

/// A matrix whose largest weight is a multiple of `scale`, and the same of a dense vector.
fn scaled(scale: f64, dtype: DType) -> Tensors {
    let times = |tensor: Tensor| (tensor * scale).unwrap().to_dtype(dtype).unwrap();
    vec![("m".into(), times(matrix(64, 64, DType::F64))), ("v".into(), times(vector(64, DType::F64)))]
}

#[test]
fn weights_of_any_size_are_compressed_or_refused_by_name() {
    for (dtype, scale) in [
        (DType::F64, 1e-62),
        (DType::F64, 1e-300),
        (DType::F64, 1e300),
        (DType::F64, 1e38),
        (DType::F32, 1e-36),
        (DType::F32, 1e-38),
        (DType::F32, 1e-43),
        (DType::F32, 1e36),
    ] {
        let room = Room::new(&scaled(scale, dtype));
        let text = room.compress("dense", "rbe").unwrap_err().to_string();
        assert!(
            text.contains("tensor \"m\"") && text.contains("leave the tensor dense"),
            "{scale:e}: {text}"
        );
        assert_eq!(room.names(), ["dense"]);
    }
    for (dtype, scale) in [
        (DType::F64, 1e-27),
        (DType::F32, 1e-27),
        (DType::BF16, 1e-27),
        (DType::F32, 1e-12),
        (DType::F16, 1e-3),
        (DType::F32, 1e18),
        (DType::F64, 1e30),
    ] {
        let tensors = scaled(scale, dtype);
        let room = Room::compressed(&tensors);
        let archive = Archive::open(room.path("rbe")).unwrap();
        let entry = archive.entry("m").unwrap();
        let error = relative_error(&tensors[0].1, &archive.tensor(entry, &Device::Cpu).unwrap());
        assert!(error > 0.01 && error < 0.1, "{dtype:?} {scale:e}: {error}");
        assert!((archive.rbe(entry).unwrap().relative_error() / error - 1.0).abs() < 1e-4);
        assert_eq!(archive::verify(room.path("rbe"), room.path("dense")).unwrap().problems, 0);
    }
}

#[test]
fn a_type_that_makes_zeros_of_the_weights_is_refused() {
    let room = Room::compressed(&scaled(1e-7, DType::F32));
    let text = decode(&room, "rbe", Some(Dtype::F16)).unwrap_err();
    assert!(
        text.contains("tensor \"m\": holds nothing larger than") && text.contains("F16 would lose"),
        "{text}"
    );
    assert!(text.contains("decode to BF16 or F32"), "{text}");
    assert_eq!(room.names(), ["dense", "rbe"]);
    for dtype in [Dtype::BF16, Dtype::F32] {
        let decoded = decode(&room, "rbe", Some(dtype)).unwrap();
        let tensor = decoded.tensor(decoded.entry("m").unwrap(), &Device::Cpu).unwrap();
        assert!(relative_error(&scaled(1e-7, DType::F32)[0].1, &tensor) < 0.1);
    }
    // What was F16 before may be so again, however little its smallest numbers say.
    let room = Room::compressed(&scaled(1e-4, DType::F16));
    decode(&room, "rbe", None).unwrap();
    decode(&room, "rbe", Some(Dtype::F16)).unwrap();
}

#[test]
fn a_type_that_makes_infinities_of_dense_tensors_is_refused() {
    for (scale, words) in [(1e300, "too large for"), (1e-300, "would lose 100.0 %")] {
        let room = Room::new(&scaled(scale, DType::F64));
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let text = decode(&room, "dense", Some(dtype)).unwrap_err();
            assert!(text.contains("tensor \"m\": holds") && text.contains(words), "{text}");
            assert!(text.contains("only its own type, F64, holds it"), "{text}");
        }
        decode(&room, "dense", None).unwrap();
    }
    let room = Room::new(&scaled(1e7, DType::F32));
    assert!(decode(&room, "dense", Some(Dtype::F16)).unwrap_err().contains("decode to BF16 or F32"));
    decode(&room, "dense", Some(Dtype::BF16)).unwrap();
}

/// The sample with some values of a norm's weight replaced.
fn with_norm(values: &[(usize, f32)]) -> Tensors {
    let mut tensors = tensors(DType::F32);
    let norm = tensors.iter_mut().find(|(name, _)| name.ends_with("norm.weight")).unwrap();
    let mut weights = norm.1.to_vec1::<f32>().unwrap();
    values.iter().for_each(|(at, value)| weights[*at] = *value);
    norm.1 = Tensor::new(weights, &Device::Cpu).unwrap();
    tensors
}

#[test]
fn a_dense_tensor_with_nan_is_refused_and_does_not_verify() {
    let room = Room::new(&with_norm(&[(5, f32::NAN), (9, f32::INFINITY), (11, f32::NAN)]));
    let text = room.compress("dense", "rbe").unwrap_err().to_string();
    let words = "tensor \"layers.0.norm.weight\": holds 2 NaN and 1 infinite of 64 values, the first at 5";
    assert!(text.contains(words), "{text}");
    assert_eq!(room.names(), ["dense"]);
    // A file that has it all the same.
    write(&room.path("old"), &with_norm(&[(5, f32::NAN)]));
    let report = archive::verify(room.path("old"), room.path("old")).unwrap();
    let problems: Vec<_> = report.tensors.iter().filter_map(|line| line.problem.as_ref()).collect();
    assert_eq!(problems, ["holds 1 NaN of 64 values, the first at 5"]);
    let options = DecodeOptions { dtype: Some(Dtype::F16), overwrite: false };
    let report = archive::decode(room.path("old"), room.path("out"), &options, &mut |_| go()).unwrap();
    assert_eq!(report.non_finite.len(), 1);
    assert_eq!((report.non_finite[0].name.as_str(), report.non_finite[0].nan), ("layers.0.norm.weight", 1));
}

#[test]
fn infinities_of_a_dense_tensor_are_told() {
    let room = Room::new(&with_norm(&[(3, f32::NEG_INFINITY), (4, f32::NEG_INFINITY)]));
    let report = room.compress("dense", "rbe").unwrap();
    let told = |found: &archive::NonFinite| (found.name.clone(), found.infinite, found.first);
    let expected = ("layers.0.norm.weight".to_owned(), 2, 3);
    assert_eq!(report.non_finite.iter().map(told).collect::<Vec<_>>(), std::slice::from_ref(&expected));
    let report = archive::verify(room.path("rbe"), room.path("dense")).unwrap();
    assert_eq!(report.problems, 0);
    let found: Vec<_> = report.tensors.iter().filter_map(|line| line.non_finite.as_ref().map(told)).collect();
    assert_eq!(found, [expected]);
    assert!(
        Selection::default().takes(Archive::open(room.path("dense")).unwrap().entry("embed.weight").unwrap())
    );
}
