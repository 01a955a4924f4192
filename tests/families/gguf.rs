//! GGUF files: written here as llama.cpp's converter writes each family, made a directory, and run against what they were written
//! from and, where candle-transformers runs such a file itself, against that.

use super::experts::qwen3_moe_config;
use super::*;
use candle_core::quantized::gguf_file::{self, Content, Value as Field};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_rbe::archive::{self, Archive, DecodeOptions, Dtype};
use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// What stands in files of one architecture for Hugging Face's names.
const NAMES: [(&str, &str); 31] = [
    ("model.embed_tokens.", "token_embd."),
    ("transformer.wte.", "token_embd."),
    ("transformer.wpe.", "position_embd."),
    ("model.norm.", "output_norm."),
    ("transformer.ln_f.", "output_norm."),
    ("lm_head.", "output."),
    ("model.layers.", "blk."),
    ("transformer.h.", "blk."),
    (".self_attn.qkv_proj.", ".attn_qkv."),
    (".attn.c_attn.", ".attn_qkv."),
    (".attn.c_proj.", ".attn_output."),
    (".self_attn.q_proj.", ".attn_q."),
    (".self_attn.k_proj.", ".attn_k."),
    (".self_attn.v_proj.", ".attn_v."),
    (".self_attn.o_proj.", ".attn_output."),
    (".self_attn.q_norm.", ".attn_q_norm."),
    (".self_attn.k_norm.", ".attn_k_norm."),
    (".mlp.gate_up_proj.", ".ffn_up."),
    (".mlp.gate_proj.", ".ffn_gate."),
    (".mlp.up_proj.", ".ffn_up."),
    (".mlp.down_proj.", ".ffn_down."),
    (".mlp.c_fc.", ".ffn_up."),
    (".mlp.c_proj.", ".ffn_down."),
    (".mlp.gate.", ".ffn_gate_inp."),
    (".block_sparse_moe.gate.", ".ffn_gate_inp."),
    (".ln_1.", ".attn_norm."),
    (".ln_2.", ".ffn_norm."),
    (".input_layernorm.", ".attn_norm."),
    (".pre_feedforward_layernorm.", ".ffn_norm."),
    (".post_feedforward_layernorm.", ".post_ffw_norm."),
    // After the others: what it is depends on them.
    (".post_attention_layernorm.", ".ffn_norm."),
];

pub(super) struct Gguf {
    fields: Vec<(String, Field)>,
    tensors: Vec<(String, Tensor)>,
}

impl Gguf {
    /// A model as the file of an architecture.
    pub(super) fn of(architecture: &str, config: &Value, weights: &HashMap<String, Tensor>) -> Result<Self> {
        let mut tensors = vec![];
        let mut stacks: std::collections::BTreeMap<String, Vec<Tensor>> = Default::default();
        let mut names: Vec<&String> = weights.keys().collect();
        names.sort();
        for name in names {
            let weight = &weights[name];
            let mut written = NAMES.iter().fold(name.clone(), |name, (from, to)| name.replacen(from, to, 1));
            if ["gemma2", "gemma3", "olmo2"].contains(&architecture)
                && name.contains("post_attention_layernorm")
            {
                written = written.replace(".ffn_norm.", ".post_attention_norm.");
            }
            let heads = |key: &str| config[key].as_u64().unwrap_or_default() as usize;
            let weight = match () {
                () if architecture.starts_with("gemma") && name.ends_with("norm.weight") => (weight + 1.0)?,
                () if architecture == "gpt2" && weight.rank() == 2 && name.contains(".c_") => {
                    weight.t()?.contiguous()?
                }
                () if !["llama", "granite", "smollm3"].contains(&architecture) => weight.clone(),
                () if name.contains("q_proj") => interleaved(weight, heads("num_attention_heads"))?,
                () if name.contains("k_proj") => interleaved(weight, heads("num_key_value_heads"))?,
                () => weight.clone(),
            };
            match stack(&written) {
                Some(stack) => stacks.entry(stack).or_default().push(weight),
                None => tensors.push((written, weight)),
            }
        }
        for (name, experts) in stacks {
            // Ten experts would not be in the order of their numbers.
            assert!(experts.len() < 10);
            tensors.push((name, Tensor::stack(&experts, 0)?));
        }
        Ok(Self { fields: fields(architecture, config), tensors })
    }

