//! A layer of a decoder.

use super::config::{
    AttentionConfig, AttentionInputs, Config, FeedForwardConfig, LayerConfig, Norm, NormOver,
};
use super::experts::Experts;
use super::projections::{linear, mlp};
use crate::nn::{
    AttentionPass, AttentionStep, Find, Linear, MlpStep, Projections, QueryKeyNorm, RbeAttention,
    RbeLayerNorm, RbeMlp, RbeRmsNorm, layer_norm, rms_norm, rms_norm_around_one,
};
use crate::step::{DecoderLayer, NormWeights};
use candle_core::{Result, Tensor};
use candle_nn::{Module, VarBuilder};

/// One of the norms of the residual stream.
#[derive(Clone, Debug)]
pub(super) enum AnyNorm {
    Layer(RbeLayerNorm),
    Rms(RbeRmsNorm),
}

impl AnyNorm {
    pub(super) fn new(norm: Norm, size: usize, vb: VarBuilder) -> Result<Self> {
        match norm {
            Norm::Layer(eps) => Ok(Self::Layer(layer_norm(size, eps, vb)?)),
            Norm::Rms(_) | Norm::RmsAroundOne(_) => Ok(Self::Rms(rms(norm, size, vb)?)),
        }
    }
}

impl AnyNorm {
    /// The norm as a token's step takes it; `None` where it is trained.
    pub(super) fn step(&self) -> Result<Option<NormWeights>> {
        match self {
            Self::Layer(norm) => norm.step(),
            Self::Rms(norm) => norm.step(),
        }
    }
}

impl Module for AnyNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Layer(norm) => norm.forward(x),
            Self::Rms(norm) => norm.forward(x),
        }
    }
}

/// A root-mean-square norm, around one or not as the model's others.
fn rms(like: Norm, size: usize, vb: VarBuilder) -> Result<RbeRmsNorm> {
    match like {
        Norm::RmsAroundOne(eps) => rms_norm_around_one(size, eps, vb),
        Norm::Rms(eps) | Norm::Layer(eps) => rms_norm(size, eps, vb),
    }
}

#[derive(Clone, Debug)]
enum FeedForward {
    Dense(Box<RbeMlp>),
    Experts(Box<Experts>),
}

#[derive(Clone, Debug)]
pub(super) struct Layer {
    before_attention: Option<AnyNorm>,
    attention: RbeAttention,
    after_attention: Option<AnyNorm>,
    before_feed_forward: Option<AnyNorm>,
    feed_forward: FeedForward,
    after_feed_forward: Option<AnyNorm>,
    residual_multiplier: Option<f64>,
}

impl Layer {
    /// `rotation` is the place of the layer's rope among those of a pass.
    pub(super) fn new(
        config: &Config,
        layer: &LayerConfig,
        rotation: Option<usize>,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let hidden = config.hidden_size;
        let norm =
            |name: Option<&str>| name.map(|name| AnyNorm::new(config.norm, hidden, vb.pp(name))).transpose();
        let feed_forward = match &layer.feed_forward {
            FeedForwardConfig::Dense(dense) => {
                FeedForward::Dense(Box::new(mlp(dense, hidden, &vb.pp(dense.name))?))
            }
            FeedForwardConfig::Experts(experts) => {
                FeedForward::Experts(Box::new(Experts::new(experts, hidden, vb)?))
            }
        };
        Ok(Self {
            before_attention: norm(layer.norms.before_attention)?,
            attention: attention(config, &layer.attention, rotation, vb)?,
            after_attention: norm(layer.norms.after_attention)?,
            before_feed_forward: norm(layer.norms.before_feed_forward)?,
            feed_forward,
            after_feed_forward: norm(layer.norms.after_feed_forward)?,
            residual_multiplier: config.residual_multiplier,
        })
    }

    pub(super) fn forward(&self, h: &Tensor, index: usize, pass: &mut AttentionPass) -> Result<Tensor> {
        let heads = self.heads(&self.attention_input(h)?, index, pass)?;
        let h = self.after_attention(h, &heads)?;
        let x = self.feed_forward_input(&h)?;
        match self.inner(&x)? {
            Some(inner) => self.after_feed_forward(&h, &inner),
            None => self.after_feed_forward(&h, &x),
        }
    }

    /// What the layers of queries, keys and values see.
    pub(super) fn attention_input(&self, h: &Tensor) -> Result<Tensor> {
        normed(&self.before_attention, h)
    }

    /// What the attention's output layer sees, from the attention's input.
    pub(super) fn heads(&self, x: &Tensor, index: usize, pass: &mut AttentionPass) -> Result<Tensor> {
        self.attention.heads(x, index, pass)
    }

    /// The residual stream after the attention, from that before and what the heads made.
    pub(super) fn after_attention(&self, h: &Tensor, heads: &Tensor) -> Result<Tensor> {
        self.added(h, normed(&self.after_attention, &self.attention.output(heads)?)?)
    }

    /// What the feed-forward layer sees.
    pub(super) fn feed_forward_input(&self, h: &Tensor) -> Result<Tensor> {
        normed(&self.before_feed_forward, h)
    }

