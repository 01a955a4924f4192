//! What the weights of a decoder are called in its files, and what they are to it.

use super::config::{
    AttentionConfig, AttentionInputs, Config, FeedForwardConfig, LayerConfig, MlpConfig, MlpInputs,
};
use std::ops::Range;

impl AttentionConfig {
    /// The layers in the order of [`RbeAttention::linears_mut`](crate::nn::RbeAttention::linears_mut).
    fn linears(&self) -> Vec<String> {
        let inputs = match &self.inputs {
            AttentionInputs::Separate(names) => &names[..],
            AttentionInputs::Joined(name) => &[*name],
        };
        inputs.iter().chain([&self.output]).map(|&name| name.to_owned()).collect()
    }
}

impl MlpConfig {
    /// The layers in the order of [`RbeMlp::linears_mut`](crate::nn::RbeMlp::linears_mut), without the name of the whole.
    fn linears(&self) -> Vec<&'static str> {
        match self.inputs {
            MlpInputs::Plain(name) | MlpInputs::Joined(name) => vec![name, self.output],
            MlpInputs::Gated { gate, up } => vec![gate, up, self.output],
        }
    }
}

impl LayerConfig {
    /// The linear layers, a router among them, by their names in the layer.
    pub(super) fn linears(&self) -> Vec<String> {
        let mut names = self.attention.linears();
        match &self.feed_forward {
            FeedForwardConfig::Dense(mlp) => {
                names.extend(mlp.linears().iter().map(|linear| format!("{}.{linear}", mlp.name)));
            }
            FeedForwardConfig::Experts(experts) => {
                names.push(experts.router.to_owned());
                for (index, linear) in (0..experts.count)
                    .flat_map(|index| experts.expert.linears().into_iter().map(move |linear| (index, linear)))
                {
                    names.push(format!("{}.{index}.{linear}", experts.expert.name));
                }
            }
        }
        names
    }

    /// Of [`linears`](Self::linears) those that see the same input, in the order in which a forward comes to them. A router and
    /// its experts are together.
    pub(super) fn steps(&self) -> Vec<Range<usize>> {
        let (attention, all) = (self.attention.linears().len(), self.linears().len());
        let mut steps = vec![0..attention - 1, attention - 1..attention];
        match &self.feed_forward {
            FeedForwardConfig::Dense(_) => steps.extend([attention..all - 1, all - 1..all]),
            FeedForwardConfig::Experts(_) => steps.push(attention..all),
        }
        steps
    }

    fn router(&self) -> Option<&'static str> {
        match &self.feed_forward {
            FeedForwardConfig::Dense(_) => None,
            FeedForwardConfig::Experts(experts) => Some(experts.router),
        }
    }
}

impl Config {
    /// The names that the token table may have in a file.
    pub fn token_tables(&self) -> Vec<String> {
        let name = |body: &&str| format!("{}{}.weight", dotted(body), self.names.tokens);
        self.names.bodies.iter().map(name).collect()
    }

    /// A regular expression that finds the projections of all layers, in which a model has most of its weights: the linear
    /// layers of attention and of feed-forward layers, experts' too; no routers, no tables, no head.
    pub fn projections(&self) -> String {
        let mut names: Vec<String> = Vec::new();
        for layer in &self.layers {
            for name in layer.linears() {
                let number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
                let parts = name.split('.').map(|part| match number(part) {
                    true => r"\d+".to_owned(),
                    false => regex::escape(part),
                });
                let pattern = parts.collect::<Vec<_>>().join(r"\.");
                if layer.router() != Some(name.as_str()) && !names.contains(&pattern) {
                    names.push(pattern);
                }
            }
        }
        format!(r"(^|\.){}\.\d+\.({})\.weight$", regex::escape(self.names.layers), names.join("|"))
    }
}

/// What stands before a name in a body, which may be none.
pub(super) fn dotted(body: &str) -> String {
    if body.is_empty() { String::new() } else { format!("{body}.") }
}
