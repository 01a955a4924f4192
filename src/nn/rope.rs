//! Rotary position embedding (Su et al., arXiv 2104.09864) with the frequency scalings of Hugging Face's
//! `modeling_rope_utils`.

use candle_core::{D, DType, Device, Tensor};
use candle_nn::rotary_emb;
use std::{f64::consts::PI, ops::Range};

/// The angles by which positions turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// The base: pair `i` of `d` elements that are rotated turns by `theta^(-2i/d)` radians per position.
    pub theta: f64,
    /// The part of each head that is rotated, above 0 and up to 1 (`partial_rotary_factor`): its first elements, the
    /// others stay as they are.
    pub part: f64,
    /// How the frequencies are changed for contexts longer than those trained on.
    pub scaling: RopeScaling,
}

/// A change of the rotary frequencies, `rope_type` in the configuration.
///
/// [`Dynamic`](Self::Dynamic) and [`LongRope`](Self::LongRope) depend on the length of the text so far, as in Hugging Face's
/// `generate`: keys in a cache keep the angles of the length at which they were computed.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// `default`: none.
    Default,
    /// `linear` (arXiv 2306.15595): every frequency is divided.
    Linear {
        /// By what.
        factor: f64,
    },
    /// `dynamic`: in texts longer than `original_max_position_embeddings` the base grows with the length.
    Dynamic {
        /// How fast.
        factor: f64,
        /// The context length trained on, in positions.
        original_max_position_embeddings: usize,
    },
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
    /// `yarn` (arXiv 2309.00071): pairs with more than `beta_fast` waves in the original context are kept, those with
    /// less than `beta_slow` slowed down by `factor`, between the two it is interpolated from pair to pair.
    Yarn {
        /// How many times slower the longest waves turn.
        factor: f64,
        /// Waves per original context above which a frequency is kept.
        beta_fast: f64,
        /// Waves per original context below which a frequency is fully slowed down.
        beta_slow: f64,
        /// Whether the pairs where interpolation begins and ends are whole numbers.
        truncate: bool,
        /// What multiplies queries and keys once they are rotated.
        attention_factor: f64,
        /// The context length before the extension, in positions.
        original_max_position_embeddings: usize,
    },
    /// `longrope` (arXiv 2402.13753): each frequency is divided by a factor of its own.
    LongRope {
        /// The factors in texts up to the original context length, one a pair.
        short_factor: Vec<f64>,
        /// The factors in longer texts.
        long_factor: Vec<f64>,
        /// What multiplies queries and keys once they are rotated.
        attention_factor: f64,
        /// The context length before the extension, in positions.
        original_max_position_embeddings: usize,
    },
}

impl Rope {
    /// A rotation of whole heads without scaling.
    pub fn new(theta: f64) -> Self {
        Self { theta, part: 1., scaling: RopeScaling::Default }
    }

    /// Elements of a head that are rotated; the others follow them.
    pub fn width(&self, head_dim: usize) -> usize {
        (self.part * head_dim as f64) as usize
    }

    /// Radians per position of each pair of a head's rotated elements, in a text of `length` positions. Rounded to F32 as
    /// Hugging Face's are: at position 100,000 another rounding is another angle.
    pub fn frequencies(&self, head_dim: usize, length: usize) -> Vec<f32> {
        let width = self.width(head_dim);
        let theta = match self.scaling {
            RopeScaling::Dynamic { factor, original_max_position_embeddings: original }
                if length > original =>
            {
                let grown = factor * length as f64 / original as f64 - (factor - 1.);
                self.theta * grown.powf(width as f64 / (width as f64 - 2.))
            }
            _ => self.theta,
        };
        (0..width / 2)
            .map(|pair| {
                let frequency = theta.powf(-(2. * pair as f64) / width as f64);
                self.scale(frequency, pair, width, length) as f32
            })
            .collect()
    }

