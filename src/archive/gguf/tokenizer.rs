//! `tokenizer.json`, `tokenizer_config.json` and `generation_config.json`, from a GGUF file's metadata.

use super::metadata::Metadata;
use super::pre_tokenizer::PreTokenizer;
use crate::Result;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// SentencePiece's mark of a space.
const SPACE: &str = "\u{2581}";

/// What a token is, by GGUF's numbers.
mod kind {
    pub(super) const NORMAL: usize = 1;
    pub(super) const UNKNOWN: usize = 2;
    pub(super) const CONTROL: usize = 3;
    pub(super) const USER_DEFINED: usize = 4;
}

const TOKENS: &str = "tokenizer.ggml.tokens";
const KINDS: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";

/// The files with their names; none where the file has no tokenizer.
pub(super) fn files(metadata: &Metadata) -> Result<Vec<(&'static str, Value)>> {
    const KEY: &str = "tokenizer.ggml.model";
    let (tokenizer, begins) = match metadata.text(KEY)? {
        None | Some("none" | "no_vocab") => return Ok(vec![]),
        Some("gpt2") => {
            let pre_tokenizer = PreTokenizer::of(metadata)?;
            let vocabulary = Vocabulary::read(metadata)?;
            (vocabulary.of_bytes(pre_tokenizer)?, pre_tokenizer.begins_with_bos)
        }
        Some("llama") => (Vocabulary::read(metadata)?.of_sentence_pieces()?, true),
        Some(other) => {
            let reason = format!(
                "is {other:?}; those read are gpt2 and llama: take tokenizer.json from the original model"
            );
            return Err(metadata.error(KEY, reason));
        }
    };
    let ends = Ends::read(metadata, begins)?;
    let mut tokenizer = tokenizer;
    tokenizer["post_processor"] = ends.template();
    let mut files =
        vec![("tokenizer.json", tokenizer), ("tokenizer_config.json", tokenizer_config(metadata, &ends)?)];
    let stops: Vec<u32> = ends_of_text(metadata)?;
    if !stops.is_empty() {
        files.push(("generation_config.json", json!({"eos_token_id": stops})));
    }
    Ok(files)
}

/// The tokens that end what a model says.
fn ends_of_text(metadata: &Metadata) -> Result<Vec<u32>> {
    let mut ends = Vec::new();
    for key in ["eos", "eot", "eom"] {
        if let Some(id) =
            metadata.token(&format!("tokenizer.ggml.{key}_token_id"))?.filter(|id| !ends.contains(id))
        {
            ends.push(id);
        }
    }
    Ok(ends)
}

/// The tokens, with what is known of each.
struct Vocabulary<'m> {
    metadata: &'m Metadata,
    tokens: Vec<&'m str>,
    kinds: Vec<usize>,
}

impl<'m> Vocabulary<'m> {
    fn read(metadata: &'m Metadata) -> Result<Self> {
        let tokens = metadata.need(metadata.texts(TOKENS)?, TOKENS)?;
        let kinds = metadata.sizes(KINDS)?.unwrap_or_else(|| vec![kind::NORMAL; tokens.len()]);
        if kinds.len() != tokens.len() {
            let reason = format!("has {} entries for {} tokens", kinds.len(), tokens.len());
            return Err(metadata.error(KINDS, reason));
        }
        Ok(Self { metadata, tokens, kinds })
    }

    fn is(&self, id: usize, kinds: &[usize]) -> bool {
        kinds.contains(&self.kinds[id])
    }