    pub(super) fn write(&self, path: &Path, stored: impl Fn(&str, &Tensor) -> GgmlDType) -> Result<()> {
        let quantized = self
            .tensors
            .iter()
            .map(|(name, weight)| Ok((name.as_str(), QTensor::quantize(weight, stored(name, weight))?)));
        let quantized = quantized.collect::<Result<Vec<_>>>()?;
        let tensors: Vec<_> = quantized.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let fields: Vec<_> = self.fields.iter().map(|(name, field)| (name.as_str(), field)).collect();
        Ok(gguf_file::write(&mut File::create(path)?, &fields, &tensors)?)
    }

    /// As `gguf-split` writes the model into several files: the tensors one after another in each of them in turn.
    fn write_split(&self, directory: &Path, parts: usize) -> Result<Vec<PathBuf>> {
        let paths: Vec<PathBuf> =
            (1..=parts).map(|part| directory.join(format!("model-{part:05}-of-{parts:05}.gguf"))).collect();
        for (number, path) in paths.iter().enumerate() {
            let tensors = self.tensors.iter().enumerate().filter(|(at, _)| at % parts == number);
            let mut part = Self {
                fields: if number == 0 { self.fields.clone() } else { vec![] },
                tensors: tensors.map(|(_, tensor)| tensor.clone()).collect(),
            };
            part.set("split.no", Field::U16(number as u16));
            part.set("split.count", Field::U16(parts as u16));
            part.set("split.tensors.count", Field::I32(i32::try_from(self.tensors.len())?));
            part.write(path, |_, _| GgmlDType::F32)?;
        }
        Ok(paths)
    }

    pub(super) fn set(&mut self, key: &str, field: Field) {
        self.fields.retain(|(known, _)| known != key);
        self.fields.push((key.to_owned(), field));
    }
}

/// The stack that the tensor of one expert is a part of.
fn stack(name: &str) -> Option<String> {
    let (layer, expert) =
        name.split_once(".mlp.experts.").or(name.split_once(".block_sparse_moe.experts."))?;
    let stem = match expert.split('.').nth(1)? {
        "gate_proj" | "w1" => "ffn_gate_exps",
        "down_proj" | "w2" => "ffn_down_exps",
        _ => "ffn_up_exps",
    };
    Some(format!("{layer}.{stem}.weight"))
}

/// Each head's two halves, which are rotated together, number by number side by side.
fn interleaved(weight: &Tensor, heads: usize) -> Result<Tensor> {
    let half = weight.dim(0)? / heads / 2;
    Ok(weight.reshape((heads, 2, half, ()))?.transpose(1, 2)?.contiguous()?.reshape(weight.dims())?)
}

/// The metadata that says what a configuration says.
fn fields(architecture: &str, config: &Value) -> Vec<(String, Field)> {
    let mut fields = vec![("general.architecture".to_owned(), Field::String(architecture.into()))];
    let sizes = [
        ("hidden_size", "embedding_length"),
        ("n_embd", "embedding_length"),
        ("num_hidden_layers", "block_count"),
        ("n_layer", "block_count"),
        ("n_head", "attention.head_count"),
        ("n_inner", "feed_forward_length"),
        ("n_positions", "context_length"),
        ("intermediate_size", "feed_forward_length"),
        ("num_attention_heads", "attention.head_count"),
        ("num_key_value_heads", "attention.head_count_kv"),
        ("head_dim", "attention.key_length"),
        ("head_dim", "rope.dimension_count"),
        ("max_position_embeddings", "context_length"),
        ("sliding_window", "attention.sliding_window"),
        ("num_local_experts", "expert_count"),
        ("num_experts", "expert_count"),
        ("num_experts_per_tok", "expert_used_count"),
        ("moe_intermediate_size", "expert_feed_forward_length"),
    ];
    let floats = [
        ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
        ("layer_norm_epsilon", "attention.layer_norm_epsilon"),
        ("rope_theta", "rope.freq_base"),
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
        ("attention_multiplier", "attention.scale"),
        ("embedding_multiplier", "embedding_scale"),
        ("residual_multiplier", "residual_scale"),
        ("logits_scaling", "logit_scale"),
    ];
    for (name, key) in sizes {
        if let Some(size) = config[name].as_u64() {
            fields.push((format!("{architecture}.{key}"), Field::U32(size as u32)));
        }
    }
    for (name, key) in floats {
        if let Some(value) = config[name].as_f64() {
            fields.push((format!("{architecture}.{key}"), Field::F32(value as f32)));
        }
    }
    fields
}

