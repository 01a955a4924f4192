//! What a configuration says of rotary position embedding.

use super::{Rope, RopeScaling};
use crate::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;

/// The object that transformers 4 calls `rope_scaling` and transformers 5, with the base in it,
/// `rope_parameters`. Old files say `type` for `rope_type`, some say both.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct RopeParameters {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    r#type: Option<String>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    truncate: Option<bool>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    attention_factor: Option<f64>,
    short_factor: Option<Vec<f64>>,
    long_factor: Option<Vec<f64>>,
    original_max_position_embeddings: Option<usize>,
    /// What other types take.
    #[serde(flatten)]
    others: BTreeMap<String, serde_json::Value>,
}

/// What stands beside the object, and counts where it does not say otherwise.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RopeContext {
    pub(crate) theta: Option<f64>,
    pub(crate) partial_rotary_factor: Option<f64>,
    /// Counts before the object's own.
    pub(crate) original_max_position_embeddings: Option<usize>,
    pub(crate) max_position_embeddings: usize,
    pub(crate) head_dim: usize,
}

const SUPPORTED: &str = "default, linear, dynamic, llama3, yarn, longrope";

impl RopeParameters {
    /// The names of what changes frequencies, and so means nothing without a type.
    fn scalings(&self) -> Vec<&str> {
        let own = [
            ("factor", self.factor.is_some()),
            ("low_freq_factor", self.low_freq_factor.is_some()),
            ("high_freq_factor", self.high_freq_factor.is_some()),
            ("beta_fast", self.beta_fast.is_some()),
            ("beta_slow", self.beta_slow.is_some()),
            ("truncate", self.truncate.is_some()),
            ("mscale", self.mscale.is_some()),
            ("mscale_all_dim", self.mscale_all_dim.is_some()),
            ("attention_factor", self.attention_factor.is_some()),
            ("short_factor", self.short_factor.is_some()),
            ("long_factor", self.long_factor.is_some()),
            ("original_max_position_embeddings", self.original_max_position_embeddings.is_some()),
        ];
        let others = self.others.iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name.as_str());
        own.into_iter().filter(|(_, said)| *said).map(|(name, _)| name).chain(others).collect()
    }

    /// The type, where one is said.
    fn rope_type(&self) -> Option<&str> {
        self.rope_type.as_deref().or(self.r#type.as_deref())
    }

    /// The same with another type in place of those that a family took for it.
    pub(crate) fn renamed(self, old: &[&str], new: &str) -> Self {
        match self.rope_type() {
            Some(name) if old.contains(&name) => Self { rope_type: Some(new.into()), ..self },
            _ => self,
        }
    }

    pub(crate) fn resolve(self, beside: RopeContext) -> Result<Rope> {
        let theta = self.rope_theta.or(beside.theta).unwrap_or(10_000.);
        if !(theta.is_finite() && theta > 0.) {
            return Err(Error::config(format!("rope_theta is {theta}, it must be positive")));
        }
        let part = self.partial_rotary_factor.or(beside.partial_rotary_factor).unwrap_or(1.);
        let rope = Rope { theta, part, scaling: RopeScaling::Default };
        let width = rope.width(beside.head_dim);
        let head_dim = beside.head_dim;
        if part == 1. && !head_dim.is_multiple_of(2) {
            return Err(Error::config(format!("head_dim {head_dim} is odd; heads are rotated in pairs")));
        }
        // A head of no elements is refused with the other sizes.
        if !(part > 0. && part <= 1. && width.is_multiple_of(2) && (width > 0 || head_dim == 0)) {
            return Err(Error::config(format!(
                "partial_rotary_factor is {part}, it must be above 0, at most 1, and an even part of head_dim {head_dim}"
            )));
        }
        let scaling = match self.rope_type() {
            // Whoever wrote a factor meant it, and each type would take it otherwise.
            None if !self.scalings().is_empty() => {
                return Err(Error::config(format!(
                    "rope_scaling has {} and no rope_type; supported are {SUPPORTED}",
                    self.scalings().join(", ")
                )));
            }
            None | Some("default") => RopeScaling::Default,
            Some("linear") => RopeScaling::Linear { factor: self.positive("factor", self.factor)? },
            Some("dynamic") => RopeScaling::Dynamic {
                factor: self.positive("factor", self.factor)?,
                original_max_position_embeddings: beside.max_position_embeddings,
            },
            Some("llama3") => self.llama3()?,
            Some("yarn") => self.yarn(beside)?,
            Some("longrope") => self.longrope(beside, width / 2)?,
            Some(other) => {
                return Err(Error::unsupported(format!("rope_type {other:?}; supported are {SUPPORTED}")));
            }
        };
        Ok(Rope { scaling, ..rope })
    }

    fn positive(&self, name: &str, value: Option<f64>) -> Result<f64> {
        let rope_type = self.rope_type().unwrap_or_default();
        match value {
            Some(value) if value.is_finite() && value > 0. => Ok(value),
            Some(value) => Err(Error::config(format!("rope {name} is {value}, it must be positive"))),
            None => Err(Error::config(format!("rope_type {rope_type:?} needs {name}"))),
        }
    }

    fn llama3(&self) -> Result<RopeScaling> {
        let low_freq_factor = self.positive("low_freq_factor", self.low_freq_factor)?;
        let high_freq_factor = self.positive("high_freq_factor", self.high_freq_factor)?;
        if low_freq_factor >= high_freq_factor {
            return Err(Error::config(format!(
                "rope high_freq_factor {high_freq_factor} must exceed low_freq_factor {low_freq_factor}"
            )));
        }
        let original = self.original_max_position_embeddings.filter(|&original| original > 0);
        Ok(RopeScaling::Llama3 {
            factor: self.positive("factor", self.factor)?,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: original.ok_or_else(|| {
                Error::config("rope_type \"llama3\" needs a positive original_max_position_embeddings")
            })?,
        })
    }

    /// The context length before an extension; the whole one where none is said.
    fn original(&self, beside: RopeContext) -> usize {
        let said = beside.original_max_position_embeddings.or(self.original_max_position_embeddings);
        said.filter(|&original| original > 0).unwrap_or(beside.max_position_embeddings)
    }

    fn yarn(&self, beside: RopeContext) -> Result<RopeScaling> {
        let original_max_position_embeddings = self.original(beside);
        let ratio = beside.max_position_embeddings as f64 / original_max_position_embeddings as f64;
        let factor = self.positive("factor", Some(self.factor.unwrap_or(ratio)))?;
        let mscale = |by: f64| if factor <= 1. { 1. } else { 0.1 * by * factor.ln() + 1. };
        let implied = match (self.mscale, self.mscale_all_dim) {
            (Some(one), Some(all)) if one != 0. && all != 0. => mscale(one) / mscale(all),
            _ => mscale(1.),
        };
        let attention_factor = self.attention_factor.unwrap_or(implied);
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast: self.positive("beta_fast", Some(self.beta_fast.unwrap_or(32.)))?,
            beta_slow: self.positive("beta_slow", Some(self.beta_slow.unwrap_or(1.)))?,
            truncate: self.truncate.unwrap_or(true),
            attention_factor: self.positive("attention_factor", Some(attention_factor))?,
            original_max_position_embeddings,
        })
    }

    fn longrope(&self, beside: RopeContext, pairs: usize) -> Result<RopeScaling> {
        let factors = |name: &str, said: &Option<Vec<f64>>| match said {
            Some(factors) if factors.len() != pairs => {
                let (count, head_dim) = (factors.len(), beside.head_dim);
                Err(Error::config(format!(
                    "rope {name} has {count} numbers; {pairs} pairs of a head of {head_dim} elements are rotated"
                )))
            }
            Some(factors) => {
                factors.iter().try_for_each(|&factor| self.positive(name, Some(factor)).map(drop))?;
                Ok(factors.clone())
            }
            None => Err(Error::config(format!("rope_type \"longrope\" needs {name}"))),
        };
        let original_max_position_embeddings = self.original(beside);
        let original = original_max_position_embeddings as f64;
        let factor = self.factor.unwrap_or(beside.max_position_embeddings as f64 / original);
        let implied = if factor <= 1. { 1. } else { (1. + factor.ln() / original.ln()).sqrt() };
        let attention_factor = self.attention_factor.unwrap_or(implied);
        Ok(RopeScaling::LongRope {
            short_factor: factors("short_factor", &self.short_factor)?,
            long_factor: factors("long_factor", &self.long_factor)?,
            attention_factor: self.positive("attention_factor", Some(attention_factor))?,
            original_max_position_embeddings,
        })
    }
}
