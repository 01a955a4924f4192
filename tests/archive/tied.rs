//! A head that is the embeddings is stored once, and found under both names.

use crate::sample::*;
use candle_core::{DType, Device};
use candle_rbe::archive::{self, Archive, CompressOptions, DecodeOptions, Selection};

const TABLE: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// A model directory whose configuration is `config`.
fn room(tensors: &Tensors, config: &str) -> Room {
    let room = Room::new(tensors);
    std::fs::write(room.path("dense/config.json"), config).unwrap();
    room
}

fn twice() -> Tensors {
    let table = matrix(160, 64, DType::F16);
    let mut tensors = tensors(DType::F16);
    tensors.extend([(TABLE.to_owned(), table.clone()), (HEAD.to_owned(), table)]);
    tensors
}

const TIED: &str = r#"{"model_type": "llama", "tie_word_embeddings": true}"#;

fn stored(room: &Room, name: &str) -> Vec<String> {
    let bytes = std::fs::read(room.path(name).join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut names: Vec<_> = file.names().into_iter().map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn a_tied_head_is_stored_once_and_comes_back() {
    let tensors = twice();
    let room = room(&tensors, TIED);
    let report = room.compress("dense", "rbe").unwrap();
    let names = stored(&room, "rbe");
    assert!(
        names.contains(&format!("{TABLE}.rbe")) && !names.iter().any(|name| name.contains(HEAD)),
        "{names:?}"
    );
    let line = report.tensors.iter().find(|line| line.name == HEAD).unwrap();
    assert_eq!((line.bytes_before, line.bytes_after), (2 * 160 * 64, 0));
    assert_eq!(line.summary, "the same as model.embed_tokens.weight");
    let one = room_of_one().compress("dense", "rbe").unwrap();
    assert_eq!((report.bytes_after, report.bits_per_weight), (one.bytes_after, one.bits_per_weight));
    assert_eq!(report.compressed_tensors, one.compressed_tensors);
    assert_eq!(report.bytes_before, one.bytes_before + line.bytes_before);

    let archive = Archive::open(room.path("rbe")).unwrap();
    let (table, head) = (archive.entry(TABLE).unwrap(), archive.entry(HEAD).unwrap());
    assert_eq!((head.tied_to.as_deref(), head.own_bytes()), (Some(TABLE), 0));
    assert_eq!((head.stored_name(), &head.shape), (table.stored_name(), &table.shape));
    assert_eq!(archive.bytes(table), archive.bytes(head));
    assert!(archive.metadata().keys().all(|key| !key.starts_with("rbe.")));
    assert_eq!(archive::verify(room.path("rbe"), room.path("dense")).unwrap().problems, 0);
    let vb = archive::open(room.path("rbe"), DType::F32, &Device::Cpu).unwrap();
    let payload = |name: &str| vb.get_unchecked_dtype(&format!("{name}.rbe"), DType::U8).unwrap();
    let bytes = |name: &str| payload(name).to_vec1::<u8>().unwrap();
    assert!(bytes(TABLE) == archive.bytes(table) && bytes(HEAD) == archive.bytes(table));
    let handle = |name: &str| vb.get_unchecked_dtype(&format!("{name}.rbe.handle"), DType::U8).unwrap().id();
    assert_eq!(handle(TABLE), handle(HEAD), "one tensor, by which layers know to read it once");
    for name in [TABLE, HEAD] {
        assert!(vb.contains_tensor(name) && vb.contains_tensor(&format!("{name}.rbe")));
    }
    assert_eq!(relative_error(&vb.get((160, 64), TABLE).unwrap(), &vb.get((160, 64), HEAD).unwrap()), 0.0);

    // A reader of the decoded file finds what was in the original.
    archive::decode(room.path("rbe"), room.path("out"), &DecodeOptions::default(), &mut |_| go()).unwrap();
    let bytes = std::fs::read(room.path("out")).unwrap();
    let decoded = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(decoded.len(), tensors.len());
    assert_eq!(decoded.tensor(TABLE).unwrap(), decoded.tensor(HEAD).unwrap());
}

/// The same model without the head.
fn room_of_one() -> Room {
    let tensors = twice().into_iter().filter(|(name, _)| name != HEAD).collect();
    room(&tensors, TIED)
}

#[test]
fn a_head_that_may_differ_is_stored() {
    let stores_both = |tensors: &Tensors, config: &str, options: &CompressOptions| {
        let room = room(tensors, config);
        archive::compress(room.path("dense"), room.path("rbe"), &encoder(), options, &mut |_| go()).unwrap();
        let both = Archive::open(room.path("rbe")).unwrap();
        assert_eq!(both.entries().len(), tensors.len());
        both.entries().all(|entry| entry.tied_to.is_none())
    };
    let all = CompressOptions::default();
    assert!(stores_both(&twice(), r#"{"model_type": "llama", "tie_word_embeddings": false}"#, &all));
    assert!(stores_both(&twice(), r#"{"model_type": "llama"}"#, &all), "LLaMA's default");
    assert!(!stores_both(&twice(), r#"{"model_type": "gpt2"}"#, &all), "GPT-2's default");
    let mut other = twice();
    other.last_mut().unwrap().1 = matrix(64, 160, DType::F16).reshape((160, 64)).unwrap();
    assert!(stores_both(&other, TIED, &all), "another head");
    // Who treats them differently wants both.
    let selection = Selection::new(None, Some("lm_head")).unwrap();
    assert!(stores_both(&twice(), TIED, &CompressOptions { selection, ..CompressOptions::default() }));
    // Both dense.
    let selection = Selection::new(None, Some("lm_head|embed_tokens")).unwrap();
    assert!(!stores_both(&twice(), TIED, &CompressOptions { selection, ..CompressOptions::default() }));
}

#[test]
fn pruning_keeps_a_head_tied() {
    let room = room(&twice(), TIED);
    let sparse = candle_rbe::EncoderConfig {
        term: candle_rbe::TermChoice::Sparse,
        ..candle_rbe::Rate::BitsPerWeight(4.5).into()
    };
    let encoder = candle_rbe::Encoder::new(sparse).unwrap();
    let options = CompressOptions::default();
    archive::compress(room.path("dense"), room.path("rbe"), &encoder, &options, &mut |_| go()).unwrap();
    archive::prune(room.path("rbe"), room.path("pruned"), 1e-3, None, false, &mut |_| go()).unwrap();
    assert_eq!(stored(&room, "pruned"), stored(&room, "rbe"));
    let archive = Archive::open(room.path("pruned")).unwrap();
    assert_eq!(archive.entry(HEAD).unwrap().tied_to.as_deref(), Some(TABLE));
}

#[test]
fn what_is_tied_to_nothing_is_refused() {
    let room = room(&twice(), TIED);
    room.compress("dense", "rbe").unwrap();
    let bytes = std::fs::read(room.path("rbe/model.safetensors")).unwrap();
    let refusal = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        let mut changed = bytes.clone();
        changed[at..at + to.len()].copy_from_slice(to.as_bytes());
        std::fs::write(room.path("changed"), changed).unwrap();
        Archive::open(room.path("changed")).unwrap_err().to_string()
    };
    let text = refusal(r#":\"model.embed_tokens.weight\"}"#, r#":\"model.embed_tokens.height\"}"#);
    assert!(text.contains("\"lm_head.weight\", and is not there"), "{text}");
    let text = refusal(r#"{\"lm_head.weight\":"#, r#"{\"types.weight\":  "#);
    assert!(text.contains("\"types.weight\", which is there itself"), "{text}");
    let text = refusal(r#"{\"lm_head.weight\":"#, r#"[\"lm_head.weight\":"#);
    assert!(text.contains("rbe.tied is not valid"), "{text}");
}