    /// What the feed-forward's output layer sees, from its input; experts have no such layer in common.
    pub(super) fn inner(&self, x: &Tensor) -> Result<Option<Tensor>> {
        match &self.feed_forward {
            FeedForward::Dense(mlp) => mlp.inner(x).map(Some),
            FeedForward::Experts(_) => Ok(None),
        }
    }

    /// What the feed-forward layer makes of what [`inner`](Self::inner) returns; of experts, from their input.
    pub(super) fn feed_forward_output(&self, x: &Tensor) -> Result<Tensor> {
        match &self.feed_forward {
            FeedForward::Dense(mlp) => mlp.output(x),
            FeedForward::Experts(experts) => experts.forward(x),
        }
    }

    /// The residual stream after the layer, from that after the attention and what
    /// [`feed_forward_output`](Self::feed_forward_output) takes.
    pub(super) fn after_feed_forward(&self, h: &Tensor, x: &Tensor) -> Result<Tensor> {
        self.added(h, normed(&self.after_feed_forward, &self.feed_forward_output(x)?)?)
    }

    fn added(&self, h: &Tensor, x: Tensor) -> Result<Tensor> {
        match self.residual_multiplier {
            Some(by) => h + (x * by)?,
            None => h + x,
        }
    }

    /// The layer as a token's step takes it; `None` where it has experts, or a part is not compressed, or trained.
    pub(super) fn step<M>(&self, find: &Find<M>) -> Result<Option<DecoderLayer<M>>> {
        let FeedForward::Dense(mlp) = &self.feed_forward else { return Ok(None) };
        let mut norms = [None, None, None, None];
        let ours = [
            &self.before_attention,
            &self.after_attention,
            &self.before_feed_forward,
            &self.after_feed_forward,
        ];
        for (to, norm) in norms.iter_mut().zip(ours) {
            let Some(norm) = norm else { continue };
            *to = norm.step()?;
            if to.is_none() {
                return Ok(None);
            }
        }
        let (Some(attention), Some(mlp)) = (self.attention.step(find)?, mlp.step(find)?) else {
            return Ok(None);
        };
        let AttentionStep { inputs, heads, output } = attention;
        let MlpStep { inner, is_gated, nonlinearity, down } = mlp;
        Ok(Some(DecoderLayer { norms, inputs, heads, output, inner, is_gated, nonlinearity, down }))
    }

    /// Counts a token that went through its linear layers elsewhere.
    #[cfg(feature = "cuda")]
    pub(super) fn count_token(&self) {
        self.attention.count_token();
        if let FeedForward::Dense(mlp) = &self.feed_forward {
            mlp.count_token();
        }
    }

    /// In the order of [`LayerConfig::linears`].
    pub(super) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut linears = self.attention.linears_mut();
        match &mut self.feed_forward {
            FeedForward::Dense(mlp) => linears.extend(mlp.linears_mut()),
            FeedForward::Experts(experts) => linears.extend(experts.linears_mut()),
        }
        linears
    }
}

/// The norm of `x`, where there is one.
fn normed(norm: &Option<AnyNorm>, x: &Tensor) -> Result<Tensor> {
    norm.as_ref().map_or_else(|| Ok(x.clone()), |norm| norm.forward(x))
}

fn attention(
    config: &Config,
    attention: &AttentionConfig,
    rotation: Option<usize>,
    vb: &VarBuilder,
) -> Result<RbeAttention> {
    let &AttentionConfig { heads, kv_heads, head_dim, stored, .. } = attention;
    let input = |heads: usize, name: &str| {
        linear((config.hidden_size, heads * head_dim), stored, attention.input_bias, vb.pp(name))
    };
    let projections = match attention.inputs {
        AttentionInputs::Separate([q, k, v]) => {
            Projections::Separate { q: input(heads, q)?, k: input(kv_heads, k)?, v: input(kv_heads, v)? }
        }
        AttentionInputs::Joined(name) => Projections::Joined(input(heads + 2 * kv_heads, name)?),
    };
    let sides = (heads * head_dim, config.hidden_size);
    let out = linear(sides, stored, attention.output_bias, vb.pp(attention.output))?;
    let layer = RbeAttention::new(projections, out, heads, kv_heads, attention.scoring(rotation));
    // Beside the projections.
    let vb = vb.pp(attention.output.rsplit_once('.').map_or("", |(before, _)| before));
    let norm = |size, name| rms(config.norm, size, vb.pp(name));
    Ok(match attention.norm {
        None => layer,
        Some(NormOver::Head) => {
            let (q, k) = (norm(head_dim, "q_norm")?, norm(head_dim, "k_norm")?);
            layer.with_norm(QueryKeyNorm::PerHead { q, k })
        }
        Some(NormOver::Heads) => {
            let (q, k) = (norm(heads * head_dim, "q_norm")?, norm(kv_heads * head_dim, "k_norm")?);
            layer.with_norm(QueryKeyNorm::Whole { q, k })
        }
    })
}
