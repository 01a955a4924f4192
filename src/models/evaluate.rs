//! How far one language model is from another, on a text.
//!
//! The measure is the Kullback-Leibler divergence of the predicted distributions, in nats per token: unlike
//! perplexity it is zero only for equal predictions, and it does not depend on what the text happens to
//! say next.

use super::CausalLm;
use super::pass::not_finite;
use crate::clock::Instant;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use serde::Serialize;
use std::time::Duration;

/// Which parts of a text are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Windows {
    /// Number of windows, spread evenly over the text.
    pub count: usize,
    /// Tokens in each, with those that start every text. The models see each window alone.
    pub length: usize,
}

/// A text as a model reads it. From token ids alone (`&ids`) it is one before which the model expects nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text<'t> {
    /// What the model expects before every text, as a tokenizer adds it: often a BOS token, or nothing. Each window begins
    /// with it, since a model sees it in front of whatever it continues.
    pub start: &'t [u32],
    /// The text's own tokens.
    pub tokens: &'t [u32],
}

impl<'t, T: AsRef<[u32]> + ?Sized> From<&'t T> for Text<'t> {
    fn from(tokens: &'t T) -> Self {
        Self { start: &[], tokens: tokens.as_ref() }
    }
}

impl Default for Windows {
    /// Eight windows of 128 tokens.
    fn default() -> Self {
        Self { count: 8, length: 128 }
    }
}

impl Windows {
    /// Where the windows start in a text of `tokens` tokens: window `i` at `i * ((tokens - length - 1) / count)`,
    /// so that the last token of each still has a successor in the text.
    ///
    /// # Errors
    /// There is no window, one has no next token to predict, or the text is too short to keep them apart.
    pub fn starts(&self, tokens: usize) -> Result<Vec<usize>> {
        let Self { count, length } = *self;
        if count == 0 || length < 2 {
            let reason = format!("{count} windows of {length} tokens; at least one window of two is needed");
            return Err(Error::config(reason));
        }
        let stride = tokens.saturating_sub(length).saturating_sub(1) / count;
        if length > tokens || (count > 1 && stride < length) {
            let reason = format!(
                "a text of {tokens} tokens is too short for {count} windows of {length}; give a longer text or ask for \
                 fewer or shorter windows"
            );
            return Err(Error::config(reason));
        }
        Ok((0..count).map(|i| i * stride).collect())
    }

    /// The windows of a text: what starts every text, then as many of its tokens as there is room for.
    ///
    /// # Errors
    /// As [`starts`](Self::starts).
    pub fn cut<'t>(&self, text: impl Into<Text<'t>>) -> Result<Vec<Vec<u32>>> {
        let Text { start, tokens } = text.into();
        let room = self.length.saturating_sub(start.len());
        if room < 2 && !start.is_empty() {
            let (length, taken) = (self.length, start.len());
            let reason =
                format!("windows of {length} tokens, of which {taken} start every text; two more are needed");
            return Err(Error::config(reason));
        }
        let window = |at: usize| [start, &tokens[at..at + room]].concat();
        Ok(Self { length: room, ..*self }.starts(tokens.len())?.into_iter().map(window).collect())
    }

    /// The same, for a model that is to read them.
    ///
    /// # Errors
    /// As [`starts`](Self::starts); a window is longer than the model's context, or the text has a token outside its
    /// vocabulary.
    pub fn cut_for<'t>(&self, model: &dyn CausalLm, text: impl Into<Text<'t>>) -> Result<Vec<Vec<u32>>> {
        let text = text.into();
        let cut = self.cut(text)?;
        if self.length > model.context_length() {
            return Err(Error::Context { context: model.context_length(), past: 0, new: self.length });
        }
        check_vocabulary(model, text.start)?;
        check_vocabulary(model, text.tokens)?;
        Ok(cut)
    }

    /// The windows of a text as token ids `(1, length)`, the samples of a [`Calibration`](crate::nn::Calibration).
    ///
    /// # Errors
    /// As [`starts`](Self::starts); Candle's.
    pub fn samples<'t>(&self, text: impl Into<Text<'t>>, device: &Device) -> Result<Vec<Tensor>> {
        let sample = |window: Vec<u32>| Ok(Tensor::new(window, device)?.unsqueeze(0)?);
        self.cut(text)?.into_iter().map(sample).collect()
    }
}

