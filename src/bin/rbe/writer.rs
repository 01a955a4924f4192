//! Writing text: tokens of a model into whole characters, up to a stop string.

use crate::reader::TextReader;
use crate::sampling::Chooser;
use anyhow::{Context, anyhow, bail, ensure};
use candle_rbe::models::{CausalLm, generate};
use std::time::{Duration, Instant};

/// What a text begins with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Prompt<'p> {
    /// A text to continue, which the answer begins with.
    Text(&'p str),
    /// A conversation as a chat template writes it, with all special tokens in it; the answer alone is written.
    Chat(&'p str),
}

/// A text to be written.
pub(crate) struct Writer<'w> {
    pub(crate) tokenizer: &'w TextReader,
    pub(crate) prompt: Prompt<'w>,
    /// At most so many tokens.
    pub(crate) count: usize,
    pub(crate) chooser: Chooser,
    /// The text ends before the first of these.
    pub(crate) stops: &'w [String],
}

/// How much was read and written, and how fast.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Speed {
    /// Tokens of the prompt.
    pub(crate) read: usize,
    /// Tokens of the prompt for each second until the first token was there.
    pub(crate) read_rate: f64,
    /// Tokens written.
    pub(crate) written: usize,
    /// Tokens for each second after the first.
    pub(crate) written_rate: f64,
}

impl Writer<'_> {
    /// Hands over the text, piece by piece as soon as it is whole.
    pub(crate) fn write(
        &self,
        model: &dyn CausalLm,
        mut piece: impl FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<Speed> {
        let ids = self.ids(model)?;
        if let Prompt::Text(prompt) = self.prompt {
            piece(prompt)?;
        }
        let mut stream = self.tokenizer.tokenizer().decode_stream(true);
        // The stream is told the prompt too, so that the spaces between words come out right.
        for &id in &ids {
            stream.step(id).map_err(|e| anyhow!("cannot decode token {id}: {e}"))?;
        }
        let mut watch = StopWatch::new(self.stops);
        let (mut written, start, mut first) = (0, Instant::now(), None);
        for id in generate(model, &ids, self.count, self.chooser.sampler()) {
            let id = id.context("cannot continue the text")?;
            first.get_or_insert_with(Instant::now);
            written += 1;
            // Nothing comes back before a character is whole.
            let Some(text) = stream.step(id).map_err(|e| anyhow!("cannot decode token {id}: {e}"))? else {
                continue;
            };
            let text = watch.pass(&text);
            if !text.is_empty() {
                piece(&text)?;
            }
            if watch.stopped {
                break;
            }
        }
        if !watch.stopped && !watch.held.is_empty() {
            piece(&watch.held)?;
        }
        let rate =
            |count: usize, time: Duration| if count > 0 { count as f64 / time.as_secs_f64() } else { 0.0 };
        let end = Instant::now();
        let first = first.unwrap_or(end);
        Ok(Speed {
            read: ids.len(),
            read_rate: rate(ids.len(), first - start),
            written,
            written_rate: rate(written.saturating_sub(1), end - first),
        })
    }

    /// The prompt's tokens, of which there is one.
    fn ids(&self, model: &dyn CausalLm) -> anyhow::Result<Vec<u32>> {
        let mut ids = match self.prompt {
            Prompt::Text(text) => self.tokenizer.whole(text)?,
            Prompt::Chat(text) => self.tokenizer.tokens(text)?,
        };
        if ids.is_empty() {
            // A model continues something: with no prompt, the token that stands between texts.
            let start = model.eos_token_ids().first();
            ids.push(
                *start
                    .context("the prompt is empty and the model names no end-of-text token; give a prompt")?,
            );
        }
        let (length, context, vocabulary) = (ids.len(), model.context_length(), model.vocab_size());
        ensure!(
            length <= context,
            "the prompt has {length} tokens and the model's context {context} positions"
        );
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
            bail!(
                "token {id} of the prompt is not in the vocabulary of {vocabulary}; the tokenizer is not this model's"
            );
        }
        Ok(ids)
    }
}

/// Lets text pass up to the first of some strings, and holds back what may be the beginning of one.
struct StopWatch<'s> {
    stops: &'s [String],
    held: String,
    stopped: bool,
}

impl<'s> StopWatch<'s> {
    fn new(stops: &'s [String]) -> Self {
        Self { stops, held: String::new(), stopped: false }
    }