    /// BPE of bytes, as GPT-2's.
    fn of_bytes(&self, pre_tokenizer: &PreTokenizer) -> Result<Value> {
        let metadata = self.metadata;
        let merges = metadata.need(metadata.texts(MERGES)?, MERGES)?;
        let merges: Vec<_> = merges.iter().filter_map(|merge| merge.split_once(' ')).collect();
        let model = json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre_tokenizer.ignore_merges, "vocab": self.ids(str::to_owned)?, "merges": merges,
        });
        let decoder = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
        });
        let mut tokenizer = whole(model, decoder);
        tokenizer["added_tokens"] = self.added(false).into();
        tokenizer["normalizer"] = pre_tokenizer.normalizer();
        tokenizer["pre_tokenizer"] = pre_tokenizer.json();
        Ok(tokenizer)
    }

    /// SentencePiece's BPE, with bytes where no piece fits.
    fn of_sentence_pieces(&self) -> Result<Value> {
        let metadata = self.metadata;
        let prefixed = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        let unknown = metadata.token("tokenizer.ggml.unknown_token_id")?.unwrap_or(0);
        let unknown = self.tokens.get(unknown as usize).filter(|_| self.kinds.contains(&kind::UNKNOWN));
        // Where no space is put first, pieces that the makers defined are found in the text as it is then, marks in it.
        let marked = |token: &str| if prefixed { token.to_owned() } else { token.replace(' ', SPACE) };
        let model = json!({
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": self.ids(marked)?, "merges": self.merges()?,
        });
        let replace =
            |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        let mut decoders =
            vec![replace(SPACE, " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
        let mut normalizers = vec![replace(" ", SPACE)];
        if prefixed {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let mut tokenizer = whole(model, json!({"type": "Sequence", "decoders": decoders}));
        tokenizer["added_tokens"] = self.added(!prefixed).into();
        tokenizer["normalizer"] = json!({"type": "Sequence", "normalizers": normalizers});
        Ok(tokenizer)
    }

    /// What the file has, or, where it has scores alone, what they mean: of two neighbours those are joined first that make the
    /// piece of the highest score.
    fn merges(&self) -> Result<Vec<(String, String)>> {
        let metadata = self.metadata;
        if let Some(merges) = metadata.texts(MERGES)? {
            let pairs = merges.iter().filter_map(|merge| merge.split_once(' '));
            return Ok(pairs.map(|(left, right)| (left.to_owned(), right.to_owned())).collect());
        }
        let scores = metadata.need(metadata.floats(SCORES)?, SCORES)?;
        if scores.len() != self.tokens.len() {
            let reason = format!("has {} entries for {} tokens", scores.len(), self.tokens.len());
            return Err(metadata.error(SCORES, reason));
        }
        let joined = |id: &usize| self.is(*id, &[kind::NORMAL, kind::USER_DEFINED]);
        let marked = |id: usize| self.tokens[id].replace(' ', SPACE);
        let pieces: HashMap<String, usize> =
            (0..self.tokens.len()).filter(joined).map(|id| (marked(id), id)).collect();
        let mut merges = Vec::new();
        for (whole, &id) in &pieces {
            for (at, _) in whole.char_indices().skip(1) {
                let (left, right) = whole.split_at(at);
                if let (Some(&first), Some(&second)) = (pieces.get(left), pieces.get(right)) {
                    merges.push((scores[id], id, [scores[first], scores[second]], (left, right)));
                }
            }
        }
        merges.sort_by(|a, b| {
            let parts = b.2[0].total_cmp(&a.2[0]).then(b.2[1].total_cmp(&a.2[1]));
            b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(parts).then(a.3.cmp(&b.3))
        });
        Ok(merges.into_iter().map(|(.., (left, right))| (left.to_owned(), right.to_owned())).collect())
    }

    /// The number of each token.
    fn ids(&self, written: impl Fn(&str) -> String) -> Result<Map<String, Value>> {
        let mut ids = Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            if let Some(first) = ids.insert(written(token), id.into()) {
                let reason =
                    format!("has {token:?} twice, as {first} and {id}; a tokenizer.json has each once");
                return Err(self.metadata.error(TOKENS, reason));
            }
        }
        Ok(ids)
    }

    /// The tokens that are found in a text before anything else.
    fn added(&self, marked: bool) -> Vec<Value> {
        let found = |id: &usize| self.is(*id, &[kind::CONTROL, kind::UNKNOWN, kind::USER_DEFINED]);
        (0..self.tokens.len())
            .filter(found)
            .map(|id| {
                let special = !self.is(id, &[kind::USER_DEFINED]);
                let token = self.tokens[id];
                let content = if marked && !special { token.replace(' ', SPACE) } else { token.to_owned() };
                json!({
                    "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": marked && !special, "special": special,
                })
            })
            .collect()
    }
}

/// A tokenizer of this model and decoder.
fn whole(model: Value, decoder: Value) -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": decoder, "model": model,
    })
}

/// What is put before and after a text.
struct Ends<'m> {
    bos: Option<(&'m str, u32)>,
    eos: Option<(&'m str, u32)>,
    add_bos: bool,
    add_eos: bool,
}

impl<'m> Ends<'m> {
    fn read(metadata: &'m Metadata, begins_with_bos: bool) -> Result<Self> {
        let [bos, eos] = ["bos", "eos"].map(|which| format!("tokenizer.ggml.{which}_token_id"));
        let (bos, eos) = (token(metadata, &bos)?, token(metadata, &eos)?);
        let add_bos = metadata.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(begins_with_bos);
        let add_eos = metadata.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
        Ok(Self { bos, eos, add_bos: add_bos && bos.is_some(), add_eos: add_eos && eos.is_some() })
    }

    /// `post_processor` of `tokenizer.json`.
    fn template(&self) -> Value {
        let (bos, eos) = (self.bos.filter(|_| self.add_bos), self.eos.filter(|_| self.add_eos));
        if bos.is_none() && eos.is_none() {
            return Value::Null;
        }
        let text = |which: &str, part: u32| -> Vec<Value> {
            let special = |(token, _): (&str, u32)| json!({"SpecialToken": {"id": token, "type_id": part}});
            let sequence = json!({"Sequence": {"id": which, "type_id": part}});
            bos.map(special).into_iter().chain([sequence]).chain(eos.map(special)).collect()
        };
        let tokens: Map<String, Value> = [bos, eos]
            .into_iter()
            .flatten()
            .map(|(token, id)| (token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]})))
            .collect();
        let pair = [text("A", 0), text("B", 1)].concat();
        json!({
            "type": "TemplateProcessing", "single": text("A", 0), "pair": pair,
            "special_tokens": tokens,
        })
    }
}

/// A token that a field names.
fn token<'m>(metadata: &'m Metadata, key: &str) -> Result<Option<(&'m str, u32)>> {
    let Some(id) = metadata.token(key)? else { return Ok(None) };
    let tokens = metadata.texts(TOKENS)?.unwrap_or_default();
    match tokens.get(id as usize) {
        Some(token) => Ok(Some((token, id))),
        None => Err(metadata.error(key, format!("is {id}, and there are {} tokens", tokens.len()))),
    }
}

fn tokenizer_config(metadata: &Metadata, ends: &Ends) -> Result<Value> {
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": ends.add_bos,
        "add_eos_token": ends.add_eos,
        "clean_up_tokenization_spaces": false,
        "model_max_length": metadata.size(".context_length")?,
    });
    for (name, key) in [
        ("bos_token", "tokenizer.ggml.bos_token_id"),
        ("eos_token", "tokenizer.ggml.eos_token_id"),
        ("unk_token", "tokenizer.ggml.unknown_token_id"),
        ("pad_token", "tokenizer.ggml.padding_token_id"),
    ] {
        if let Some((token, _)) = token(metadata, key)? {
            config[name] = token.into();
        }
    }
    if let Some(template) = metadata.text("tokenizer.chat_template")? {
        config["chat_template"] = template.into();
    }
    Ok(config)
}
