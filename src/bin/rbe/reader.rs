//! A tokenizer, and what its model expects before every text.

use anyhow::{Context, anyhow, ensure};
use serde_json::Value;
use std::path::Path;
use tokenizers::{Encoding, Token, Tokenizer};

/// Makes tokens of texts.
pub(crate) struct TextReader {
    tokenizer: Tokenizer,
    start: Vec<u32>,
}

impl TextReader {
    /// Reads `tokenizer.json` in a model's directory, and from the files beside it whether a BOS token starts every text.
    pub(crate) fn open(directory: &Path) -> anyhow::Result<Self> {
        let file = directory.join("tokenizer.json");
        // Asked for first, since a FIFO would be waited for.
        ensure!(file.is_file(), "there is no file {}{}", file.display(), gguf_instead(directory));
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        ensure!(
            !text.starts_with("version https://git-lfs"),
            "{} is a git-LFS pointer, which stands for the file; run `git lfs pull` where it was cloned",
            file.display()
        );
        let tokenizer: Tokenizer =
            text.parse().map_err(|e| anyhow!("cannot read {}: {e}", file.display()))?;
        let start = start(directory, &tokenizer)?;
        Ok(Self { tokenizer, start })
    }

    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// What the model expects before every text: often a BOS token, or nothing.
    pub(crate) fn start(&self) -> &[u32] {
        &self.start
    }

    /// The tokens of a text that may stand anywhere, such as in the middle of another.
    pub(crate) fn tokens(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false);
        Ok(encoding.map_err(|e| anyhow!("cannot tokenize the text: {e}"))?.get_ids().to_vec())
    }

    /// The tokens of a text that the model is to read from its beginning on. What a tokenizer puts after a text is left off,
    /// since the text goes on.
    pub(crate) fn whole(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        Ok([self.start.clone(), self.tokens(text)?].concat())
    }
}

/// A GGUF file that is there in the place of a model, as the rest of a sentence.
fn gguf_instead(directory: &Path) -> String {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "gguf"));
    files.next().map_or_else(String::new, |file| format!("; name the GGUF file itself: {}", file.display()))
}

/// What the tokenizer's template puts before a text, with a BOS token where `add_bos_token` in `tokenizer_config.json` asks
/// for one that the template lacks, or without it where that says false: so Hugging Face's tokenizers take both files.
fn start(directory: &Path, tokenizer: &Tokenizer) -> anyhow::Result<Vec<u32>> {
    let mut start = before_a_text(tokenizer)?;
    let Some(config) = json(&directory.join("tokenizer_config.json"))? else { return Ok(start) };
    let Some(wanted) = config.get("add_bos_token").and_then(Value::as_bool) else { return Ok(start) };
    let bos = config.get("bos_token").map(|token| token.get("content").unwrap_or(token));
    let bos = match bos.and_then(Value::as_str).and_then(|token| tokenizer.token_to_id(token)) {
        Some(id) => Some(id),
        None => json(&directory.join("config.json"))?
            .and_then(|config| config.get("bos_token_id")?.as_u64())
            .and_then(|id| u32::try_from(id).ok()),
    };
    match (wanted, bos) {
        (true, None) if start.is_empty() => Err(anyhow!(
            "{} has add_bos_token, and neither it nor config.json names a BOS token",
            directory.join("tokenizer_config.json").display()
        )),
        (true, Some(bos)) if start.first() != Some(&bos) => {
            start.insert(0, bos);
            Ok(start)
        }
        (false, Some(bos)) if start.first() == Some(&bos) => {
            start.remove(0);
            Ok(start)
        }
        _ => Ok(start),
    }
}

/// The special tokens that the tokenizer puts before a text, found by letting it put them around a token of our own.
fn before_a_text(tokenizer: &Tokenizer) -> anyhow::Result<Vec<u32>> {
    const TEXT: u32 = u32::MAX;
    let text = Encoding::from_tokens(vec![Token::new(TEXT, "text".into(), (0, 4))], 0);
    let whole = tokenizer.post_process(text, None, true);
    let whole = whole.map_err(|e| anyhow!("cannot tell what starts a text: {e}"))?;
    Ok(whole.get_ids().iter().copied().take_while(|id| *id != TEXT).collect())
}

/// A file's JSON; `None` where there is no such file.
fn json(path: &Path) -> anyhow::Result<Option<Value>> {
    if !path.is_file() {
        return Ok(None);
    }
    let cannot = || format!("cannot read {}", path.display());
    let text = std::fs::read_to_string(path).with_context(cannot)?;
    serde_json::from_str(&text).map(Some).with_context(cannot)
}