    /// Cosines and sines of each pair of a head's rotated elements at each of these positions, the last of a text, times
    /// [`attention_factor`](Self::attention_factor).
    pub(crate) fn turns(&self, head_dim: usize, positions: Range<usize>) -> (Vec<f32>, Vec<f32>) {
        let frequencies = self.frequencies(head_dim, positions.end);
        let angles = positions.flat_map(|p| frequencies.iter().map(move |frequency| p as f32 * frequency));
        let (mut sin, mut cos): (Vec<f32>, Vec<f32>) = angles.map(f32::sin_cos).unzip();
        let factor = self.attention_factor() as f32;
        if factor != 1. {
            sin.iter_mut().chain(&mut cos).for_each(|value| *value *= factor);
        }
        (cos, sin)
    }

    /// What multiplies queries and keys once they are rotated.
    pub fn attention_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                attention_factor
            }
            _ => 1.,
        }
    }

    fn scale(&self, frequency: f64, pair: usize, width: usize, length: usize) -> f64 {
        match &self.scaling {
            RopeScaling::Default | RopeScaling::Dynamic { .. } => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            &RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let waves_per_context = original_max_position_embeddings as f64 * frequency / (2. * PI);
                let kept = (waves_per_context - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let kept = kept.clamp(0., 1.);
                (1. - kept) * frequency / factor + kept * frequency
            }
            &RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                truncate,
                original_max_position_embeddings,
                ..
            } => {
                // The pair that turns so often in the original context.
                let pair_of = |waves: f64| {
                    let context = original_max_position_embeddings as f64;
                    width as f64 * (context / (waves * 2. * PI)).ln() / (2. * self.theta.ln())
                };
                let (first, last) = (pair_of(beta_fast), pair_of(beta_slow));
                let (first, last) = if truncate { (first.floor(), last.ceil()) } else { (first, last) };
                let (first, last) = (first.max(0.), last.min(width as f64 - 1.));
                let last = if first == last { last + 0.001 } else { last };
                let slowed = ((pair as f64 - first) / (last - first)).clamp(0., 1.);
                slowed * frequency / factor + (1. - slowed) * frequency
            }
            RopeScaling::LongRope { short_factor, long_factor, original_max_position_embeddings, .. } => {
                let factors =
                    if length > *original_max_position_embeddings { long_factor } else { short_factor };
                frequency / factors[pair]
            }
        }
    }
}

