//! The architectures of GGUF files that Hugging Face's models are written as: names, and what is done to weights.

use super::metadata::Metadata;
use crate::Result;

/// How a GGUF file of one kind of model differs from Hugging Face's.
pub(super) struct Architecture {
    /// `general.architecture`.
    name: &'static str,
    /// Hugging Face's name.
    pub(super) model_type: &'static str,
    /// Hugging Face's class.
    pub(super) class: &'static str,
    /// Whether the two numbers that are rotated together lie side by side in queries and keys, and not half a head apart.
    pub(super) interleaved: bool,
    /// Whether the file's norms have one added to their weights.
    pub(super) norms_around_one: bool,
    /// Whether linear layers are `Conv1D`s, whose weights Hugging Face stores `(in, out)`.
    pub(super) conv1d: bool,
    /// What tensors outside of layers are called, here and there, `.weight` left off.
    outside: Names,
    /// What stands before the number of a layer.
    layers: &'static str,
    /// What those of a layer are called.
    inside: &'static [Names],
    /// Those of a layer that may have a bias.
    biased: &'static [&'static str],
}

type Names = &'static [(&'static str, &'static str)];

const OUTSIDE: Names =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];
const ATTENTION: Names = &[
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
];
const HEAD_NORMS: Names = &[("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm")];
const MLP: Names = &[("ffn_gate", "mlp.gate_proj"), ("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj")];
const NORMS: Names = &[("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")];
const NORMS_AFTER: Names =
    &[("post_attention_norm", "post_attention_layernorm"), ("post_ffw_norm", "post_feedforward_layernorm")];
