//! The description of a decoder: all that families of models differ in, layer by layer.

use crate::models::config::{MOST, MOST_TOKENS, check_sizes};
use crate::nn::{Activation, Rope, Scoring};
use crate::{Error, Result};

/// The most layers that a model here can have: a hundred times what any has.
const MOST_LAYERS: usize = 1 << 14;

/// A decoder-only language model. Read from `config.json` by [`read`](Self::read), or put together by hand.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Hugging Face's name of the family.
    pub model_type: &'static str,
    /// Number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// The largest number of positions.
    pub max_position_embeddings: usize,
    /// What every norm is.
    pub norm: Norm,
    /// Each layer, from the first.
    pub layers: Vec<LayerConfig>,
    /// What embeddings are multiplied by.
    pub embedding_multiplier: Option<f64>,
    /// What is added to the residual stream is multiplied by this before.
    pub residual_multiplier: Option<f64>,
    /// What logits are divided by.
    pub logits_divisor: Option<f64>,
    /// Logits `z` become `c tanh(z / c)`.
    pub logits_softcap: Option<f64>,
    /// Whether the output head is the token table.
    pub tie_word_embeddings: bool,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// What the tensors outside of layers are called.
    pub names: Names,
}

/// A norm over the residual stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// Layer norm with weight and bias, and what is added to the variance.
    Layer(f64),
    /// Root mean square with a weight, and what is added to the mean square.
    Rms(f64),
    /// The same with one added to the weight.
    RmsAroundOne(f64),
}

/// What the tensors outside of layers are called, `.weight` left off.
#[derive(Clone, Debug, PartialEq)]
pub struct Names {
    /// What may stand before all but the head: the first that the file has counts.
    pub bodies: &'static [&'static str],
    /// The token table.
    pub tokens: &'static str,
    /// The table of positions, where they are learned.
    pub positions: Option<&'static str>,
    /// What stands before the number of a layer.
    pub layers: &'static str,
    /// The norm after the last layer.
    pub norm: &'static str,
    /// The output head, where it is not tied.
    pub head: &'static str,
}

/// One layer: `h += norm(attention(norm(h))); h += norm(feed_forward(norm(h)))`.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerConfig {
    /// Which of the norms there are.
    pub norms: NormNames,
    /// The attention.
    pub attention: AttentionConfig,
    /// What comes after it.
    pub feed_forward: FeedForwardConfig,
}

/// What the norms of a layer are called; one without a name is not there.
#[derive(Clone, Debug, PartialEq)]
pub struct NormNames {
    /// Of the attention's input.
    pub before_attention: Option<&'static str>,
    /// Of its output.
    pub after_attention: Option<&'static str>,
    /// Of the feed-forward layer's input.
    pub before_feed_forward: Option<&'static str>,
    /// Of its output.
    pub after_feed_forward: Option<&'static str>,
}

/// How the weight of a linear layer lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// `(out, in)`, as PyTorch's `Linear`.
    OutIn,
    /// `(in, out)` and always with a bias, as GPT-2's `Conv1D`.
    InOut,
}

/// The attention of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads, a divisor of the query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// The layers that make queries, keys and values.
    pub inputs: AttentionInputs,
    /// The layer that takes the heads' outputs.
    pub output: &'static str,
    /// How their weights lie.
    pub stored: Stored,
    /// Whether the layers of queries, keys and values have a bias.
    pub input_bias: bool,
    /// Whether the output's has one.
    pub output_bias: bool,
    /// Norms of queries and keys, `q_norm` and `k_norm` beside the projections.
    pub norm: Option<NormOver>,
    /// What multiplies `q k'`.
    pub scale: f64,
    /// Scores `s` become `c tanh(s / c)`.
    pub softcap: Option<f64>,
    /// How many positions one sees, its own counted.
    pub window: Option<usize>,
    /// The rotation of queries and keys; `None` where their positions do not count.
    pub rope: Option<Rope>,
}