/// Cosines and sines for the positions of one forward pass, `(seq, width/2)` each.
#[derive(Debug)]
pub(super) struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    /// Computed for these positions alone; a table for a context of 128k would be 64 MB to save a
    /// few dozen cosines per token.
    pub(super) fn new(
        rope: &Rope,
        head_dim: usize,
        positions: Range<usize>,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Self> {
        let shape = (positions.len(), rope.width(head_dim) / 2);
        let (cos, sin) = rope.turns(head_dim, positions);
        Ok(Self {
            cos: Tensor::from_vec(cos, shape, device)?.to_dtype(dtype)?,
            sin: Tensor::from_vec(sin, shape, device)?.to_dtype(dtype)?,
        })
    }

    /// Turns the first elements of queries or keys `(batch, heads, seq, head_dim)`, contiguous.
    pub(super) fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        // Candle's fused kernel has no backward.
        let rotate = if x.track_op() { rotary_emb::rope_slow } else { rotary_emb::rope };
        let (width, head_dim) = (2 * self.cos.dim(1)?, x.dim(D::Minus1)?);
        if width == head_dim {
            return rotate(x, &self.cos, &self.sin);
        }
        let rotated = rotate(&x.narrow(D::Minus1, 0, width)?.contiguous()?, &self.cos, &self.sin)?;
        // Of parts that are strided Candle makes a whole that is, too.
        Tensor::cat(&[&rotated, &x.narrow(D::Minus1, width, head_dim - width)?], D::Minus1)?.contiguous()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(ours: &[f32], expected: &[f64]) {
        assert_eq!(ours.len(), expected.len());
        for (a, b) in ours.iter().zip(expected) {
            assert!((f64::from(*a) - b).abs() <= 2e-6 * b.abs(), "{ours:?} {expected:?}");
        }
    }

    /// The figures of Hugging Face's formulas, worked out apart in double precision: a base of 10,000, eight elements.
    #[test]
    fn each_scaling_is_its_formula() {
        let rope = |scaling| Rope { theta: 10_000., part: 1., scaling };
        close(&Rope::new(10_000.).frequencies(8, 1), &[1., 0.1, 0.01, 0.001]);
        let half = Rope { part: 0.5, ..Rope::new(10_000.) };
        assert_eq!(half.width(8), 4);
        close(&half.frequencies(8, 1), &[1., 0.01]);
        let linear = rope(RopeScaling::Linear { factor: 4. });
        close(&linear.frequencies(8, 1), &[0.25, 0.025, 0.0025, 0.00025]);

        let dynamic = rope(RopeScaling::Dynamic { factor: 2., original_max_position_embeddings: 64 });
        close(&dynamic.frequencies(8, 64), &[1., 0.1, 0.01, 0.001]);
        // The base is 10,000 * 3^(8/6) at 128 positions.
        let base = 10_000f64 * 3f64.powf(4. / 3.);
        close(&dynamic.frequencies(8, 128), &[0., 1., 2., 3.].map(|pair: f64| base.powf(-pair / 4.)));

        // 1024 positions: pair 0 turns 163 times, 1 16.3, 2 1.63, 3 0.163. Interpolation from pair 0.7 down to 0, up to 3.
        let yarn = |truncate| RopeScaling::Yarn {
            factor: 4.,
            beta_fast: 32.,
            beta_slow: 1.,
            truncate,
            attention_factor: 1.2,
            original_max_position_embeddings: 1024,
        };
        let slowed = |frequency: f64, part: f64| part * frequency / 4. + (1. - part) * frequency;
        let thirds = [slowed(1., 0.), slowed(0.1, 1. / 3.), slowed(0.01, 2. / 3.), slowed(0.001, 1.)];
        close(&rope(yarn(true)).frequencies(8, 1), &thirds);
        let (first, last) = (0.706_970_11, 2.212_120_09);
        let at = |pair: f64| ((pair - first) / (last - first)).clamp(0., 1.);
        let exact = [slowed(1., at(0.)), slowed(0.1, at(1.)), slowed(0.01, at(2.)), slowed(0.001, at(3.))];
        close(&rope(yarn(false)).frequencies(8, 1), &exact);
        assert_eq!(rope(yarn(true)).attention_factor(), 1.2);

        let long = rope(RopeScaling::LongRope {
            short_factor: vec![1., 2., 4., 5.],
            long_factor: vec![10., 20., 40., 50.],
            attention_factor: 1.1,
            original_max_position_embeddings: 64,
        });
        close(&long.frequencies(8, 64), &[1., 0.05, 0.0025, 0.0002]);
        close(&long.frequencies(8, 65), &[0.1, 0.005, 0.00025, 0.00002]);
    }

    #[test]
    fn a_part_is_rotated_and_the_rest_kept() -> candle_core::Result<()> {
        let x = Tensor::randn(0f32, 1., (1, 2, 3, 8), &Device::Cpu)?;
        let rope = Rope { part: 0.5, ..Rope::new(100.) };
        let partial = Rotation::new(&rope, 8, 5..8, DType::F32, &Device::Cpu)?.apply(&x)?;
        let whole = Rotation::new(&Rope::new(100.), 4, 5..8, DType::F32, &Device::Cpu)?;
        let first = whole.apply(&x.narrow(3, 0, 4)?.contiguous()?)?;
        let values = |x: Tensor| x.flatten_all()?.to_vec1::<f32>();
        assert_eq!(values(partial.narrow(3, 0, 4)?)?, values(first)?);
        assert_eq!(values(partial.narrow(3, 4, 4)?)?, values(x.narrow(3, 4, 4)?)?);
        Ok(())
    }
}
