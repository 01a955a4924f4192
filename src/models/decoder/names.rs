//! What the weights of a decoder are called in its files, and what they are to it.

use super::config::{
    AttentionConfig, AttentionInputs, Config, ExpertsConfig, FeedForwardConfig, LayerConfig, MlpConfig,
    MlpInputs,
};
use std::ops::Range;

impl AttentionConfig {
    /// The layers in the order of [`RbeAttention::linears_mut`](crate::nn::RbeAttention::linears_mut).
    fn linears(&self) -> Vec<String> {
        let inputs = match &self.inputs {
            AttentionInputs::Separate(names) => &names[..],
            AttentionInputs::Joined(name) => &[*name],
        };
        inputs.iter().chain([&self.output]).map(|&name| format!("{name}.weight")).collect()
    }
}

impl MlpConfig {
    /// The layers in the order of [`RbeMlp::linears_mut`](crate::nn::RbeMlp::linears_mut), without the name of the whole.
    pub(super) fn linears(&self) -> Vec<&'static str> {
        match self.inputs {
            MlpInputs::Plain(name) | MlpInputs::Joined(name) => vec![name, self.output],
            MlpInputs::Gated { gate, up } => vec![gate, up, self.output],
        }
    }
}

impl LayerConfig {
    /// The weights of linear layers, a router's among them, by their names in the layer; of a stack with the number of the matrix.
    pub(super) fn linears(&self) -> Vec<String> {
        let mut names = self.attention.linears();
        match &self.feed_forward {
            FeedForwardConfig::Dense(mlp) => {
                names.extend(mlp.linears().iter().map(|linear| format!("{}.{linear}.weight", mlp.name)));
            }
            FeedForwardConfig::Experts(experts) => {
                names.push(format!("{}.weight", experts.router));
                for (index, linear) in (0..experts.count)
                    .flat_map(|index| experts.expert.linears().into_iter().map(move |linear| (index, linear)))
                {
                    let name = experts.expert.name;
                    names.push(match experts.stacked {
                        Some(end) => format!("{name}.{linear}{end}.{index}"),
                        None => format!("{name}.{index}.{linear}.weight"),
                    });
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

    fn experts(&self) -> Option<&ExpertsConfig> {
        match &self.feed_forward {
            FeedForwardConfig::Dense(_) => None,
            FeedForwardConfig::Experts(experts) => Some(experts),
        }
    }
}

impl Config {
    /// The weights of a layer's [linear layers](LayerConfig::linears), by their names in a file that has this body.
    pub(super) fn linears_of(&self, index: usize, body: &str) -> Vec<String> {
        let before = format!("{}{}.{index}", dotted(body), self.names.layers);
        self.layers[index].linears().into_iter().map(|name| format!("{before}.{name}")).collect()
    }

    /// The names that the token table may have in a file.
    pub fn token_tables(&self) -> Vec<String> {
        let name = |body: &&str| format!("{}{}.weight", dotted(body), self.names.tokens);
        self.names.bodies.iter().map(name).collect()
    }

    /// A regular expression that finds the projections of all layers, in which a model has most of its weights: the linear
    /// layers of attention and of feed-forward layers, experts' too; no routers, no tables, no head.
    pub fn projections(&self) -> String {
        let mut names: Vec<String> = Vec::new();
        let mut add = |pattern: String| {
            if !names.contains(&pattern) {
                names.push(pattern);
            }
        };
        for layer in &self.layers {
            let experts = layer.experts();
            for name in layer.linears() {
                let number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
                let parts = name.split('.').map(|part| match number(part) {
                    true => r"\d+".to_owned(),
                    false => regex::escape(part),
                });
                let is_router =
                    |experts: &ExpertsConfig| name.strip_suffix(".weight") == Some(experts.router);
                if !experts.is_some_and(is_router) {
                    add(parts.collect::<Vec<_>>().join(r"\."));
                }
            }
            if experts.is_some() {
                // In stacks.
                add(r"(\w+\.)*experts\.\w+(\.weight)?".into());
            }
        }
        format!(r"(^|\.){}\.\d+\.({})$", regex::escape(self.names.layers), names.join("|"))
    }
}

/// What stands before a name in a body, which may be none.
pub(super) fn dotted(body: &str) -> String {
    if body.is_empty() { String::new() } else { format!("{body}.") }
}