const NORMS_AROUND: Names = &[("attn_norm", "input_layernorm"), ("ffn_norm", "pre_feedforward_layernorm")];
const INPUTS: &[&str] = &["attn_q", "attn_k", "attn_v"];
const HEADS: &[&str] = &["attn_q", "attn_k", "attn_v", "attn_output"];
const ALL: &[&str] = &["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];

const LLAMA: Architecture = Architecture {
    name: "llama",
    model_type: "llama",
    class: "LlamaForCausalLM",
    interleaved: true,
    norms_around_one: false,
    conv1d: false,
    outside: OUTSIDE,
    layers: "model.layers",
    inside: &[ATTENTION, MLP, NORMS],
    biased: ALL,
};

/// LLaMA's with a window.
static MISTRAL: Architecture =
    Architecture { model_type: "mistral", class: "MistralForCausalLM", biased: &[], ..LLAMA };

/// LLaMA's with experts.
static MIXTRAL: Architecture = Architecture {
    model_type: "mixtral",
    class: "MixtralForCausalLM",
    inside: &[
        ATTENTION,
        NORMS,
        &[
            ("ffn_gate_inp", "block_sparse_moe.gate"),
            ("ffn_gate_exps", "block_sparse_moe.experts.{}.w1"),
            ("ffn_down_exps", "block_sparse_moe.experts.{}.w2"),
            ("ffn_up_exps", "block_sparse_moe.experts.{}.w3"),
        ],
    ],
    biased: &[],
    ..LLAMA
};

static ARCHITECTURES: [Architecture; 12] = [
    LLAMA,
    Architecture {
        name: "qwen2",
        model_type: "qwen2",
        class: "Qwen2ForCausalLM",
        interleaved: false,
        biased: INPUTS,
        ..LLAMA
    },
    Architecture {
        name: "qwen3",
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        interleaved: false,
        inside: &[ATTENTION, HEAD_NORMS, MLP, NORMS],
        biased: HEADS,
        ..LLAMA
    },
    Architecture {
        name: "qwen3moe",
        model_type: "qwen3_moe",
        class: "Qwen3MoeForCausalLM",
        interleaved: false,
        inside: &[
            ATTENTION,
            HEAD_NORMS,
            NORMS,
            &[
                ("ffn_gate_inp", "mlp.gate"),
                ("ffn_gate_exps", "mlp.experts.{}.gate_proj"),
                ("ffn_down_exps", "mlp.experts.{}.down_proj"),
                ("ffn_up_exps", "mlp.experts.{}.up_proj"),
            ],
        ],
        biased: HEADS,
        ..LLAMA
    },
    Architecture {
        name: "phi3",
        model_type: "phi3",
        class: "Phi3ForCausalLM",
        interleaved: false,
        inside: &[
            NORMS,
            &[
                ("attn_qkv", "self_attn.qkv_proj"),
                ("attn_output", "self_attn.o_proj"),
                ("ffn_up", "mlp.gate_up_proj"),
                ("ffn_down", "mlp.down_proj"),
            ],
        ],
        biased: &[],
        ..LLAMA
    },
    Architecture {
        name: "gemma",
        model_type: "gemma",
        class: "GemmaForCausalLM",
        interleaved: false,
        norms_around_one: true,
        biased: &[],
        ..LLAMA
    },
    Architecture {
        name: "gemma2",
        model_type: "gemma2",
        class: "Gemma2ForCausalLM",
        interleaved: false,
        norms_around_one: true,
        inside: &[ATTENTION, MLP, NORMS_AROUND, NORMS_AFTER],
        biased: &[],
        ..LLAMA
    },
    Architecture {
        name: "gemma3",
        model_type: "gemma3_text",
        class: "Gemma3ForCausalLM",
        interleaved: false,
        norms_around_one: true,
        inside: &[ATTENTION, HEAD_NORMS, MLP, NORMS_AROUND, NORMS_AFTER],
        biased: &[],
        ..LLAMA
    },
    Architecture { name: "smollm3", model_type: "smollm3", class: "SmolLM3ForCausalLM", ..LLAMA },
    Architecture {
        name: "olmo2",
        model_type: "olmo2",
        class: "Olmo2ForCausalLM",
        interleaved: false,
        inside: &[ATTENTION, HEAD_NORMS, MLP, NORMS_AFTER],
        biased: HEADS,
        ..LLAMA
    },
    Architecture { name: "granite", model_type: "granite", class: "GraniteForCausalLM", ..LLAMA },
    Architecture {
        name: "gpt2",
        model_type: "gpt2",
        class: "GPT2LMHeadModel",
        interleaved: false,
        norms_around_one: false,
        conv1d: true,
        outside: &[
            ("token_embd", "transformer.wte"),
            ("position_embd", "transformer.wpe"),
            ("output_norm", "transformer.ln_f"),
            ("output", "lm_head"),
        ],
        layers: "transformer.h",
        inside: &[&[
            ("attn_norm", "ln_1"),
            ("attn_qkv", "attn.c_attn"),
            ("attn_output", "attn.c_proj"),
            ("ffn_norm", "ln_2"),
            ("ffn_up", "mlp.c_fc"),
            ("ffn_down", "mlp.c_proj"),
        ]],
        biased: &["output_norm", "attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down"],
    },
];

impl Architecture {
    /// That of a file, of which `has` says what tensors it has.
    pub(super) fn of(metadata: &Metadata, has: impl Fn(&str) -> bool) -> Result<&'static Self> {
        let name = metadata.architecture();
        let Some(known) = ARCHITECTURES.iter().find(|known| known.name == name) else {
            let names: Vec<_> = ARCHITECTURES.iter().map(|known| known.name).collect();
            let reason = format!(
                "is {name:?}; those read are {}: give the original model's safetensors",
                names.join(", ")
            );
            return Err(metadata.error("general.architecture", reason));
        };
        if known.name != LLAMA.name {
            return Ok(known);
        }
        let experts = has("blk.0.ffn_gate_inp.weight");
        let window = metadata.size(".attention.sliding_window")?.is_some_and(|window| window > 0);
        Ok(match (experts, window) {
            (true, _) => &MIXTRAL,
            (false, true) => &MISTRAL,
            (false, false) => known,
        })
    }

    /// That of models of a kind of Hugging Face's.
    pub(super) fn of_kind(kind: &str) -> Option<&'static Self> {
        let others = [&MISTRAL, &MIXTRAL];
        let mut all = ARCHITECTURES.iter().chain(others);
        // Gemma 3's text is a kind of its own, and a part of another.
        all.find(|known| known.model_type == kind || (known.name == kind && known.name != LLAMA.name))
    }

    /// What a weight of Hugging Face's is called in a file, and the number of an expert that is stacked there: the reverse of
    /// [`place`](Self::place). What stands before the layers may be missing, or be more.
    pub(super) fn tensor(&self, weight: &str) -> Option<(String, Option<usize>)> {
        let parts: Vec<&str> = weight.strip_suffix(".weight")?.split('.').collect();
        let last = |name: &'static str| name.rsplit('.').next().unwrap_or(name);
        let number = |at: usize| parts.get(at).and_then(|part| part.parse::<usize>().ok());
        let layer = (1..parts.len()).find(|at| parts[at - 1] == last(self.layers) && number(*at).is_some());
        let Some(at) = layer else {
            let own = |(_, there): &&(&str, &'static str)| parts.last() == Some(&last(there));
            return self.outside.iter().find(own).map(|(here, _)| (format!("{here}.weight"), None));
        };
        let (layer, inside) = (number(at)?, parts[at + 1..].join("."));
        self.inside.iter().copied().flatten().find_map(|(here, there)| {
            let expert = match there.split_once("{}") {
                None => (inside == *there).then_some(None),
                Some((before, after)) => {
                    let number = inside.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
                    number.and_then(|number| number.parse().ok()).map(Some)
                }
            };
            expert.map(|expert| (format!("blk.{layer}.{here}.weight"), expert))
        })
    }

    /// What a tensor of the file is to the model; `None` where the model has no such tensor.
    pub(super) fn place(&self, tensor: &str) -> Option<Place> {
        let (stem, end) = tensor.rsplit_once('.')?;
        let (stem, layer) = match stem.strip_prefix("blk.") {
            Some(inside) => {
                let (number, stem) = inside.split_once('.')?;
                (stem, Some(number.parse::<usize>().ok()?))
            }
            None => (stem, None),
        };
        let names = if layer.is_some() { self.inside } else { std::slice::from_ref(&self.outside) };
        let (_, name) = names.iter().copied().flatten().find(|(here, _)| *here == stem)?;
        let name = match layer {
            Some(layer) => format!("{}.{layer}.{name}.{end}", self.layers),
            None => format!("{name}.{end}"),
        };
        let known = end == "weight" || (end == "bias" && self.biased.contains(&stem));
        known.then(|| Place { name, stem: stem.to_owned() })
    }

    /// Whether Hugging Face's configuration says for all layers of a kind together that they have biases.
    pub(super) fn says_biases(&self) -> bool {
        self.biased == ALL || self.biased == HEADS
    }
}

/// What a tensor is to a model.
pub(super) struct Place {
    /// Hugging Face's name; of stacked experts with `{}` for the number of one.
    pub(super) name: String,
    /// GGUF's name without its layer and end, such as `attn_q`.
    pub(super) stem: String,
}
