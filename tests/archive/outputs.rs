//! Outputs: whole or not there, never over something else, told step by step.

use crate::sample::*;
use candle_core::DType;
use candle_rbe::archive::{self, CompressOptions, DecodeOptions, Progress};
use candle_rbe::{Encoder, EncoderConfig, Error, Rate};
use std::ops::ControlFlow;

#[test]
fn steps_count_every_matrix_once() {
    let room = Room::new(&tensors(DType::F16));
    let mut seen: Vec<(String, usize, u64)> = vec![];
    let mut watch = |step: Progress<'_>| {
        assert_eq!((step.tensors, step.weights), (3, (96 * 64 + 2 * 80 * 64) as u64));
        seen.push((step.name.to_owned(), step.tensors_done, step.weights_done));
        go()
    };
    archive::compress(
        room.path("dense"),
        room.path("rbe"),
        &encoder(),
        &CompressOptions::default(),
        &mut watch,
    )
    .unwrap();
    let done = [0, 96 * 64, 96 * 64 + 80 * 64, 96 * 64 + 2 * 80 * 64];
    let expected: Vec<_> = MATRICES
        .iter()
        .chain([&""])
        .zip(done)
        .enumerate()
        .map(|(i, (name, w))| (name.to_string(), i, w))
        .collect();
    assert_eq!(seen, expected);
    seen.clear();
    let mut watch = |step: Progress<'_>| {
        seen.push((step.name.to_owned(), step.tensors_done, step.weights_done));
        go()
    };
    archive::decode(room.path("rbe"), room.path("out"), &DecodeOptions::default(), &mut watch).unwrap();
    assert_eq!(seen, expected);
}

#[test]
fn a_conversion_that_is_stopped_leaves_nothing() {
    let room = Room::compressed(&tensors(DType::F16));
    let mut stop_at_second = |step: Progress<'_>| match step.tensors_done {
        0 => go(),
        _ => ControlFlow::Break(()),
    };
    let options = CompressOptions::default();
    for input in ["dense", "dense/model.safetensors"] {
        let out = room.path("out");
        match archive::compress(room.path(input), out, &encoder(), &options, &mut stop_at_second) {
            Err(Error::Io { source, .. }) => assert_eq!(source.kind(), std::io::ErrorKind::Interrupted),
            other => panic!("{other:?}"),
        }
    }
    let options = DecodeOptions::default();
    assert!(archive::decode(room.path("rbe"), room.path("out"), &options, &mut stop_at_second).is_err());
    assert_eq!(room.names(), ["dense", "rbe"]);
}

#[test]
fn what_cannot_be_encoded_is_named_and_leaves_nothing() {
    let mut model = tensors(DType::F32);
    let mut values = model[1].1.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values[77] = f32::NAN;
    model[1].1 = candle_core::Tensor::from_vec(values, (80, 64), &candle_core::Device::Cpu).unwrap();
    let room = Room::new(&model);
    match room.compress("dense", "rbe").unwrap_err() {
        Error::Tensor { name, source } => {
            assert_eq!(name, "layers.0.up_proj.weight");
            assert!(
                matches!(*source, Error::Codec(candle_rbe::CodecError::NonFinite { index: 77, .. })),
                "{source}"
            );
        }
        other => panic!("{other}"),
    }
    assert_eq!(room.names(), ["dense"]);
}

#[test]
fn a_rate_out_of_reach_is_named_and_leaves_nothing() {
    let room = Room::new(&tensors(DType::F32));
    let config = EncoderConfig { rate: Rate::BitsPerWeight(0.001), ..EncoderConfig::default() };
    let options = CompressOptions::default();
    let refused = match Encoder::new(config) {
        Err(error) => error,
        Ok(encoder) => {
            match archive::compress(room.path("dense"), room.path("rbe"), &encoder, &options, &mut |_| go()) {
                Err(Error::Tensor { name, source }) => {
                    assert!(MATRICES.contains(&name.as_str()));
                    *source
                }
                other => panic!("{other:?}"),
            }
        }
    };
    assert!(
        matches!(
            refused,
            Error::Codec(candle_rbe::CodecError::UnreachableRate { .. })
                | Error::Codec(candle_rbe::CodecError::InvalidConfig { .. })
        ),
        "{refused}"
    );
    assert_eq!(room.names(), ["dense"]);
}

#[test]
fn an_existing_output_stays_unless_it_is_to_be_replaced() {
    let room = Room::compressed(&tensors(DType::F16));
    let before = std::fs::read(room.path("rbe/model.safetensors")).unwrap();
    std::fs::write(room.path("file"), "mine").unwrap();
    assert!(matches!(room.compress("dense", "rbe"), Err(Error::Exists { .. })));
    assert!(matches!(room.compress("dense/model.safetensors", "file"), Err(Error::Exists { .. })));
    let keep = DecodeOptions::default();
    assert!(matches!(
        archive::decode(room.path("rbe"), room.path("file"), &keep, &mut |_| go()),
        Err(Error::Exists { .. })
    ));
    assert_eq!(std::fs::read(room.path("rbe/model.safetensors")).unwrap(), before);
    assert_eq!(std::fs::read_to_string(room.path("file")).unwrap(), "mine");

    let replace = CompressOptions { overwrite: true, ..selecting("up_proj") };
    archive::compress(room.path("dense"), room.path("rbe"), &encoder(), &replace, &mut |_| go()).unwrap();
    assert_ne!(std::fs::read(room.path("rbe/model.safetensors")).unwrap(), before);
    let replace = DecodeOptions { overwrite: true, ..keep };
    archive::decode(room.path("rbe"), room.path("file"), &replace, &mut |_| go()).unwrap();
    assert!(std::fs::metadata(room.path("file")).unwrap().len() > 10_000);
    assert_eq!(room.names(), ["dense", "file", "rbe"]);
}

#[test]
fn the_input_is_never_the_output() {
    let room = Room::compressed(&tensors(DType::F16));
    let options = CompressOptions { overwrite: true, ..CompressOptions::default() };
    for path in ["dense", "dense/model.safetensors"] {
        let (input, output) = (room.path(path), room.path("rbe/../").join(path));
        let error = archive::compress(input, output, &encoder(), &options, &mut |_| go()).unwrap_err();
        assert!(error.to_string().contains("is the input itself"), "{error}");
    }
    let (input, options) = (room.path("rbe"), DecodeOptions { overwrite: true, dtype: None });
    let output = room.path("rbe/model.safetensors");
    let error = archive::decode(input, output, &options, &mut |_| go()).unwrap_err();
    assert!(error.to_string().contains("is the input itself"), "{error}");
}

#[test]
fn an_output_that_cannot_be_is_refused_before_the_work() {
    let room = Room::new(&tensors(DType::F16));
    let error = room.compress("dense", "no/such/place").unwrap_err().to_string();
    assert!(error.contains("there is no directory") && error.contains("no/such"), "{error}");
    let error = room.compress("dense", "dense/config.json/x").unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
    let options = DecodeOptions { overwrite: true, dtype: None };
    let error =
        archive::decode(room.path("dense/model.safetensors"), room.path("dense"), &options, &mut |_| go());
    assert!(error.unwrap_err().to_string().contains("is a directory"));
}
