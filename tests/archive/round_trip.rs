//! Compressing and decoding keep what they promise to keep.

use crate::sample::*;
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use candle_rbe::archive::{
    self, Archive, CompressOptions, DecodeOptions, Dtype, FORMAT_KEY, SafetensorsWriter, Selection, Slot,
};
use candle_rbe::{Budget, Encoder, EncoderConfig, Rate, RbeTensor, TermChoice, archive::Entry};
use safetensors::SafeTensors;
use std::collections::BTreeSet;

fn tensor(archive: &Archive, name: &str) -> Tensor {
    archive.tensor(archive.entry(name).unwrap(), &Device::Cpu).unwrap()
}

#[test]
fn every_reader_of_safetensors_opens_a_compressed_model() {
    let tensors = tensors(DType::F16);
    let room = Room::new(&tensors);
    let report = room.compress("dense", "rbe").unwrap();
    assert_eq!(names(&room.path("rbe")), ["config.json", "model.safetensors"]);
    assert_eq!(report.companions, ["config.json"]);
    assert_eq!(report.compressed_tensors, MATRICES.len());

    let bytes = std::fs::read(room.path("rbe/model.safetensors")).unwrap();
    let plain = SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
    #[allow(unsafe_code)]
    // SAFETY: the file is this test's own, and nothing writes to it while it is mapped.
    let mapped = unsafe { MmapedSafetensors::new(room.path("rbe/model.safetensors")) }.unwrap();
    assert_eq!(plain.len(), tensors.len());
    for (name, original) in &tensors {
        if MATRICES.contains(&name.as_str()) {
            let view = plain.tensor(&format!("{name}.rbe")).unwrap();
            assert_eq!((view.dtype(), view.shape()), (Dtype::U8, [view.data().len()].as_slice()));
            let payload = RbeTensor::from_bytes(view.data()).unwrap();
            assert_eq!(payload.shape(), original.shape());
            let candle = mapped.load(&format!("{name}.rbe"), &Device::Cpu).unwrap();
            assert_eq!(candle.to_vec1::<u8>().unwrap(), view.data());
        } else {
            let candle = mapped.load(name, &Device::Cpu).unwrap();
            assert_eq!((candle.dtype(), candle.shape()), (original.dtype(), original.shape()));
            assert_eq!(plain.tensor(name).unwrap().data(), &*safetensors::View::data(original), "{name}");
        }
    }
}