pub(super) fn decode(input: &Path, output: &Path, dtype: Option<Dtype>) -> candle_rbe::Result<PathBuf> {
    let options = DecodeOptions { dtype, overwrite: false };
    archive::decode(input, output, &options, &mut |_| ControlFlow::Continue(()))?;
    Ok(output.to_owned())
}

fn refusal(input: &Path) -> String {
    refusal_of(input, input)
}

/// What is said of `part` where `input` is named.
fn refusal_of(input: &Path, part: &Path) -> String {
    let output = input.with_extension("out");
    let error = decode(input, &output, None).expect_err("a file that is refused").to_string();
    assert!(!output.exists() && error.starts_with(&part.display().to_string()), "{error}");
    error
}

fn load(directory: &Path) -> Result<Model> {
    Ok(Model::load(directory, archive::open(directory, DType::F32, &CPU)?)?)
}

fn gemma(model_type: &str) -> Value {
    let caps = match model_type {
        "gemma2" => json!({"attn_logit_softcapping": 9.0, "final_logit_softcapping": 20.0}),
        _ => json!({"attn_logit_softcapping": null, "final_logit_softcapping": null}),
    };
    let mut more = json!({
        "sliding_window": 5, "num_hidden_layers": 6, "query_pre_attn_scalar": 8, "tie_word_embeddings": true,
        "hidden_activation": "gelu_pytorch_tanh",
    });
    more.as_object_mut().expect("an object").extend(caps.as_object().cloned().unwrap_or_default());
    config(model_type, more)
}

/// One of each, as it is read back from its file.
#[test]
fn every_architecture_comes_back_as_the_model_it_was_written_from() -> Result<()> {
    let room = tempfile::tempdir()?;
    let granite = json!({
        "embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1,
    });
    let mut moe = qwen3_moe_config(true);
    moe["decoder_sparse_step"] = json!(1);
    let models = [
        ("llama", config("llama", json!({}))),
        (
            "llama",
            config("llama", json!({"attention_bias": true, "mlp_bias": true, "tie_word_embeddings": true})),
        ),
        ("llama", config("mistral", json!({"sliding_window": 7}))),
        ("llama", config("mixtral", json!({"num_local_experts": 5, "num_experts_per_tok": 2}))),
        ("qwen2", config("qwen2", json!({"tie_word_embeddings": true}))),
        ("qwen3", config("qwen3", json!({"head_dim": 12}))),
        ("qwen3moe", moe),
        ("phi3", config("phi3", json!({}))),
        ("gemma", config("gemma", json!({"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": true}))),
        ("gemma2", gemma("gemma2")),
        ("gemma3", gemma("gemma3_text")),
        ("smollm3", config("smollm3", json!({"num_hidden_layers": 4, "tie_word_embeddings": true}))),
        ("olmo2", config("olmo2", json!({}))),
        ("granite", config("granite", granite)),
        (
            "gpt2",
            json!({
                "model_type": "gpt2", "vocab_size": 61, "n_positions": 64, "n_embd": 24, "n_layer": 2, "n_head": 3,
                "n_inner": 96, "layer_norm_epsilon": 1e-5,
            }),
        ),
    ];
    for (at, (architecture, config)) in models.iter().enumerate() {
        let (original, weights) = model(config)?;
        let file = room.path().join(format!("{at}.gguf"));
        Gguf::of(architecture, config, &weights)?.write(&file, |_, _| GgmlDType::F32)?;
        assert!(archive::is_gguf(&file));
        let directory = decode(&file, &room.path().join(at.to_string()), None)?;
        let model_type = config["model_type"].as_str().expect("a name");
        let read = Config::read(&directory).map_err(|e| anyhow::anyhow!("{model_type}: {e}"))?;
        assert_eq!(read, *original.config(), "{model_type}");
        let names: Vec<String> =
            Archive::open(&directory)?.entries().map(|entry| entry.name.clone()).collect();
        let mut expected: Vec<String> = weights.keys().cloned().collect();
        expected.sort();
        assert_eq!(names, expected, "{model_type}");
        let tokens = ids(&prompt())?;
        assert_close(
            model_type,
            &load(&directory)?.forward(&tokens, None)?,
            &original.forward(&tokens, None)?,
        );
    }
    Ok(())
}

