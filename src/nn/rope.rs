//! Rotary position embedding (Su et al., arXiv 2104.09864) with the frequency scalings of Hugging Face's
//! `modeling_rope_utils`.

use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::rotary_emb;
use serde::Deserialize;
use std::{collections::BTreeMap, f64::consts::PI, ops::Range};

/// The angles by which positions turn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// The base: pair `i` of a head of width `d` turns by `theta^(-2i/d)` radians per position.
    pub theta: f64,
    /// How the frequencies are changed for contexts longer than those trained on.
    pub scaling: RopeScaling,
}

/// A change of the rotary frequencies, `rope_type` in the configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// `default`: none.
    Default,
    /// `llama3` (Llama 3.1 and later): waves longer than `original_max_position_embeddings /
    /// low_freq_factor` positions are slowed down by `factor`, those shorter than
    /// `original_max_position_embeddings / high_freq_factor` are kept, between the two it is interpolated.
    Llama3 {
        /// How many times slower the longest waves turn.
        factor: f64,
        /// Waves per original context below which a frequency is fully slowed down.
        low_freq_factor: f64,
        /// Waves per original context above which a frequency is kept.
        high_freq_factor: f64,
        /// The context length before the extension, in positions.
        original_max_position_embeddings: usize,
    },
}

impl Rope {
    /// Radians per position of the `head_dim / 2` pairs. Rounded to F32 as Hugging Face's are: at position
    /// 100,000 another rounding is another angle.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        (0..head_dim)
            .step_by(2)
            .map(|i| self.theta.powf(-(i as f64) / head_dim as f64))
            .map(|frequency| self.scaling.apply(frequency) as f32)
            .collect()
    }
}

impl RopeScaling {
    fn apply(&self, frequency: f64) -> f64 {
        match *self {
            Self::Default => frequency,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let waves_per_context = original_max_position_embeddings as f64 * frequency / (2. * PI);
                let kept = (waves_per_context - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let kept = kept.clamp(0., 1.);
                (1. - kept) * frequency / factor + kept * frequency
            }
        }
    }
}

/// Cosines and sines for the positions of one forward pass, `(seq, head_dim/2)` each.
#[derive(Debug)]
pub(super) struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    /// Computed for these positions alone; a table for a context of 128k would be 64 MB to save a
    /// few dozen cosines per token.
    pub(super) fn new(
        frequencies: &[f32],
        positions: Range<usize>,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Self> {
        let shape = (positions.len(), frequencies.len());
        let angles = positions.flat_map(|p| frequencies.iter().map(move |frequency| p as f32 * frequency));
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles.map(f32::sin_cos).unzip();
        Ok(Self {
            cos: Tensor::from_vec(cos, shape, device)?.to_dtype(dtype)?,
            sin: Tensor::from_vec(sin, shape, device)?.to_dtype(dtype)?,
        })
    }

    /// Turns queries or keys `(batch, heads, seq, head_dim)`, contiguous.
    pub(super) fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        // Candle's fused kernel has no backward.
        let rotate = if x.track_op() { rotary_emb::rope_slow } else { rotary_emb::rope };
        rotate(x, &self.cos, &self.sin)
    }
}

/// The object that transformers 4 calls `rope_scaling` and transformers 5, with the base in it,
/// `rope_parameters`. Old files say `type` for `rope_type`, some say both.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct RopeParameters {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    r#type: Option<String>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    /// What other types take.
    #[serde(flatten)]
    others: BTreeMap<String, serde_json::Value>,
}

impl RopeParameters {
    /// The names of what changes frequencies, and so means nothing without a type.
    fn scalings(&self) -> Vec<&str> {
        let own = [
            ("factor", self.factor.is_some()),
            ("low_freq_factor", self.low_freq_factor.is_some()),
            ("high_freq_factor", self.high_freq_factor.is_some()),
            ("original_max_position_embeddings", self.original_max_position_embeddings.is_some()),
        ];
        let others = self.others.iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name.as_str());
        own.into_iter().filter(|(_, said)| *said).map(|(name, _)| name).chain(others).collect()
    }

    /// `rope_theta` is the one beside this object in version 4's files.
    pub(crate) fn resolve(self, rope_theta: Option<f64>) -> Result<Rope> {
        if let Some(part) = self.partial_rotary_factor.filter(|&part| part != 1.) {
            let what = format!("partial_rotary_factor {part}; every pair of a head is rotated");
            return Err(Error::unsupported(what));
        }
        let theta = self.rope_theta.or(rope_theta).unwrap_or(10_000.);
        if !(theta.is_finite() && theta > 0.) {
            return Err(Error::config(format!("rope_theta is {theta}, it must be positive")));
        }
        let rope_type = self.rope_type.as_deref().or(self.r#type.as_deref());
        let scaling = match rope_type {
            // Whoever wrote a factor meant it, and each type would take it otherwise.
            None if !self.scalings().is_empty() => {
                return Err(Error::config(format!(
                    "rope_scaling has {} and no rope_type; supported are default, llama3",
                    self.scalings().join(", ")
                )));
            }
            None | Some("default") => RopeScaling::Default,
            Some("llama3") => {
                let number = |name: &str, value: Option<f64>| match value {
                    Some(value) if value.is_finite() && value > 0. => Ok(value),
                    Some(value) => Err(Error::config(format!("rope {name} is {value}, it must be positive"))),
                    None => Err(Error::config(format!("rope_type \"llama3\" needs {name}"))),
                };
                let low_freq_factor = number("low_freq_factor", self.low_freq_factor)?;
                let high_freq_factor = number("high_freq_factor", self.high_freq_factor)?;
                if low_freq_factor >= high_freq_factor {
                    return Err(Error::config(format!(
                        "rope high_freq_factor {high_freq_factor} must exceed low_freq_factor {low_freq_factor}"
                    )));
                }
                let original = self.original_max_position_embeddings.filter(|&original| original > 0);
                RopeScaling::Llama3 {
                    factor: number("factor", self.factor)?,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings: original.ok_or_else(|| {
                        Error::config(
                            "rope_type \"llama3\" needs a positive original_max_position_embeddings",
                        )
                    })?,
                }
            }
            Some(other) => {
                return Err(Error::unsupported(format!(
                    "rope_type {other:?}; supported are default, llama3"
                )));
            }
        };
        Ok(Rope { theta, scaling })
    }
}