/// What the layers of queries, keys and values are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionInputs {
    /// One each.
    Separate([&'static str; 3]),
    /// All three in one, side by side.
    Joined(&'static str),
}

/// What a norm of queries or keys is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormOver {
    /// Each head's alone, with the same weights.
    Head,
    /// All heads' together.
    Heads,
}

/// What comes after the attention of a layer.
#[derive(Clone, Debug, PartialEq)]
pub enum FeedForwardConfig {
    /// One for all tokens.
    Dense(MlpConfig),
    /// Several, of which each token goes through a few.
    Experts(ExpertsConfig),
}

/// A feed-forward layer.
#[derive(Clone, Debug, PartialEq)]
pub struct MlpConfig {
    /// What stands before its layers' names, or before the number of an expert.
    pub name: &'static str,
    /// The layers in front of the nonlinearity.
    pub inputs: MlpInputs,
    /// The layer after it.
    pub output: &'static str,
    /// How their weights lie.
    pub stored: Stored,
    /// Whether they have a bias.
    pub bias: bool,
    /// Width inside.
    pub intermediate_size: usize,
    /// The nonlinearity.
    pub activation: Activation,
}

/// What the layers in front of a nonlinearity are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpInputs {
    /// One.
    Plain(&'static str),
    /// A gate and what it scales.
    Gated {
        /// The gate, which the nonlinearity is taken of.
        gate: &'static str,
        /// What it scales.
        up: &'static str,
    },
    /// Both in one, the gate first.
    Joined(&'static str),
}

/// A mixture of experts (Shazeer et al., arXiv 1701.06538): each token goes through those that a router finds likeliest.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertsConfig {
    /// The layer that chooses.
    pub router: &'static str,
    /// Number of experts.
    pub count: usize,
    /// How many each token goes through.
    pub chosen: usize,
    /// Whether their shares, the router's probabilities, are made to add up to one.
    pub normalized: bool,
    /// An expert.
    pub expert: MlpConfig,
    /// Where the weights of all experts lie in one tensor `(experts, out, in)` or `(experts, in, out)` each, what such a tensor's name
    /// ends with after that of an expert's layer: nothing, or `.weight`. [`Model`](crate::models::Model) finds it out by the file.
    pub stacked: Option<&'static str>,
}

impl Norm {
    /// What is added before the root.
    pub fn eps(&self) -> f64 {
        match *self {
            Self::Layer(eps) | Self::Rms(eps) | Self::RmsAroundOne(eps) => eps,
        }
    }
}

impl AttentionConfig {
    /// How queries and keys are compared, with the `rotation`-th of the ropes in a pass.
    pub(super) fn scoring(&self, rotation: Option<usize>) -> Scoring {
        Scoring { scale: self.scale, softcap: self.softcap, window: self.window, rotation }
    }

    fn check(&self) -> Result<()> {
        let &Self { heads, kv_heads, head_dim, .. } = self;
        check_sizes(
            MOST,
            &[("num_attention_heads", heads), ("num_key_value_heads", kv_heads), ("head_dim", head_dim)],
        )?;
        if !heads.is_multiple_of(kv_heads) {
            let reason =
                format!("num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}");
            return Err(Error::config(reason));
        }
        if self.window == Some(0) {
            return Err(Error::config("sliding_window is 0; a position sees at least itself"));
        }
        if let Some(rope) = &self.rope {
            let width = rope.width(head_dim);
            if !width.is_multiple_of(2) || width == 0 {
                let reason = format!("head_dim {head_dim} is odd; heads are rotated in pairs");
                return Err(Error::config(reason));
            }
        }
        let finite = |name: &str, value: f64| match value.is_finite() && value > 0. {
            true => Ok(()),
            false => Err(Error::config(format!("{name} is {value}, it must be positive"))),
        };
        finite("the scale of attention", self.scale)?;
        self.softcap.map_or(Ok(()), |cap| finite("attn_logit_softcapping", cap))
    }
}

impl FeedForwardConfig {
    fn check(&self) -> Result<()> {
        match self {
            Self::Dense(mlp) => check_sizes(MOST, &[("intermediate_size", mlp.intermediate_size)]),
            Self::Experts(experts) => {
                let ExpertsConfig { count, chosen, expert, .. } = experts;
                check_sizes(
                    MOST_LAYERS,
                    &[("the number of experts", *count), ("num_experts_per_tok", *chosen)],
                )?;
                check_sizes(MOST, &[("an expert's intermediate_size", expert.intermediate_size)])?;
                if chosen > count {
                    let reason = format!(
                        "num_experts_per_tok is {chosen}, and there are {count} experts to choose of"
                    );
                    return Err(Error::config(reason));
                }
                Ok(())
            }
        }
    }
}

/// Refuses a number of layers before any is described.
pub(crate) fn check_layers(name: &str, layers: usize) -> Result<()> {
    // A model of no layers has none to count.
    check_sizes(MOST_LAYERS, &[(name, layers.max(1))])
}

impl Config {
    /// Refuses what contradicts itself.
    pub(crate) fn check(&self) -> Result<()> {
        let tokens =
            [("vocab_size", self.vocab_size), ("max_position_embeddings", self.max_position_embeddings)];
        check_sizes(MOST_TOKENS, &tokens)?;
        check_sizes(MOST, &[("hidden_size", self.hidden_size)])?;
        check_layers("num_hidden_layers", self.layers.len())?;
        for layer in &self.layers {
            layer.attention.check()?;
            layer.feed_forward.check()?;
        }
        Ok(())
    }

    /// The ropes of all layers, each once, with the width of the heads that they turn.
    pub(super) fn ropes(&self) -> Vec<(Rope, usize)> {
        let mut ropes: Vec<(Rope, usize)> = Vec::new();
        for AttentionConfig { rope, head_dim, .. } in self.layers.iter().map(|layer| &layer.attention) {
            let Some(rope) = rope else { continue };
            if !ropes.iter().any(|(known, width)| known == rope && width == head_dim) {
                ropes.push((rope.clone(), *head_dim));
            }
        }
        ropes
    }
}