#[test]
fn a_model_in_memory_is_the_one_in_the_file() {
    let room = Room::compressed(&tensors(DType::F16));
    let bytes = std::fs::read(room.path("rbe/model.safetensors")).unwrap();
    let (file, memory) =
        (Archive::open(room.path("rbe")).unwrap(), Archive::from_bytes("download", bytes.clone()).unwrap());
    assert_eq!(memory.path(), "download");
    assert!(memory.entries().eq(file.entries()) && memory.metadata() == file.metadata());
    for entry in file.entries() {
        assert_eq!(memory.bytes(entry), file.bytes(entry), "{}", entry.name);
    }

    let layer = |vb: candle_nn::VarBuilder| candle_rbe::linear(64, 80, vb.pp("layers.0.up_proj")).unwrap();
    let from_file = layer(archive::open(room.path("rbe"), DType::F32, &Device::Cpu).unwrap());
    let from_memory =
        layer(archive::open_bytes("download", bytes.clone(), DType::F32, &Device::Cpu).unwrap());
    assert!(from_memory.weight().rbe().is_some());
    let x = matrix(3, 64, DType::F32);
    let y = |layer: candle_rbe::Linear| candle_nn::Module::forward(&layer, &x).unwrap();
    assert_eq!(y(from_memory).to_vec2::<f32>().unwrap(), y(from_file).to_vec2::<f32>().unwrap());

    for (cut, expected) in [
        (0, "download: not a safetensors file: 0 bytes hold no header"),
        (bytes.len() - 1, "download: not a valid safetensors file"),
    ] {
        let error = Archive::from_bytes("download", bytes[..cut].to_vec()).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn errors_and_sizes_are_as_reported() {
    let tensors = tensors(DType::F32);
    let room = Room::new(&tensors);
    let report = room.compress("dense", "rbe").unwrap();
    let archive = Archive::open(room.path("rbe")).unwrap();
    let (mut squared_error, mut squared_norm, mut payload_bytes, mut weights) = (0.0, 0.0, 0, 0);
    for (name, original) in tensors.iter().filter(|(name, _)| MATRICES.contains(&name.as_str())) {
        let line = report.tensors.iter().find(|line| line.name == *name).unwrap();
        let measured = relative_error(original, &tensor(&archive, name));
        let reported = line.relative_error.unwrap();
        assert!((measured - reported).abs() < 1e-4 * reported, "{name}: {measured} and {reported}");
        assert!(measured > 0.01 && measured < 0.2, "{name}: {measured}");
        assert_eq!(line.bytes_after, archive.entry(name).unwrap().bytes as u64);
        assert_eq!(line.bits_per_weight, 8.0 * line.bytes_after as f64 / original.elem_count() as f64);
        assert!(line.bits_per_weight <= 4.5, "{name}: {}", line.bits_per_weight);
        let norm = original.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap() as f64;
        squared_norm += norm;
        squared_error += norm * measured.powi(2);
        payload_bytes += line.bytes_after;
        weights += original.elem_count() as u64;
    }
    assert!((report.relative_error - (squared_error / squared_norm).sqrt()).abs() < 1e-4);
    assert_eq!(report.bits_per_weight, 8.0 * payload_bytes as f64 / weights as f64);
    assert_eq!((report.compressed_weights, report.tensors.len()), (weights, tensors.len()));
    let file = std::fs::metadata(room.path("rbe/model.safetensors")).unwrap().len();
    assert!(report.bytes_after < file && file < report.bytes_after + 2000, "{file}");
    assert!(report.tensors.iter().all(|line| line.compressed == line.relative_error.is_some()));
}

#[test]
fn decoding_gives_back_names_shapes_types_and_metadata() {
    for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
        let tensors = tensors(dtype);
        let room = Room::compressed(&tensors);
        let out = room.path("decoded.safetensors");
        let report =
            archive::decode(room.path("rbe"), &out, &DecodeOptions::default(), &mut |_| go()).unwrap();
        assert_eq!((report.tensors, report.decoded_tensors), (tensors.len(), MATRICES.len()));
        assert_eq!(
            report.bytes_after,
            Archive::open(&out).unwrap().entries().map(|e| e.bytes as u64).sum::<u64>()
        );

        let (before, after) = (std::fs::read(room.path("dense/model.safetensors")), std::fs::read(&out));
        let (before, after) = (before.unwrap(), after.unwrap());
        let (_, header) = SafeTensors::read_metadata(&before).unwrap();
        let (_, decoded_header) = SafeTensors::read_metadata(&after).unwrap();
        assert_eq!(header.metadata(), decoded_header.metadata());
        let decoded = SafeTensors::deserialize(&after).unwrap();
        assert_eq!(decoded.len(), tensors.len());
        for (name, original) in &tensors {
            let view = decoded.tensor(name).unwrap();
            assert_eq!((view.dtype(), view.shape()), (original.dtype().into(), original.dims()), "{name}");
            let loaded = candle_core::safetensors::Load::load(&view, &Device::Cpu).unwrap();
            if MATRICES.contains(&name.as_str()) {
                assert!(relative_error(original, &loaded) < 0.2, "{name}");
            } else {
                assert_eq!(view.data(), &*safetensors::View::data(original), "{name}");
            }
        }
    }
}

#[test]
fn decoding_to_another_type_converts_every_float_and_nothing_else() {
    let room = Room::compressed(&tensors(DType::F32));
    let options = DecodeOptions { dtype: Some(Dtype::BF16), overwrite: false };
    archive::decode(room.path("rbe"), room.path("out"), &options, &mut |_| go()).unwrap();
    let archive = Archive::open(room.path("out")).unwrap();
    for entry in archive.entries() {
        let expected = if entry.name == "steps" { Dtype::I64 } else { Dtype::BF16 };
        assert_eq!(entry.dtype, expected, "{}", entry.name);
    }
    let exact = tensor(&Archive::open(room.path("rbe")).unwrap(), MATRICES[0]);
    let rounded = tensor(&archive, MATRICES[0]).to_dtype(DType::F32).unwrap();
    let expected = exact.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
    assert_eq!(relative_error(&expected, &rounded), 0.0);
}

#[test]
fn one_file_and_its_shards_compress_to_the_same_bytes() {
    let tensors = tensors(DType::F16);
    let room = Room::new(&tensors);
    std::fs::create_dir(room.path("sharded")).unwrap();
    let mut weight_map = serde_json::Map::new();
    for (number, shard) in tensors.chunks(3).enumerate() {
        let file = format!("model-{number:05}-of-00003.safetensors");
        write(&room.path("sharded").join(&file), &shard.to_vec());
        weight_map.extend(shard.iter().map(|(name, _)| (name.clone(), file.clone().into())));
    }
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": weight_map});
    std::fs::write(room.path("sharded/model.safetensors.index.json"), index.to_string()).unwrap();

    let archive = Archive::open(room.path("sharded")).unwrap();
    assert_eq!((archive.files().count(), archive.entries().len()), (3, tensors.len()));
    room.compress("dense", "one").unwrap();
    room.compress("sharded", "three").unwrap();
    room.compress("dense", "again").unwrap();
    room.compress("dense/model.safetensors", "file").unwrap();
    let one = std::fs::read(room.path("one/model.safetensors")).unwrap();
    for other in ["three/model.safetensors", "again/model.safetensors", "file"] {
        assert!(std::fs::read(room.path(other)).unwrap() == one, "{other} differs");
    }
    assert_eq!(archive::verify(room.path("three"), room.path("dense")).unwrap().problems, 0);
}

#[test]
fn patterns_choose_among_the_matrices() {
    let room = Room::new(&tensors(DType::F16));
    let archive = Archive::open(room.path("dense")).unwrap();
    let chosen = |include, exclude| -> BTreeSet<String> {
        let selection = Selection::new(include, exclude).unwrap();
        archive.entries().filter(|entry| selection.takes(entry)).map(|entry| entry.name.clone()).collect()
    };
    let set = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<BTreeSet<_>>();
    assert_eq!(chosen(None, None), set(&MATRICES));
    assert_eq!(chosen(Some("_proj"), None), set(&MATRICES[1..]));
    assert_eq!(chosen(None, Some("^embed|up")), set(&MATRICES[1..2]));
    assert_eq!(chosen(Some("layers"), Some("down")), set(&MATRICES[2..]));
    let small = Selection::default().with_min_side(2);
    assert!(small.takes(archive.entry("types.weight").unwrap()));
    assert!(!Selection::default().takes(archive.entry("types.weight").unwrap()));

    let options = CompressOptions {
        selection: Selection::new(Some("up_proj"), None).unwrap(),
        ..CompressOptions::default()
    };
    archive::compress(room.path("dense"), room.path("rbe"), &encoder(), &options, &mut |_| go()).unwrap();
    let compressed = Archive::open(room.path("rbe")).unwrap();
    let names: Vec<&str> =
        compressed.entries().filter(|e| e.compressed).map(|e: &Entry| e.name.as_str()).collect();
    assert_eq!(names, ["layers.0.up_proj.weight"]);
}

#[test]
fn conv1d_weights_of_gpt2_are_encoded_along_their_outputs() {
    let weight = matrix(64, 96, DType::F32);
    let tensors = vec![
        ("h.0.attn.c_attn.weight".to_owned(), weight.clone()),
        ("wte.weight".to_owned(), matrix(96, 64, DType::F32)),
    ];
    let room = Room::new(&tensors);
    std::fs::write(room.path("dense/config.json"), r#"{"model_type": "gpt2"}"#).unwrap();
    // Scales are another's choice.
    let encoder = Encoder::new(EncoderConfig { scales: false, ..encoder().config().clone() }).unwrap();
    let options = CompressOptions::default();
    archive::compress(room.path("dense"), room.path("rbe"), &encoder, &options, &mut |_| go()).unwrap();
    let archive = Archive::open(room.path("rbe")).unwrap();
    let payload = |name: &str| archive.bytes(archive.entry(name).unwrap()).to_vec();
    let turned = encoder.encode(&weight.t().unwrap()).unwrap().t().unwrap();
    assert!(payload("h.0.attn.c_attn.weight") == turned.to_bytes().unwrap());
    assert!(payload("wte.weight") == encoder.encode(&tensors[1].1).unwrap().to_bytes().unwrap());
    assert_eq!(
        archive.rbe(archive.entry("h.0.attn.c_attn.weight").unwrap()).unwrap().shape().dims(),
        [64, 96]
    );
    assert_eq!(archive::verify(room.path("rbe"), room.path("dense")).unwrap().problems, 0);
}

#[test]
fn a_payload_without_our_metadata_is_still_read() {
    let room = Room::compressed(&tensors(DType::F16));
    let archive = Archive::open(room.path("rbe")).unwrap();
    assert!(!archive.metadata().contains_key(FORMAT_KEY), "our own entries are not the model's");
    let bytes = archive.bytes(archive.entry(MATRICES[0]).unwrap());
    let file = std::fs::File::create(room.path("bare.safetensors")).unwrap();
    let plan = vec![Slot::payload(MATRICES[0])];
    let mut writer = SafetensorsWriter::new(file, "bare", plan, Default::default()).unwrap();
    writer.write(&[bytes.len()], bytes).unwrap();
    writer.finish().unwrap();
    let bare = Archive::open(room.path("bare.safetensors")).unwrap();
    let entry = bare.entry(MATRICES[0]).unwrap();
    assert_eq!(
        (entry.shape.as_slice(), entry.dtype, entry.compressed),
        ([96, 64].as_slice(), Dtype::F32, true)
    );
    assert_eq!(relative_error(&tensor(&archive, MATRICES[0]), &tensor(&bare, MATRICES[0])), 0.0);
}

#[test]
fn a_plain_file_holds_the_same_in_more_bytes() {
    let tensors = tensors(DType::F32);
    let room = Room::new(&tensors);
    let config =
        EncoderConfig { term: TermChoice::Planes, budget: Budget::Memory, ..Rate::BitsPerWeight(4.5).into() };
    let encoder = Encoder::new(config).unwrap();
    let write = |name: &str, plain: bool| {
        let options = CompressOptions { plain, ..CompressOptions::default() };
        archive::compress(room.path("dense"), room.path(name), &encoder, &options, &mut |_| go()).unwrap()
    };
    let (plain, coded) = (write("plain", true), write("coded", false));
    assert!(coded.bytes_after < plain.bytes_after && coded.bits_per_weight < plain.bits_per_weight);
    assert_eq!(coded.relative_error, plain.relative_error);
    let (plain, coded) =
        (Archive::open(room.path("plain")).unwrap(), Archive::open(room.path("coded")).unwrap());
    for name in MATRICES {
        let read = |archive: &Archive| {
            let entry = archive.entry(name).unwrap();
            (archive.rbe(entry).unwrap(), archive.bytes(entry).to_vec())
        };
        let ((a, a_bytes), (b, b_bytes)) = (read(&plain), read(&coded));
        for (tensor, own) in [(&a, &a_bytes), (&b, &b_bytes)] {
            assert!(tensor.to_bytes().unwrap() == *own, "{name}: the payload is what the file has");
            assert_eq!((tensor.size_in_bytes(), tensor.plain_size_in_bytes()), (own.len(), a_bytes.len()));
            assert!(tensor.to_plain_bytes().unwrap() == a_bytes, "{name}");
            assert!(tensor.to_coded_bytes().unwrap() == b_bytes, "{name}");
        }
    }
}