/// What [`evaluate`] found. Logarithms are natural.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// The parts of the text looked at.
    pub windows: Windows,
    /// The model compared with.
    pub reference: Score,
    /// The model compared.
    pub candidate: Score,
    /// `KL(reference || candidate)`, the mean over all positions, in nats per token.
    pub kl_divergence: f64,
    /// The part of all positions, from 0 to 1, at which both models find the same token likeliest.
    pub top1_agreement: f64,
    /// The largest `|reference - candidate|` among all logits.
    pub max_logit_difference: f32,
}

/// One model alone.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Score {
    /// `exp` of the mean loss on the next token, over the `length - 1` predictions inside each window: of every token but
    /// the first.
    pub perplexity: f64,
    /// Tokens through the model's own forwards per second, whole windows at a time. The first window warms
    /// up memory and is not counted where there are others. Infinite where there is no clock:
    /// on `wasm32-unknown-unknown` without the feature `js`.
    pub tokens_per_second: f64,
}

/// Compares `candidate` with `reference` on a text: token ids alone, or a [`Text`] of a model that expects something before
/// every text.
///
/// Both see the same windows one after the other, and only one window's logits are held at a time. The
/// sums are in F64. `progress` is called with the number of windows done and the number of all.
///
/// # Errors
/// The windows do not fit the text or a model's context; the models have different vocabularies or the text
/// a token outside them; a forward fails; a logit is not finite.
pub fn evaluate<'t>(
    reference: &dyn CausalLm,
    candidate: &dyn CausalLm,
    text: impl Into<Text<'t>>,
    windows: Windows,
    mut progress: impl FnMut(usize, usize),
) -> Result<Evaluation> {
    let text = text.into();
    let cut = windows.cut_for(reference, text)?;
    if reference.vocab_size() != candidate.vocab_size() {
        return Err(Error::config(format!(
            "the reference has a vocabulary of {} and the candidate one of {}; their predictions cannot be compared",
            reference.vocab_size(),
            candidate.vocab_size()
        )));
    }
    windows.cut_for(candidate, text)?;
    let (mut reference, mut candidate) = (Subject::new(reference), Subject::new(candidate));
    let mut divergence = Divergence::default();
    progress(0, cut.len());
    for (index, window) in cut.iter().enumerate() {
        let rows = reference.predict(window)?.into_iter().zip(candidate.predict(window)?);
        for (position, (p, q)) in rows.enumerate() {
            let (p, q) = (Prediction::new(p)?, Prediction::new(q)?);
            if let Some(&next) = window.get(position + 1) {
                reference.loss += p.loss(next);
                candidate.loss += q.loss(next);
            }
            divergence.add(&p, &q);
        }
        progress(index + 1, cut.len());
    }
    let positions = (windows.count * windows.length) as f64;
    Ok(Evaluation {
        windows,
        reference: reference.score(windows),
        candidate: candidate.score(windows),
        kl_divergence: divergence.kl / positions,
        top1_agreement: divergence.agreements as f64 / positions,
        max_logit_difference: divergence.max_difference,
    })
}

/// Refuses tokens that a model has no row for in its table: their tokenizer is larger than its vocabulary.
pub(super) fn check_vocabulary(model: &dyn CausalLm, tokens: &[u32]) -> Result<()> {
    match tokens.iter().find(|&&token| token as usize >= model.vocab_size()) {
        None => Ok(()),
        Some(token) => Err(Error::config(format!(
            "token {token} is not in the vocabulary of {}; the tokenizer is not this model's",
            model.vocab_size()
        ))),
    }
}

/// A model, its clock and its loss.
struct Subject<'m> {
    model: &'m dyn CausalLm,
    /// One per window.
    times: Vec<Duration>,
    /// Sum over all predictions of a known next token, in nats.
    loss: f64,
}

impl<'m> Subject<'m> {
    fn new(model: &'m dyn CausalLm) -> Self {
        Self { model, times: vec![], loss: 0. }
    }