    fn pass(&mut self, text: &str) -> String {
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let begins_a_stop = |&at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[at..]));
        let from = self.held.char_indices().map(|(at, _)| at).find(begins_a_stop);
        let kept = self.held.split_off(from.unwrap_or(self.held.len()));
        std::mem::replace(&mut self.held, kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};
    use candle_rbe::models::KvCache;
    use std::cell::Cell;
    use std::path::Path;

    fn passed(stops: &[&str], pieces: &[&str]) -> (Vec<String>, String, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut watch = StopWatch::new(&stops);
        let mut out = vec![];
        for piece in pieces {
            out.push(watch.pass(piece));
            if watch.stopped {
                break;
            }
        }
        (out, watch.held.clone(), watch.stopped)
    }

    #[test]
    fn text_ends_before_the_first_stop_wherever_the_pieces_part_it() {
        let (out, held, stopped) = passed(&[], &["a", "b"]);
        assert_eq!((out.concat().as_str(), held.as_str(), stopped), ("ab", "", false));
        let (out, _, stopped) = passed(&["\n\n", "END"], &["one\n", "\ntwo"]);
        assert_eq!((out, stopped), (vec!["one".to_owned(), String::new()], true));
        let (out, held, stopped) = passed(&["END"], &["E", "N", "E", "N", "x"]);
        assert_eq!((out.concat().as_str(), held.as_str(), stopped), ("ENENx", "", false));
        assert_eq!(out, ["", "", "EN", "", "ENx"]);
        let (out, held, stopped) = passed(&["END"], &["an E", "ND and more", "unseen"]);
        assert_eq!((out.concat().as_str(), held.as_str(), stopped), ("an ", "", true));
        // Held back at the end of the text, and part of it.
        let (out, held, stopped) = passed(&["END"], &["the EN"]);
        assert_eq!((out.concat().as_str(), held.as_str(), stopped), ("the ", "EN", false));
        let (out, _, stopped) = passed(&["ö!", "é"], &["aö", "b", "né"]);
        assert_eq!((out.concat().as_str(), stopped), ("aöbn", true));
        // The earliest counts, not the first in the list.
        assert_eq!(passed(&["later", "soon"], &["x soon later"]).0, ["x "]);
    }

    /// Says these tokens, whatever it is asked.
    struct Script {
        tokens: Vec<u32>,
        said: Cell<usize>,
    }

    impl CausalLm for Script {
        fn hidden_states(&self, _: &Tensor, _: Option<&mut KvCache>) -> candle_core::Result<Tensor> {
            unreachable!("forward_last is this model's own")
        }

        fn head(&self, _: &Tensor) -> candle_core::Result<Tensor> {
            unreachable!("forward_last is this model's own")
        }

        fn forward_last(&self, _: &Tensor, _: Option<&mut KvCache>) -> candle_core::Result<Tensor> {
            let token = self.tokens[self.said.replace(self.said.get() + 1)];
            let logits = (0..self.vocab_size() as u32).map(|id| if id == token { 1f32 } else { 0.0 });
            Tensor::from_iter(logits, &Device::Cpu)?.unsqueeze(0)
        }

        fn new_cache(&self) -> KvCache {
            KvCache::new(1, self.context_length())
        }

        fn vocab_size(&self) -> usize {
            4096
        }

        fn context_length(&self) -> usize {
            256
        }

        fn eos_token_ids(&self) -> &[u32] {
            &[]
        }

        fn device(&self) -> &Device {
            &Device::Cpu
        }
    }

    #[test]
    fn characters_of_several_tokens_come_whole() -> anyhow::Result<()> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/llama-books");
        let tokenizer = TextReader::open(&directory)?;
        let text = " a 語 and 🦀, é";
        let tokens = tokenizer.tokens(text)?;
        assert!(tokens.len() > text.chars().count(), "characters of several tokens");
        let stops = ["🦀".to_owned()];
        for (stops, expected) in [(&[][..], text), (&stops, " a 語 and ")] {
            let script = Script { tokens: tokens.clone(), said: Cell::new(0) };
            let (count, chooser) = (tokens.len(), Chooser::Greedy);
            let writer = Writer { tokenizer: &tokenizer, prompt: Prompt::Text("It"), count, chooser, stops };
            let mut pieces = vec![];
            let speed = writer.write(&script, |piece| {
                pieces.push(piece.to_owned());
                Ok(())
            })?;
            assert_eq!(pieces.concat(), format!("It{expected}"));
            assert!(pieces.len() > 5 && pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
            assert_eq!(speed.written == tokens.len(), stops.is_empty());
            assert!(speed.read == 1 && speed.read_rate > 0.0 && speed.written_rate > 0.0, "{speed:?}");
        }
        Ok(())
    }
}
