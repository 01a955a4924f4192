//! Where models come from: GGUF files.

use super::*;
use candle_core::quantized::gguf_file::{self, Value as Field};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use std::collections::HashMap;

/// What stands for Hugging Face's names.
const NAMES: [(&str, &str); 12] = [
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("model.layers", "blk"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.", "ffn_"),
    ("_proj.weight", ".weight"),
];

/// The small LLaMA as a GGUF file.
fn write_gguf(path: &Path) {
    let books = Path::new(env!("CARGO_MANIFEST_DIR")).join(MODEL);
    let read =
        |name: &str| -> Value { serde_json::from_slice(&std::fs::read(books.join(name)).unwrap()).unwrap() };
    let (config, tokenizer) = (read("config.json"), read("tokenizer.json"));
    let size = |name: &str| config[name].as_u64().unwrap() as usize;
    let weights = candle_core::safetensors::load(books.join("model.safetensors"), &Device::Cpu).unwrap();
    let tensor = |(name, weight): (&String, &Tensor)| {
        let written = NAMES.iter().fold(name.clone(), |name, (from, to)| name.replacen(from, to, 1));
        let heads = match () {
            () if name.contains("q_proj") => size("num_attention_heads"),
            () if name.contains("k_proj") => size("num_key_value_heads"),
            () => 0,
        };
        let weight = match heads {
            0 => weight.clone(),
            heads => {
                let pairs = weight.reshape((heads, 2, weight.dim(0).unwrap() / heads / 2, ())).unwrap();
                pairs.transpose(1, 2).unwrap().contiguous().unwrap().reshape(weight.dims()).unwrap()
            }
        };
        let stored = if weight.rank() == 2 { GgmlDType::F16 } else { GgmlDType::F32 };
        (written, QTensor::quantize(&weight.to_dtype(candle_core::DType::F32).unwrap(), stored).unwrap())
    };
    let tensors: Vec<(String, QTensor)> = weights.iter().map(tensor).collect();
    let vocabulary: HashMap<String, usize> =
        serde_json::from_value(tokenizer["model"]["vocab"].clone()).unwrap();
    let mut tokens = vec![String::new(); vocabulary.len()];
    vocabulary.into_iter().for_each(|(token, id)| tokens[id] = token);
    let merges: Vec<(String, String)> = serde_json::from_value(tokenizer["model"]["merges"].clone()).unwrap();
    let merges = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
    let texts = |texts: Vec<String>| Field::Array(texts.into_iter().map(Field::String).collect());
    let kinds = (0..tokens.len()).map(|id| Field::I32(if id == 0 { 3 } else { 1 })).collect();
    let number = |name: &str| Field::U32(size(name) as u32);
    let eps = Field::F32(config["rms_norm_eps"].as_f64().unwrap() as f32);
    let fields = [
        ("general.architecture", Field::String("llama".into())),
        ("llama.embedding_length", number("hidden_size")),
        ("llama.feed_forward_length", number("intermediate_size")),
        ("llama.block_count", number("num_hidden_layers")),
        ("llama.attention.head_count", number("num_attention_heads")),
        ("llama.attention.head_count_kv", number("num_key_value_heads")),
        ("llama.context_length", number("max_position_embeddings")),
        ("llama.attention.layer_norm_rms_epsilon", eps),
        ("tokenizer.ggml.model", Field::String("gpt2".into())),
        ("tokenizer.ggml.pre", Field::String("gpt-2".into())),
        ("tokenizer.ggml.token_type", Field::Array(kinds)),
        ("tokenizer.ggml.merges", texts(merges)),
        ("tokenizer.ggml.eos_token_id", Field::U32(0)),
        ("tokenizer.ggml.tokens", texts(tokens)),
    ];
    let fields: Vec<_> = fields.iter().map(|(name, field)| (*name, field)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut std::fs::File::create(path).unwrap(), &fields, &tensors).unwrap();
}

#[test]
fn a_gguf_file_is_taken_wherever_a_model_is() {
    let room = tempfile::tempdir().unwrap();
    let [file, rbe, dense] = ["books.gguf", "rbe", "dense"].map(|name| room.path().join(name));
    write_gguf(&file);
    let (file, rbe, dense) = (string(&file), string(&rbe), string(&dense));
    let write = |model: &str| succeed(&["generate", model, "-p", "It was a dark evening", "-n", "8"]);
    assert_eq!(write(file), write(MODEL));
    succeed(&["decode", file, dense]);
    assert_eq!(
        names(Path::new(dense)),
        [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    let weights = |path: &str| {
        candle_core::safetensors::load(Path::new(path).join("model.safetensors"), &Device::Cpu).unwrap()
    };
    let original = weights(string(&Path::new(env!("CARGO_MANIFEST_DIR")).join(MODEL)));
    for (name, weight) in weights(dense) {
        let original = original[&name].to_dtype(weight.dtype()).unwrap();
        let difference = (weight - original).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        let difference = difference.to_dtype(candle_core::DType::F32).unwrap().to_scalar::<f32>().unwrap();
        assert_eq!(difference, 0.0, "{name}");
    }
    succeed(&["compress", file, rbe, "--bits", "5", "--include", PROJECTIONS, "--weights-only"]);
    assert!(write(rbe).starts_with("It was a dark evening"));
    assert!(succeed(&["verify", rbe, "--against", file]).contains("relative error"));
    let windows = ["--windows", "2", "--window-tokens", "48", "--json"];
    let report = json(&[&["eval", file, rbe, "--text", TEXT], &windows[..]].concat());
    assert!(number(&report, "kl_divergence") < 0.05);
    assert!(fail(&["compress", file, rbe, "--bits", "5"]).contains("already exists"));
    assert!(fail(&["compress", file, file, "--bits", "5"]).contains("no model directory replaces it"));
    // Nothing but what was asked for is left.
    assert_eq!(names(room.path()), ["books.gguf", "dense", "rbe"]);
    let sentence = format!("tokenizer.json; name the GGUF file itself: {file}");
    assert!(fail(&["generate", string(room.path()), "-p", "x"]).contains(&sentence));
    let directory = fail(&["inspect", string(room.path())]);
    assert!(directory.contains("it holds \"books.gguf\": name that file"), "{directory}");
}
