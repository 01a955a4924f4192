//! Every bad input is refused with an error that names the file and the tensor.

use crate::sample::*;
use candle_core::{DType, Device};
use candle_rbe::Error;
use candle_rbe::archive::{
    self, Archive, CompressOptions, DecodeOptions, Dtype, SafetensorsWriter, Selection, Slot, TENSORS_KEY,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

fn refusal(path: &Path) -> String {
    Archive::open(path).unwrap_err().to_string()
}

/// A file of U8 tensors by stored name, with this metadata.
fn file(room: &Room, name: &str, tensors: &[(&str, &[u8])], metadata: &[(&str, &str)]) {
    let out = std::fs::File::create(room.path(name)).unwrap();
    let plan = tensors.iter().map(|(name, bytes)| Slot::dense(*name, Dtype::U8, &[bytes.len()])).collect();
    let metadata = metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    let mut writer = SafetensorsWriter::new(out, name, plan, metadata).unwrap();
    let tensors: BTreeMap<_, _> = tensors.iter().copied().collect();
    while let Some(slot) = writer.next_slot() {
        let bytes = tensors[slot.name.as_str()];
        writer.write(&[bytes.len()], bytes).unwrap();
    }
    writer.finish().unwrap();
}

fn payload(room: &Room) -> Vec<u8> {
    let archive = Archive::open(room.path("rbe")).unwrap();
    archive.bytes(archive.entry("embed.weight").unwrap()).to_vec()
}

/// The compressed sample with one byte of its weights file changed.
fn damaged(room: &Room, at: usize) {
    let path = room.path("rbe/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[at] ^= 0x10;
    std::fs::write(room.path("damaged.safetensors"), bytes).unwrap();
}

#[test]
fn a_missing_file_and_a_directory_without_a_model() {
    let room = Room::new(&tensors(DType::F32));
    assert!(refusal(&room.path("absent")).contains("absent"));
    std::fs::create_dir(room.path("empty")).unwrap();
    let text = refusal(&room.path("empty"));
    assert!(text.contains("holds neither model.safetensors nor model.safetensors.index.json"), "{text}");
    let text = refusal(&room.path("dense/config.json"));
    assert!(text.contains("config.json: not a valid safetensors file"), "{text}");
}

#[test]
fn a_truncated_file() {
    let room = Room::compressed(&tensors(DType::F16));
    let bytes = std::fs::read(room.path("rbe/model.safetensors")).unwrap();
    for length in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(room.path("short.safetensors"), &bytes[..length]).unwrap();
        let text = refusal(&room.path("short.safetensors"));
        assert!(text.contains("short.safetensors: not a"), "{length} bytes: {text}");
    }
}

#[test]
fn a_missing_tensor() {
    let room = Room::compressed(&tensors(DType::F16));
    let archive = Archive::open(room.path("rbe")).unwrap();
    match archive.entry("layers.7.weight").unwrap_err() {
        Error::MissingTensor { path, name, .. } => {
            assert_eq!((path, name.as_str()), (room.path("rbe"), "layers.7.weight"));
        }
        other => panic!("{other}"),
    }
    let dense = archive.entry("types.weight").unwrap();
    assert!(archive.rbe(dense).unwrap_err().to_string().contains("\"types.weight\": is not compressed"));
}

#[test]
fn a_tensor_under_another_prefix_and_a_file_of_adapters() {
    let room = Room::compressed(&tensors(DType::F16));
    let missing =
        |path: &str, name: &str| Archive::open(room.path(path)).unwrap().entry(name).unwrap_err().to_string();
    let longer = missing("rbe", "model.layers.0.norm.weight");
    assert!(longer.ends_with(
        "; it holds \"layers.0.norm.weight\", the same without \"model.\" before it: the model was saved under another \
         prefix, rename its tensors"
    ));
    assert!(
        missing("rbe", "norm.weight")
            .contains("\"layers.0.norm.weight\", the same with \"layers.0.\" before it")
    );
    assert!(missing("rbe", "orm.weight").ends_with("no tensor named \"orm.weight\""));
    file(&room, "adapters", &[("embed.weight.rbe", &payload(&room))], &[("rbe.kind", "adapter")]);
    assert!(missing("adapters", "model.norm.weight").contains("it holds adapters"));
}

#[test]
fn a_flipped_byte_in_a_payload() {
    let room = Room::compressed(&tensors(DType::F16));
    let archive = Archive::open(room.path("rbe")).unwrap();
    let whole = std::fs::read(room.path("rbe/model.safetensors")).unwrap();
    let payload = archive.bytes(archive.entry("embed.weight").unwrap());
    let start = whole.windows(payload.len()).position(|window| window == payload).unwrap();
    for at in (0..payload.len()).step_by(97).chain([1, 5, payload.len() - 1]) {
        damaged(&room, start + at);
        let archive = Archive::open(room.path("damaged.safetensors")).unwrap();
        let text = archive.rbe(archive.entry("embed.weight").unwrap()).unwrap_err().to_string();
        assert!(
            text.contains("damaged.safetensors: tensor \"embed.weight\": not a valid RBE payload"),
            "{text}"
        );
        let report = archive::verify(room.path("damaged.safetensors"), room.path("dense")).unwrap();
        assert_eq!(report.problems, 1);
        let options = DecodeOptions::default();
        let out = room.path("out");
        assert!(archive::decode(room.path("damaged.safetensors"), &out, &options, &mut |_| go()).is_err());
        assert!(!out.exists());
    }
}

#[test]
fn a_flipped_byte_in_a_dense_tensor_does_not_verify() {
    let room = Room::compressed(&tensors(DType::F16));
    assert_eq!(archive::verify(room.path("rbe"), room.path("dense")).unwrap().problems, 0);
    let bytes = std::fs::read(room.path("rbe/model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    damaged(&room, header);
    let report = archive::verify(room.path("damaged.safetensors"), room.path("dense")).unwrap();
    let problems: Vec<_> =
        report.tensors.iter().filter_map(|t| Some((&t.name, t.problem.as_ref()?))).collect();
    assert_eq!(problems.len(), 1);
    assert!(problems[0].1.contains("differs from the original"), "{problems:?}");
}

#[test]
fn a_model_that_is_not_the_original_does_not_verify() {
    let room = Room::compressed(&tensors(DType::F16));
    let mut other = tensors(DType::F16);
    other[0].1 = (other[0].1.affine(1.001, 0.0)).unwrap();
    other[1].1 = matrix(81, 64, DType::F16);
    other[3].0 = "layers.9.norm.weight".into();
    write(&room.path("other"), &other);
    let report = archive::verify(room.path("rbe"), room.path("other")).unwrap();
    let problem = |name: &str| report.tensors.iter().find(|t| t.name == name).unwrap().problem.clone();
    assert!(problem("layers.0.up_proj.weight").unwrap().contains("shape [80, 64], and was"));
    assert!(problem("layers.0.norm.weight").unwrap().contains("is not in"));
    assert!(problem("layers.9.norm.weight").unwrap().contains("is missing from"));
    assert_eq!(problem("layers.0.down_proj.weight"), None);
    // A thousandth of the weights is little beside the error of the encoding; another matrix is not.
    other[0].1 = matrix(64, 96, DType::F16).t().unwrap().contiguous().unwrap();
    write(&room.path("other"), &other);
    let report = archive::verify(room.path("rbe"), room.path("other")).unwrap();
    let embed = report.tensors.iter().find(|t| t.name == "embed.weight").unwrap();
    assert!(embed.relative_error.unwrap() > 1.0 && embed.recorded_error.unwrap() < 0.2);
    assert!(embed.problem.as_ref().unwrap().contains("is recorded"));
}

#[test]
fn what_is_compressed_already() {
    let room = Room::compressed(&tensors(DType::F16));
    let text = room.compress("rbe", "again").unwrap_err().to_string();
    assert!(text.contains("is already compressed; decode the model first"), "{text}");
    assert_eq!(room.names(), ["dense", "rbe"]);
}

#[test]
fn a_name_that_is_kept_for_payloads() {
    let room = Room::new(&vec![("a.weight.rbe".to_owned(), matrix(64, 64, DType::F32))]);
    let text = room.compress("dense", "rbe").unwrap_err().to_string();
    assert!(text.contains("\"a.weight.rbe\" is F32 of shape [64, 64]"), "{text}");
}

#[test]
fn a_tensor_that_is_there_dense_and_compressed() {
    let room = Room::compressed(&tensors(DType::F16));
    file(&room, "twice", &[("embed.weight", &[1, 2, 3]), ("embed.weight.rbe", &payload(&room))], &[]);
    let text = refusal(&room.path("twice"));
    assert!(text.contains("tensor \"embed.weight\" is there twice, dense and compressed"), "{text}");
}

#[test]
fn bytes_that_only_look_like_a_payload() {
    let room = Room::new(&tensors(DType::F16));
    file(&room, "fake", &[("a.rbe", &[1, 2, 3])], &[]);
    let text = refusal(&room.path("fake"));
    assert!(text.contains("fake: tensor \"a\": not a valid RBE payload"), "{text}");
}

#[test]
fn metadata_that_does_not_fit_the_file() {
    let room = Room::compressed(&tensors(DType::F16));
    let payload = payload(&room);
    let tensors = [("embed.weight.rbe", payload.as_slice())];
    let open = |metadata: &[(&str, &str)]| {
        file(&room, "odd", &tensors, metadata);
        let archive = Archive::open(room.path("odd"))?;
        archive.rbe(archive.entry("embed.weight")?).map(drop)
    };
    let text = |metadata: &[(&str, &str)]| open(metadata).unwrap_err().to_string();
    open(&[("rbe.format", "1")]).unwrap();
    open(&[("rbe.format", "1"), (TENSORS_KEY, r#"{"embed.weight":{"dtype":"F16","shape":[96,64]}}"#)])
        .unwrap();
    let version = text(&[("rbe.format", "2")]);
    assert!(version.contains("odd: rbe.format is \"2\"; this build reads \"1\""), "{version}");
    let absent = text(&[(TENSORS_KEY, r#"{"other":{"dtype":"F16","shape":[96,64]}}"#)]);
    assert!(absent.contains("names tensor \"other\", and there is no \"other.rbe\""), "{absent}");
    let shape = text(&[(TENSORS_KEY, r#"{"embed.weight":{"dtype":"F16","shape":[64,96]}}"#)]);
    assert!(shape.contains("the payload has shape [96, 64], the header says [64, 96]"), "{shape}");
    let huge = format!(r#"{{"embed.weight":{{"dtype":"F16","shape":[{0},{0}]}}}}"#, usize::MAX);
    assert!(text(&[(TENSORS_KEY, &huge)]).contains("overflows"));
    for nonsense in ["", "[]", r#"{"a":1}"#, r#"{"a":{"dtype":"F99","shape":[1]}}"#] {
        assert!(text(&[(TENSORS_KEY, nonsense)]).contains("rbe.tensors is not valid"), "{nonsense}");
    }
}

/// A model in two shards: `a` and a short `b`, a longer `b` and `c`.
fn sharded(room: &Room, weight_map: &str) {
    let path = room.path("sharded");
    std::fs::create_dir_all(&path).unwrap();
    let named = |name: &str, length: usize| (name.to_owned(), vector(length, DType::F32));
    write(&path.join("one.safetensors"), &vec![named("a", 3), named("b", 2)]);
    write(&path.join("two.safetensors"), &vec![named("b", 5), named("c", 2)]);
    let index = format!(r#"{{"weight_map": {weight_map}}}"#);
    std::fs::write(path.join("model.safetensors.index.json"), index).unwrap();
}

fn indexed(room: &Room, weight_map: &str) -> String {
    sharded(room, weight_map);
    refusal(&room.path("sharded"))
}

#[test]
fn an_index_that_points_outside_its_directory() {
    let room = Room::new(&tensors(DType::F32));
    let outside = room.path("dense/model.safetensors").to_str().unwrap().replace('\\', "/");
    for path in ["../dense/model.safetensors", "..", "a/../one.safetensors", "./one.safetensors/..", &outside]
    {
        let text = indexed(&room, &format!(r#"{{"a": "{path}"}}"#));
        assert!(text.contains("tensor \"a\" is said to be in") && text.contains("outside"), "{path}: {text}");
        assert!(text.contains("model.safetensors.index.json"), "{text}");
    }
    for (path, words) in
        [("", "names no file"), ("./", "names no file"), ("sub/one.safetensors", "in a directory below")]
    {
        let text = indexed(&room, &format!(r#"{{"a": "{path}"}}"#));
        assert!(text.contains(words) && !text.contains("outside"), "{path}: {text}");
    }
}

#[test]
fn an_index_may_say_that_a_shard_lies_beside_it() {
    let room = Room::new(&tensors(DType::F32));
    sharded(&room, r#"{"a": "./one.safetensors", "b": "one.safetensors"}"#);
    let archive = Archive::open(room.path("sharded")).unwrap();
    assert_eq!((archive.files().count(), archive.entries().len()), (1, 2));
}

#[test]
fn an_index_that_names_a_missing_shard() {
    let text =
        indexed(&Room::new(&tensors(DType::F32)), r#"{"a": "one.safetensors", "d": "three.safetensors"}"#);
    assert!(text.contains("names \"three.safetensors\", and there is no such file"), "{text}");
}

#[test]
fn an_index_that_names_a_missing_tensor() {
    let text = indexed(&Room::new(&tensors(DType::F32)), r#"{"c": "one.safetensors"}"#);
    assert!(text.contains("says that \"one.safetensors\" holds tensor \"c\", and it does not"), "{text}");
}

#[test]
fn of_a_tensor_in_two_shards_the_index_says_which_counts() {
    let room = Room::new(&tensors(DType::F32));
    for (file, length) in [("one.safetensors", 2), ("two.safetensors", 5)] {
        sharded(&room, &format!(r#"{{"a": "one.safetensors", "b": "{file}", "c": "two.safetensors"}}"#));
        let archive = Archive::open(room.path("sharded")).unwrap();
        let entry = archive.entry("b").unwrap();
        assert_eq!(
            (archive.file_of(entry), &entry.shape[..]),
            (&*room.path("sharded").join(file), &[length][..])
        );
        assert_eq!(archive.bytes(entry).len(), 4 * length);
    }
    // Nothing says which.
    let text = indexed(&room, r#"{"a": "one.safetensors", "c": "two.safetensors"}"#);
    assert!(
        text.contains("two.safetensors: tensor \"b\" is also in") && text.contains("one.safetensors"),
        "{text}"
    );
}

#[test]
fn an_index_that_is_none() {
    let room = Room::new(&tensors(DType::F32));
    assert!(indexed(&room, "3").contains("not a valid index"));
    assert!(indexed(&room, "{}").contains("names no tensor"));
}

#[test]
fn a_selection_that_takes_nothing_or_is_no_pattern() {
    let room = Room::new(&tensors(DType::F16));
    let compress = |options: &CompressOptions| {
        archive::compress(room.path("dense"), room.path("rbe"), &encoder(), options, &mut |_| go())
    };
    let text = compress(&selecting("bias")).unwrap_err().to_string();
    assert!(text.contains("none of its 8 tensors is a matrix"), "{text}");
    assert!(matches!(
        Selection::new(None, Some("(")),
        Err(Error::Codec(candle_rbe::CodecError::InvalidConfig { .. }))
    ));
    assert_eq!(room.names(), ["dense"]);
}

#[test]
fn a_configuration_that_is_not_json() {
    let room = Room::new(&tensors(DType::F16));
    std::fs::write(room.path("dense/config.json"), "model_type: gpt2").unwrap();
    let text = room.compress("dense", "rbe").unwrap_err().to_string();
    assert!(text.contains("config.json"), "{text}");
    assert_eq!(room.names(), ["dense"]);
}

#[test]
fn decoding_to_a_type_that_cannot_hold_the_weights() {
    let large = matrix(64, 64, DType::F32).affine(1e7, 0.0).unwrap();
    let room = Room::compressed(&vec![("a".into(), large)]);
    let decode = |dtype| {
        let options = DecodeOptions { dtype: Some(dtype), overwrite: false };
        archive::decode(room.path("rbe"), room.path(&format!("{dtype}")), &options, &mut |_| go())
    };
    let text = decode(Dtype::F16).unwrap_err().to_string();
    assert!(text.contains("tensor \"a\": holds") && text.contains("too large for F16"), "{text}");
    decode(Dtype::BF16).unwrap();
    assert!(matches!(decode(Dtype::I64), Err(Error::Codec(candle_rbe::CodecError::Unsupported { .. }))));
    assert_eq!(room.names(), ["BF16", "dense", "rbe"]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// Whatever byte of the file is changed, reading all of it is an error or succeeds; it never panics.
    #[test]
    fn no_damage_panics(place in 0.0..1.0f64, in_header: bool, to: u8) {
        thread_local! {
            static ROOM: (Room, Vec<u8>, usize) = {
                let room = Room::compressed(&tensors(DType::F16));
                let bytes = std::fs::read(room.path("rbe/model.safetensors")).unwrap();
                let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
                (room, bytes, header)
            };
        }
        ROOM.with(|(room, bytes, header)| {
            let mut bytes = bytes.clone();
            let of = if in_header { *header } else { bytes.len() };
            bytes[(place * of as f64) as usize] = to;
            std::fs::write(room.path("damaged"), bytes).unwrap();
            if let Ok(archive) = Archive::open(room.path("damaged")) {
                for entry in archive.entries() {
                    if let Ok(tensor) = archive.tensor(entry, &Device::Cpu) {
                        prop_assert_eq!(tensor.dims(), entry.shape.as_slice());
                    }
                }
            }
            Ok(())
        })?;
    }
}