/// candle-transformers reads names and rotations of the same files by code of its own.
#[test]
fn a_file_is_what_candles_own_readers_take_it_for() -> Result<()> {
    let room = tempfile::tempdir()?;
    type Forward = Box<dyn FnMut(&Tensor) -> candle_core::Result<Tensor>>;
    type Read = fn(Content, &mut File) -> candle_core::Result<Forward>;
    let readers: [(&str, Read); 3] = [
        ("llama", |content, file| {
            let mut model = theirs::quantized_llama::ModelWeights::from_gguf(content, file, &CPU)?;
            Ok(Box::new(move |x: &Tensor| model.forward(x, 0)))
        }),
        ("qwen2", |content, file| {
            let mut model = theirs::quantized_qwen2::ModelWeights::from_gguf(content, file, &CPU)?;
            Ok(Box::new(move |x: &Tensor| model.forward(x, 0)))
        }),
        ("qwen3", |content, file| {
            let mut model = theirs::quantized_qwen3::ModelWeights::from_gguf(content, file, &CPU)?;
            Ok(Box::new(move |x: &Tensor| model.forward(x, 0)))
        }),
    ];
    for (architecture, read) in readers {
        let config = config(architecture, json!({}));
        let file = room.path().join(format!("{architecture}.gguf"));
        let mut gguf = Gguf::of(architecture, &config, &model(&config)?.1)?;
        // Where nothing is said, Qwen 3's runs in F16.
        gguf.set("general.dtype", Field::U32(0));
        gguf.write(&file, |_, _| GgmlDType::F32)?;
        let directory = decode(&file, &room.path().join(architecture), None)?;
        let mut opened = File::open(&file)?;
        let mut forward = read(Content::read(&mut opened)?, &mut opened)?;
        let tokens = ids(&prompt())?;
        assert_close(architecture, &load(&directory)?.forward_last(&tokens, None)?, &forward(&tokens)?);
    }
    Ok(())
}

/// Every type of a tensor gives the values that Candle decodes, in F32 where it was quantised, else in its own type.
#[test]
fn tensors_of_every_type_are_read_as_candle_decodes_them() -> Result<()> {
    use GgmlDType::*;
    let room = tempfile::tempdir()?;
    let config = config(
        "llama",
        json!({
            "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 64,
        }),
    );
    let types = [F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K];
    let weights = model(&config)?.1;
    let written = Gguf::of("llama", &config, &weights)?;
    let matrices: Vec<&String> =
        written.tensors.iter().filter(|(_, weight)| weight.rank() == 2).map(|(name, _)| name).collect();
    let stored = |name: &str, weight: &Tensor| match weight.rank() {
        2 => types[matrices.iter().position(|known| *known == name).expect("a matrix") % types.len()],
        _ => F32,
    };
    assert!(matrices.len() > types.len());
    let file = room.path().join("mixed.gguf");
    written.write(&file, stored)?;
    let directory = decode(&file, &room.path().join("mixed"), None)?;
    let archive = Archive::open(&directory)?;
    for theirs in weights.keys() {
        let name = NAMES.iter().fold(theirs.clone(), |name, (from, to)| name.replacen(from, to, 1));
        let (name, weight) = written.tensors.iter().find(|(known, _)| *known == name).expect("written");
        let decoded = QTensor::quantize(weight, stored(name, weight))?.dequantize(&CPU)?;
        let entry = archive.entry(theirs)?;
        let expected = match stored(name, weight) {
            F16 => Dtype::F16,
            BF16 => Dtype::BF16,
            _ => Dtype::F32,
        };
        assert_eq!(entry.dtype, expected, "{theirs}");
        let read = archive.tensor(entry, &CPU)?.to_dtype(DType::F32)?;
        let read = match () {
            () if name.contains("attn_q.") => interleaved(&read, 4)?,
            () if name.contains("attn_k.") => interleaved(&read, 2)?,
            () => read,
        };
        let difference = (read - decoded)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert_eq!(difference, 0.0, "{theirs}");
    }
    let half = decode(&file, &room.path().join("half"), Some(Dtype::F16))?;
    assert!(Archive::open(&half)?.entries().all(|entry| entry.dtype == Dtype::F16));
    let config: Value = serde_json::from_slice(&std::fs::read(half.join("config.json"))?)?;
    assert_eq!(config["torch_dtype"], "float16");
    Ok(())
}

