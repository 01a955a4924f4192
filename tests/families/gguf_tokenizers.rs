//! Tokenizers of GGUF files: each cuts texts as what its file was written from does.

use super::gguf::{Gguf, decode};
use super::*;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value as Field;
use std::path::{Path, PathBuf};

/// A file of a model and of what makes tokens.
fn with_tokenizer(path: &Path, more: Vec<(&str, Field)>) -> Result<()> {
    let config = config("llama", json!({}));
    let mut gguf = Gguf::of("llama", &config, &model(&config)?.1)?;
    for (key, field) in more {
        gguf.set(&format!("tokenizer.{key}"), field);
    }
    gguf.write(path, |_, _| GgmlDType::F32)
}

fn json_file(path: PathBuf) -> Result<Value> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

fn tokenizer(directory: &Path) -> Result<tokenizers::Tokenizer> {
    tokenizers::Tokenizer::from_file(directory.join("tokenizer.json")).map_err(|e| anyhow::anyhow!("{e}"))
}

fn encode(tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>> {
    Ok(tokenizer.encode(text, true).map_err(|e| anyhow::anyhow!("{e}"))?.get_ids().to_vec())
}

#[test]
fn a_tokenizer_of_bytes_makes_the_tokens_of_the_one_it_was_written_from() -> Result<()> {
    let room = tempfile::tempdir()?;
    let books = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/llama-books");
    let theirs = json_file(books.join("tokenizer.json"))?;
    let vocabulary: HashMap<String, usize> = serde_json::from_value(theirs["model"]["vocab"].clone())?;
    let mut tokens = vec![String::new(); vocabulary.len()];
    vocabulary.into_iter().for_each(|(token, id)| tokens[id] = token);
    let merges: Vec<(String, String)> = serde_json::from_value(theirs["model"]["merges"].clone())?;
    let texts = |texts: Vec<String>| Field::Array(texts.into_iter().map(Field::String).collect());
    let kinds = (0..tokens.len()).map(|id| Field::I32(if id == 0 { 3 } else { 1 })).collect();
    let file = room.path().join("bytes.gguf");
    let fields = |pre: &str| {
        vec![
            ("ggml.model", Field::String("gpt2".into())),
            ("ggml.pre", Field::String(pre.into())),
            ("ggml.tokens", texts(tokens.clone())),
            ("ggml.token_type", Field::Array(Clone::clone(&kinds))),
            ("ggml.merges", texts(merges.iter().map(|(a, b)| format!("{a} {b}")).collect())),
            ("ggml.bos_token_id", Field::U32(0)),
            ("ggml.eos_token_id", Field::U32(0)),
            ("ggml.eot_token_id", Field::U32(5)),
            ("chat_template", Field::String("{{ messages }}".into())),
        ]
    };
    with_tokenizer(&file, fields("gpt-2"))?;
    let directory = decode(&file, &room.path().join("bytes"), None)?;
    let (ours, original) = (tokenizer(&directory)?, tokenizer(&books)?);
    let text = "It's 1234 o'clock,  and\n\tthe “end”<|endoftext|> of é 語 🦀.";
    assert_eq!(encode(&ours, text)?, encode(&original, text)?);
    let decoded = ours.decode(&encode(&ours, text)?, false).map_err(|e| anyhow::anyhow!("{e}"))?;
    assert_eq!(decoded, text);
    let said = json_file(directory.join("tokenizer_config.json"))?;
    assert_eq!(said["chat_template"], "{{ messages }}");
    assert_eq!((&said["bos_token"], &said["add_bos_token"]), (&json!("<|endoftext|>"), &json!(false)));
    assert_eq!(json_file(directory.join("generation_config.json"))?["eos_token_id"], json!([0, 5]));
    assert_eq!(Config::read(&directory)?.eos_token_ids, [0, 5]);
    // Digits by themselves, by threes, a BOS token first: as the others cut.
    let begin = "<|endoftext|>";
    let ways: [(&str, &[&str]); 5] = [
        ("smollm", &["1", "2", "3", "4"]),
        ("llama-bpe", &[begin, "123", "4"]),
        ("qwen2", &["1", "2", "3", "4"]),
        ("tekken", &[begin, "1", "2", "3", "4"]),
        ("gpt-4o", &["123", "4"]),
    ];
    for (pre, pieces) in ways {
        with_tokenizer(&file, fields(pre))?;
        let ours = tokenizer(&decode(&file, &room.path().join(pre), None)?)?;
        let expected: Vec<_> = pieces.iter().map(|piece| encode(&original, piece)).collect::<Result<_>>()?;
        let (ids, expected) = (encode(&ours, "1234")?, expected.concat());
        assert_eq!(ids, expected, "{pre}");
    }
    Ok(())
}

#[test]
fn a_tokenizer_of_sentence_pieces_joins_by_scores_and_falls_back_to_bytes() -> Result<()> {
    let room = tempfile::tempdir()?;
    let mut tokens: Vec<(String, f32, i32)> =
        vec![("<unk>".into(), 0.0, 2), ("<s>".into(), 0.0, 3), ("</s>".into(), 0.0, 3)];
    tokens.extend((0..256).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6)));
    let first = tokens.len() as u32;
    // Of "abc" first "bc" is joined, whose score is higher than that of "ab".
    let pieces = ["▁", "a", "b", "c", "bc", "ab", "▁ab", "abc", "▁abc", "[x y]"];
    let kind = |piece: &str| if piece.starts_with('[') { 4 } else { 1 };
    tokens.extend(
        pieces.iter().enumerate().map(|(at, piece)| ((*piece).to_owned(), -(at as f32), kind(piece))),
    );
    let id = |piece: &str| first + pieces.iter().position(|known| *known == piece).expect("a piece") as u32;
    let fields = |prefixed: bool| {
        vec![
            ("ggml.model", Field::String("llama".into())),
            (
                "ggml.tokens",
                Field::Array(tokens.iter().map(|token| Field::String(token.0.clone())).collect()),
            ),
            ("ggml.scores", Field::Array(tokens.iter().map(|token| Field::F32(token.1)).collect())),
            ("ggml.token_type", Field::Array(tokens.iter().map(|token| Field::I32(token.2)).collect())),
            ("ggml.bos_token_id", Field::U32(1)),
            ("ggml.eos_token_id", Field::U32(2)),
            ("ggml.unknown_token_id", Field::U32(0)),
            ("ggml.add_space_prefix", Field::Bool(prefixed)),
        ]
    };
    let file = room.path().join("pieces.gguf");
    with_tokenizer(&file, fields(true))?;
    let ours = tokenizer(&decode(&file, &room.path().join("prefixed"), None)?)?;
    // "▁abc": "bc", then "a" and "bc", then all.
    assert_eq!(encode(&ours, "abc")?, [1, id("▁abc")]);
    assert_eq!(encode(&ours, "ab é")?, [1, id("▁ab"), id("▁"), 3 + 0xc3, 3 + 0xa9]);
    assert_eq!(encode(&ours, "</s>")?, [1, 2]);
    let decoded = ours.decode(&encode(&ours, "ab é abc")?, true).map_err(|e| anyhow::anyhow!("{e}"))?;
    assert_eq!(decoded, "ab é abc");
    with_tokenizer(&file, fields(false))?;
    let ours = tokenizer(&decode(&file, &room.path().join("plain"), None)?)?;
    assert_eq!(encode(&ours, "abc abc")?, [1, id("abc"), id("▁abc")]);
    assert_eq!(encode(&ours, "a[x y]")?, [1, id("a"), id("[x y]")]);
    Ok(())
}
