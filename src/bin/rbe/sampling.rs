//! How the next token is chosen: what `generation_config.json` says, and what the command line says in place of it.

use crate::print;
use anyhow::Context;
use candle_core::Tensor;
use candle_rbe::models::greedy;
use candle_transformers::generation::{LogitsProcessor, Sampling};
use clap::Args;
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// Candidates where generation_config.json asks for sampling and does not say how many, as Hugging Face's `generate` has it.
const TOP_K: usize = 50;

#[derive(Args, Clone, Debug, Default)]
pub(crate) struct SamplingArgs {
    /// Always take the likeliest token, whatever generation_config.json says
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p"])]
    greedy: bool,
    /// Sample at this temperature [default: what generation_config.json says, else the likeliest token]
    #[arg(long, value_name = "T", value_parser = temperature)]
    temperature: Option<f64>,
    /// Sample among the K likeliest tokens; 0 for all
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Sample among the likeliest tokens whose probabilities add up to P
    #[arg(long, value_name = "P", value_parser = probability)]
    top_p: Option<f64>,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err("a temperature is a number above 0; always the likeliest token is --greedy".into()),
    }
}

fn probability(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err("a probability here is above 0 and at most 1".into()),
    }
}

/// What is taken of `generation_config.json`; the tokens that end a text the model takes itself.
#[derive(Debug, Default, Deserialize)]
struct GenerationConfig {
    do_sample: Option<bool>,
    temperature: Option<f64>,
    top_k: Option<usize>,
    top_p: Option<f64>,
    #[serde(flatten)]
    others: serde_json::Map<String, Value>,
}

impl GenerationConfig {
    fn read(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join("generation_config.json");
        if !path.is_file() {
            return Ok(Self::default());
        }
        let cannot = || format!("cannot read {}", path.display());
        let text = std::fs::read_to_string(&path).with_context(cannot)?;
        serde_json::from_str(&text).with_context(cannot)
    }

    /// What it asks for beside, and is not done here.
    fn ignored(&self) -> Vec<String> {
        let neutral = [
            ("repetition_penalty", 1.0),
            ("min_p", 0.0),
            ("typical_p", 1.0),
            ("no_repeat_ngram_size", 0.0),
            ("num_beams", 1.0),
        ];
        let asked = neutral.into_iter().filter_map(|(name, neutral)| {
            let value = self.others.get(name)?.as_f64()?;
            (value != neutral).then(|| format!("{name} {value}"))
        });
        asked.collect()
    }
}

/// Chooses tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Chooser {
    Greedy,
    Sample { temperature: f64, top_k: Option<usize>, top_p: Option<f64>, seed: u64 },
}

impl SamplingArgs {
    /// With what the configuration of the model in `directory` says where nothing is said here.
    pub(crate) fn chooser(&self, directory: &Path) -> anyhow::Result<Chooser> {
        let file = GenerationConfig::read(directory)?;
        let ignored = file.ignored();
        if !ignored.is_empty() {
            print::note(&format!(
                "note: generation_config.json asks for {}; that is not done here",
                ignored.join(", ")
            ));
        }
        let asked = self.temperature.is_some() || self.top_k.is_some() || self.top_p.is_some();
        let by_file = file.do_sample == Some(true);
        if self.greedy || !(asked || by_file) {
            return Ok(Chooser::Greedy);
        }
        let by_file = |value: Option<f64>| value.filter(|_| by_file);
        let k = self.top_k.or_else(|| (file.do_sample == Some(true)).then(|| file.top_k.unwrap_or(TOP_K)));
        let temperature = self.temperature.or(by_file(file.temperature)).unwrap_or(1.0);
        anyhow::ensure!(
            temperature.is_finite() && temperature > 0.0,
            "generation_config.json has temperature {temperature} with do_sample; give a --temperature above 0, or --greedy"
        );
        Ok(Chooser::Sample {
            temperature,
            top_k: k.filter(|&k| k > 0),
            top_p: self.top_p.or(by_file(file.top_p)).filter(|&p| p < 1.0),
            seed: self.seed,
        })
    }
}

