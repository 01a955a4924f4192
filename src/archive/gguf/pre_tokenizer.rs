//! The pre-tokenizers of byte-level BPE that GGUF files name in `tokenizer.ggml.pre`: how a text is cut before its pieces become
//! tokens, as the models' own `tokenizer.json` has it.

use super::metadata::Metadata;
use crate::Result;
use serde_json::{Value, json};

/// A way to cut.
pub(super) struct PreTokenizer {
    names: &'static [&'static str],
    cut: Cut,
    /// Whether a piece that is a token is that token, whatever the merges would make of it.
    pub(super) ignore_merges: bool,
    /// Whether a text begins with a BOS token where the file does not say.
    pub(super) begins_with_bos: bool,
    /// Whether Unicode is composed before.
    composed: bool,
}

enum Cut {
    /// As GPT-2 does.
    Gpt2,
    /// The same, and every digit by itself.
    Digits,
    /// By this regular expression.
    By(&'static str),
}

/// What most expressions begin and end with.
macro_rules! cut {
    ($numbers:literal) => {
        concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
            $numbers,
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
}

const THREE_DIGITS: &str = cut!(r"\p{N}{1,3}");
const ONE_DIGIT: &str = cut!(r"\p{N}");
/// Upper case begins a piece.
const CASED: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// The same with what English contracts.
const CASED_AND_CONTRACTED: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const PLAIN: PreTokenizer = PreTokenizer {
    names: &[],
    cut: Cut::Gpt2,
    ignore_merges: false,
    begins_with_bos: false,
    composed: false,
};

static ALL: [PreTokenizer; 7] = [
    PreTokenizer { names: &["gpt-2", "olmo", "exaone4"], ..PLAIN },
    PreTokenizer { names: &["smollm", "starcoder", "refact", "codeshell"], cut: Cut::Digits, ..PLAIN },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
        cut: Cut::By(THREE_DIGITS),
        ignore_merges: true,
        begins_with_bos: true,
        ..PLAIN
    },
    PreTokenizer { names: &["dbrx", "smaug-bpe"], cut: Cut::By(THREE_DIGITS), ..PLAIN },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen", "megrez"],
        cut: Cut::By(ONE_DIGIT),
        composed: true,
        ..PLAIN
    },
    PreTokenizer {
        names: &["tekken"],
        cut: Cut::By(CASED),
        ignore_merges: true,
        begins_with_bos: true,
        ..PLAIN
    },
    PreTokenizer { names: &["gpt-4o"], cut: Cut::By(CASED_AND_CONTRACTED), ..PLAIN },
];

impl PreTokenizer {
    /// That of a file; of files from before there were names, that of the architecture.
    pub(super) fn of(metadata: &Metadata) -> Result<&'static Self> {
        const KEY: &str = "tokenizer.ggml.pre";
        let name = match (metadata.text(KEY)?, metadata.architecture()) {
            (Some(name), _) => name,
            (None, "gpt2") => "gpt-2",
            (None, "qwen2") => "qwen2",
            (None, _) => metadata.need(None, KEY)?,
        };
        ALL.iter().find(|known| known.names.contains(&name)).ok_or_else(|| {
            let names: Vec<_> = ALL.iter().flat_map(|known| known.names).copied().collect();
            let reason = format!("is {name:?}; those known are {}", names.join(", "));
            metadata.error(KEY, format!("{reason}: take tokenizer.json from the original model"))
        })
    }

    /// `normalizer` of `tokenizer.json`.
    pub(super) fn normalizer(&self) -> Value {
        if self.composed { json!({"type": "NFC"}) } else { Value::Null }
    }

    /// `pre_tokenizer` of `tokenizer.json`.
    pub(super) fn json(&self) -> Value {
        let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        let both = |first: Value, then: Value| json!({"type": "Sequence", "pretokenizers": [first, then]});
        match self.cut {
            Cut::Gpt2 => bytes(true),
            Cut::Digits => both(json!({"type": "Digits", "individual_digits": true}), bytes(true)),
            Cut::By(regex) => {
                let split = json!({
                    "type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false,
                });
                both(split, bytes(false))
            }
        }
    }
}