/// A small model's file, changed, that says what the sentence says.
#[test]
fn what_cannot_be_held_is_refused_by_its_name() -> Result<()> {
    let room = tempfile::tempdir()?;
    let config = config("llama", json!({}));
    let weights = model(&config)?.1;
    let refused = |change: &dyn Fn(&mut Gguf)| -> Result<String> {
        let mut gguf = Gguf::of("llama", &config, &weights)?;
        change(&mut gguf);
        let file = room.path().join("x.gguf");
        gguf.write(&file, |_, _| GgmlDType::F32)?;
        Ok(refusal(&file))
    };
    let text = |text: &str| Field::String(text.to_owned());
    let texts = |texts: &[&str]| Field::Array(texts.iter().map(|t| text(t)).collect());
    type Change<'c> = &'c dyn Fn(&mut Gguf);
    let cases: [(Change, &str); 15] = [
        (&|g| g.set("general.alignment", Field::U32(0)), "general.alignment is 0; the file is damaged"),
        (
            &|g| g.set("general.architecture", text("mamba")),
            "general.architecture is \"mamba\"; those read are llama, qwen2",
        ),
        (&|g| g.fields.clear(), "general.architecture is missing"),
        (&|g| g.fields.retain(|(key, _)| !key.ends_with("block_count")), "llama.block_count is missing"),
        (&|g| g.set("llama.block_count", text("3")), "llama.block_count is no whole number"),
        (
            &|g| g.set("llama.attention.head_count_kv", Field::Array(vec![Field::U32(2), Field::U32(1)])),
            "llama.attention.head_count_kv differs from layer to layer",
        ),
        (
            &|g| g.set("llama.attention.value_length", Field::U32(9)),
            "llama.attention.value_length is not that of keys",
        ),
        (
            &|g| g.set("llama.attention.head_count_kv", Field::U32(7)),
            "llama.attention.head_count says 7 heads for \"attn_k\"",
        ),
        (
            &|g| g.set("llama.rope.scaling.type", text("su")),
            "llama.rope.scaling.type is \"su\"; those read are none, linear, yarn",
        ),
        (
            &|g| {
                g.tensors.push(("rope_freqs.weight".into(), Tensor::new(&[1f32, 2., 3., 4.], &CPU).unwrap()))
            },
            "tensor \"rope_freqs.weight\": divides frequencies by other numbers",
        ),
        (
            &|g| {
                g.tensors
                    .push(("blk.0.attn_sinks.weight".into(), Tensor::zeros(6, DType::F32, &CPU).unwrap()))
            },
            "tensor \"blk.0.attn_sinks.weight\": a model of the kind llama has no such tensor",
        ),
        (
            &|g| g.tensors.push(("blk.0.attn_q.bias".into(), Tensor::zeros(48, DType::F32, &CPU).unwrap())),
            "tensor \"blk.0.attn_k.bias\": is there or not there alone",
        ),
        (
            &|g| g.set("tokenizer.ggml.model", text("t5")),
            "tokenizer.ggml.model is \"t5\"; those read are gpt2 and llama",
        ),
        (
            &|g| {
                g.set("tokenizer.ggml.model", text("gpt2"));
                g.set("tokenizer.ggml.pre", text("other"))
            },
            "tokenizer.ggml.pre is \"other\"; those known are gpt-2",
        ),
        (
            &|g| {
                g.set("tokenizer.ggml.model", text("llama"));
                g.set("tokenizer.ggml.tokens", texts(&["a", "a"]));
                g.set("tokenizer.ggml.scores", Field::Array(vec![Field::F32(0.); 2]))
            },
            "tokenizer.ggml.tokens has \"a\" twice",
        ),
    ];
    for (change, sentence) in cases {
        let error = refused(change)?;
        assert!(error.contains(sentence), "{error}\nis not\n{sentence}");
    }
    // A type that Candle does not read: the last tensor's number is changed where it stands.
    let file = room.path().join("typed.gguf");
    Gguf::of("llama", &config, &weights)?.write(&file, |_, _| GgmlDType::F32)?;
    let mut bytes = std::fs::read(&file)?;
    let name = b"output_norm.weight";
    let at =
        bytes.windows(name.len()).position(|window| window == name).expect("the tensor") + name.len() + 4 + 8;
    bytes[at..at + 4].copy_from_slice(&23u32.to_le_bytes());
    std::fs::write(&file, &bytes)?;
    let error = refusal(&file);
    assert!(error.contains("GGML's type 23, which Candle does not read"), "{error}");
    bytes.truncate(at);
    std::fs::write(&file, &bytes)?;
    assert!(refusal(&file).contains("is not a GGUF file that can be read"));
    Ok(())
}