impl Chooser {
    /// The function that chooses of logits `(vocab)`.
    pub(crate) fn sampler(self) -> impl FnMut(&Tensor) -> candle_core::Result<u32> {
        let mut processor = match self {
            Self::Greedy => None,
            Self::Sample { temperature, seed, .. } => {
                Some(LogitsProcessor::from_sampling(seed, Sampling::All { temperature }))
            }
        };
        move |logits| match (&mut processor, self) {
            (Some(processor), Self::Sample { top_k, top_p, .. }) => {
                processor.sample_f(logits, |probabilities| keep_likeliest(probabilities, top_k, top_p))
            }
            _ => greedy(logits),
        }
    }
}

/// Leaves the `k` likeliest, and of those the fewest whose share of them is `p` or more: the order of Hugging Face's `generate`.
fn keep_likeliest(probabilities: &mut [f32], k: Option<usize>, p: Option<f64>) {
    if k.is_none() && p.is_none() {
        return;
    }
    let mut order: Vec<usize> = (0..probabilities.len()).collect();
    order.sort_by(|&i, &j| probabilities[j].total_cmp(&probabilities[i]));
    let k = k.unwrap_or(order.len()).min(order.len());
    let share = |index: usize| f64::from(probabilities[order[index]]);
    let mut kept = k;
    if let Some(p) = p {
        let all: f64 = (0..k).map(share).sum();
        let mut sum = 0.0;
        let last = (0..k).position(|index| {
            sum += share(index);
            sum >= p * all
        });
        kept = last.map_or(k, |last| last + 1);
    }
    order[kept..].iter().for_each(|&index| probabilities[index] = 0.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_are_kept_in_the_order_of_hugging_face() {
        let kept = |k, p| {
            let mut values = [0.1, 0.4, 0.05, 0.25, 0.2];
            keep_likeliest(&mut values, k, p);
            (0..values.len()).filter(|&index| values[index] > 0.0).collect::<Vec<_>>()
        };
        assert_eq!(kept(None, None), [0, 1, 2, 3, 4]);
        assert_eq!(kept(Some(2), None), [1, 3]);
        assert_eq!(kept(Some(9), None), [0, 1, 2, 3, 4]);
        assert_eq!(kept(None, Some(0.4)), [1]);
        assert_eq!(kept(None, Some(0.6)), [1, 3]);
        // Of the first three alone, 0.85 in all, the first two are 0.76.
        assert_eq!(kept(Some(3), Some(0.7)), [1, 3]);
        assert_eq!(kept(None, Some(0.7)), [1, 3, 4]);
        assert_eq!(kept(None, Some(1e-9)), [1], "one in any case");
    }

    #[test]
    fn flags_count_before_the_file() {
        let room = tempfile::tempdir().unwrap();
        let with = |file: &str, args: &SamplingArgs| {
            std::fs::write(room.path().join("generation_config.json"), file).unwrap();
            args.chooser(room.path())
        };
        let none = SamplingArgs::default();
        let sample = |temperature, top_k, top_p| Chooser::Sample { temperature, top_k, top_p, seed: 0 };
        assert_eq!(none.chooser(Path::new("absent")).unwrap(), Chooser::Greedy);
        let silent = r#"{"temperature": 0.6, "top_p": 0.9}"#;
        assert_eq!(with(silent, &none).unwrap(), Chooser::Greedy);
        let file = r#"{"do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": 20}"#;
        assert_eq!(with(file, &none).unwrap(), sample(0.6, Some(20), Some(0.9)));
        assert_eq!(with(r#"{"do_sample": true}"#, &none).unwrap(), sample(1.0, Some(TOP_K), None));
        assert_eq!(with(r#"{"do_sample": true, "top_k": 0}"#, &none).unwrap(), sample(1.0, None, None));
        let hot = SamplingArgs { temperature: Some(1.5), ..SamplingArgs::default() };
        assert_eq!(with(file, &hot).unwrap(), sample(1.5, Some(20), Some(0.9)));
        assert_eq!(with(silent, &hot).unwrap(), sample(1.5, None, None));
        let wide = SamplingArgs { top_k: Some(0), top_p: Some(1.0), ..SamplingArgs::default() };
        assert_eq!(with(file, &wide).unwrap(), sample(0.6, None, None));
        let greedy = SamplingArgs { greedy: true, ..SamplingArgs::default() };
        assert_eq!(with(file, &greedy).unwrap(), Chooser::Greedy);
        let error = with(r#"{"do_sample": true, "temperature": 0.0}"#, &none).unwrap_err().to_string();
        assert!(error.contains("--greedy"), "{error}");
        assert!(with("[", &none).is_err());
    }
}