    /// A window's logits, one row per position. The clock runs for the forward alone.
    fn predict(&mut self, window: &[u32]) -> Result<Vec<Vec<f32>>> {
        let device = self.model.device();
        let input = Tensor::new(window, device)?.unsqueeze(0)?;
        device.synchronize()?;
        let start = Instant::now();
        let logits = self.model.forward(&input, None)?;
        device.synchronize()?;
        self.times.push(start.elapsed());
        Ok(logits.squeeze(0)?.to_vec2()?)
    }

    fn score(&self, windows: Windows) -> Score {
        let warm = if self.times.len() > 1 { &self.times[1..] } else { &self.times };
        let seconds = warm.iter().sum::<Duration>().as_secs_f64();
        Score {
            perplexity: (self.loss / (windows.count * (windows.length - 1)) as f64).exp(),
            tokens_per_second: (warm.len() * windows.length) as f64 / seconds,
        }
    }
}

/// The distribution `softmax(logits)` of one position.
struct Prediction {
    logits: Vec<f32>,
    /// `ln(sum(exp(logits)))`.
    log_sum: f64,
    /// The first of the largest logits.
    best: usize,
}

impl Prediction {
    fn new(logits: Vec<f32>) -> Result<Self> {
        let mut best = 0;
        for (token, logit) in logits.iter().enumerate() {
            if !logit.is_finite() {
                return Err(not_finite(token, *logit));
            }
            if *logit > logits[best] {
                best = token;
            }
        }
        let max = f64::from(logits[best]);
        let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
        Ok(Self { log_sum: max + sum.ln(), logits, best })
    }

    /// The logarithms of the probabilities.
    fn log_probabilities(&self) -> impl Iterator<Item = f64> {
        self.logits.iter().map(|&logit| f64::from(logit) - self.log_sum)
    }

    /// `-ln p(token)`.
    fn loss(&self, token: u32) -> f64 {
        self.log_sum - f64::from(self.logits[token as usize])
    }
}

/// Sums over positions of what two models' predictions differ by.
#[derive(Default)]
struct Divergence {
    kl: f64,
    agreements: usize,
    max_difference: f32,
}