/// A model in several files is the model in one, whichever of them is named.
#[test]
fn a_split_model_is_read_whole_or_refused_by_the_part_that_is_amiss() -> Result<()> {
    let room = tempfile::tempdir()?;
    let config = config("llama", json!({}));
    let (original, weights) = model(&config)?;
    let gguf = Gguf::of("llama", &config, &weights)?;
    let paths = gguf.write_split(room.path(), 3)?;
    let expected = original.forward_last(&ids(&prompt())?, None)?;
    for (at, path) in paths.iter().enumerate() {
        let directory = decode(path, &room.path().join(at.to_string()), None)?;
        assert_eq!(Archive::open(&directory)?.entries().len(), weights.len());
        assert_close("split", &load(&directory)?.forward_last(&ids(&prompt())?, None)?, &expected);
    }
    // One that has another's name, the same tensors twice; too few; none.
    let [first, second, third] = [0, 1, 2].map(|at| paths[at].clone());
    let said = |named: &Path, part: &Path, words: &str| {
        let error = refusal_of(named, part);
        assert!(error.contains(words), "{error}");
    };
    let kept = std::fs::read(&second)?;
    std::fs::copy(&third, &second)?;
    said(&first, &second, "is part 3 of 3, and by its name 2 of 3: files of one model are called");
    let mut part = Gguf { fields: vec![], tensors: vec![gguf.tensors[0].clone()] };
    part.set("split.no", Field::U16(1));
    part.set("split.count", Field::U16(3));
    part.write(&second, |_, _| GgmlDType::F32)?;
    said(&first, &second, &format!("is also in {}", first.display()));
    part.tensors.clear();
    part.write(&second, |_, _| GgmlDType::F32)?;
    said(&third, &first, "split.tensors.count is not the ");
    std::fs::remove_file(&second)?;
    said(&third, &second, "");
    std::fs::write(&second, kept)?;
    let alone = room.path().join("alone.gguf");
    std::fs::copy(&third, &alone)?;
    said(&alone, &alone, "is part 3 of 3, and by its name 1 of 1");
    Ok(())
}

/// LLaMA 3.1's rule is known by the table that it makes.
#[test]
fn a_table_of_frequencies_is_the_rule_that_made_it() -> Result<()> {
    let room = tempfile::tempdir()?;
    let config = config(
        "llama",
        json!({
            "head_dim": 64, "rope_theta": 500000.0, "max_position_embeddings": 131072, "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        }),
    );
    let (original, weights) = model(&config)?;
    let mut gguf = Gguf::of("llama", &config, &weights)?;
    // By the wavelengths, as Hugging Face's code has it.
    let divisors = (0..32).map(|pair| {
        let wavelength = 2. * std::f64::consts::PI * 500_000f64.powf(pair as f64 / 32.);
        match () {
            () if wavelength < 8192. / 4. => 1f32,
            () if wavelength > 8192. => 8.,
            () => {
                let smooth = (8192. / wavelength - 1.) / 3.;
                (1. / ((1. - smooth) / 8. + smooth)) as f32
            }
        }
    });
    gguf.tensors.push(("rope_freqs.weight".into(), Tensor::from_iter(divisors, &CPU)?));
    let file = room.path().join("llama3.gguf");
    gguf.write(&file, |_, _| GgmlDType::F32)?;
    let directory = decode(&file, &room.path().join("llama3"), None)?;
    assert_eq!(Config::read(directory)?, *original.config());
    Ok(())
}