impl Divergence {
    fn add(&mut self, p: &Prediction, q: &Prediction) {
        // Each position's divergence is summed alone, so that many small ones do not vanish in the total.
        let kl: f64 = p.log_probabilities().zip(q.log_probabilities()).map(|(p, q)| p.exp() * (p - q)).sum();
        self.kl += kl;
        self.agreements += usize::from(p.best == q.best);
        let differences = p.logits.iter().zip(&q.logits).map(|(p, q)| (p - q).abs());
        self.max_difference = differences.fold(self.max_difference, f32::max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::KvCache;

    /// Predicts from the last token alone; its hidden states are the logits.
    struct Bigram(Tensor);

    impl Bigram {
        /// `weights[token][next]`, the probabilities up to a factor.
        fn new(weights: &[[f32; 3]; 3]) -> Result<Self> {
            Ok(Self(Tensor::new(weights, &Device::Cpu)?.log()?))
        }
    }

    impl CausalLm for Bigram {
        fn hidden_states(&self, input_ids: &Tensor, _: Option<&mut KvCache>) -> candle_core::Result<Tensor> {
            self.0.index_select(&input_ids.flatten_all()?, 0)?.unsqueeze(0)
        }

        fn head(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
            Ok(hidden.clone())
        }

        fn new_cache(&self) -> KvCache {
            KvCache::new(0, self.context_length())
        }

        fn vocab_size(&self) -> usize {
            3
        }

        fn context_length(&self) -> usize {
            usize::MAX
        }

        fn eos_token_ids(&self) -> &[u32] {
            &[]
        }

        fn device(&self) -> &Device {
            self.0.device()
        }
    }

    #[test]
    fn numbers_worked_out_by_hand() -> Result<()> {
        // After 0 the probabilities are 1/2, 1/4, 1/4, after 1 a third each; the candidate has 1/8, 2/8, 5/8 after
        // 0 and agrees after 1, up to a constant in the logits that no probability shows.
        let reference = Bigram::new(&[[2., 1., 1.], [1., 1., 1.], [1., 1., 1.]])?;
        let candidate = Bigram::new(&[[1., 2., 5.], [8., 8., 8.], [1., 1., 1.]])?;
        let tokens = [0, 0, 1, 2, 2, 2, 2, 0, 1, 0, 2, 2, 2, 2];
        let windows = Windows { count: 2, length: 3 };
        // (14 - 3 - 1) / 2 = 5: the windows are 0 0 1 and 2 2 0.
        assert_eq!(windows.starts(tokens.len())?, [0, 5]);
        let found = evaluate(&reference, &candidate, &tokens, windows, |_, _| {})?;

        let close =
            |found: f64, expected: f64| assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        // Three of the six positions hold 0, where KL = 1/2 ln 4 + 1/4 ln 1 + 1/4 ln(2/5).
        close(found.kl_divergence, 3. * (4f64.ln() / 2. + 0.4f64.ln() / 4.) / 6.);
        close(found.top1_agreement, 0.5);
        close(f64::from(found.max_logit_difference), 8f64.ln());
        // 0 0, 0 1, 2 2 and 2 0 are predicted with 1/2, 1/4, 1/3, 1/3 by the one, 1/8, 1/4, 1/3, 1/3 by the other.
        close(found.reference.perplexity, (2. * 4. * 9f64).powf(0.25));
        close(found.candidate.perplexity, (8. * 4. * 9f64).powf(0.25));
        Ok(())
    }

    #[test]
    fn every_window_begins_with_what_starts_a_text() -> Result<()> {
        let tokens = [0, 0, 1, 2, 2, 2, 2, 0, 1, 0, 2, 2, 2, 2];
        let windows = Windows { count: 2, length: 4 };
        assert_eq!(windows.cut(Text { start: &[1], tokens: &tokens })?, [[1, 0, 0, 1], [1, 2, 2, 0]]);
        assert_eq!(windows.cut(&tokens)?, [[0, 0, 1, 2], [2, 2, 2, 0]]);
        let samples = windows.samples(Text { start: &[1], tokens: &tokens }, &Device::Cpu)?;
        assert_eq!(samples[1].to_vec2::<u32>()?, [[1, 2, 2, 0]]);
        // The first token of the text is predicted after what starts it: 1 0, 0 0, 0 1 and 1 2, 2 2, 2 0.
        let model = Bigram::new(&[[2., 1., 1.], [1., 1., 2.], [1., 1., 1.]])?;
        let text = Text { start: &[1], tokens: &tokens };
        let found = evaluate(&model, &model, text, windows, |_, _| {})?;
        let expected = (4. * 2. * 4. * 2. * 3. * 3f64).powf(1. / 6.);
        assert!((found.reference.perplexity - expected).abs() < 1e-6, "{found:?}");
        let error = Windows { count: 1, length: 2 }.cut(text).unwrap_err().to_string();
        assert!(error.contains("windows of 2 tokens, of which 1 start every text"), "{error}");
        Ok(())
    }

    #[test]
    fn windows_are_spread_evenly_and_do_not_overlap() -> Result<()> {
        let eight = Windows::default();
        assert_eq!(eight.starts(10_000)?, [0, 1233, 2466, 3699, 4932, 6165, 7398, 8631]);
        assert_eq!(eight.starts(9 * 128 + 1)?, [0, 128, 256, 384, 512, 640, 768, 896]);
        assert!(eight.starts(9 * 128).is_err());
        assert_eq!(Windows { count: 1, length: 5 }.starts(5)?, [0]);
        for (count, length, tokens) in [(1, 6, 5), (0, 5, 100), (1, 1, 100), (usize::MAX, usize::MAX, 100)] {
            assert!(Windows { count, length }.starts(tokens).is_err());
        }
        Ok(())
    }

    #[test]
    fn what_cannot_be_compared_is_refused() -> Result<()> {
        let sound = Bigram::new(&[[1.; 3]; 3])?;
        let windows = Windows { count: 1, length: 2 };
        let refusal = |candidate: &Bigram, tokens: &[u32]| {
            evaluate(&sound, candidate, tokens, windows, |_, _| {}).expect_err("must be refused").to_string()
        };
        let zero = Bigram::new(&[[1., 0., 1.], [1.; 3], [1.; 3]])?;
        assert!(refusal(&zero, &[0, 1]).contains("logit of token 1 is -inf"));
        assert!(refusal(&sound, &[0, 3]).contains("token 3"));
        assert!(refusal(&sound, &[0]).contains("too short"));
        Ok(())
    }
}
