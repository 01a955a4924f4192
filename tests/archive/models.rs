//! Candle's `VarBuilder` over compressed models, and unmodified models over that.

use crate::sample::*;
use candle_core::{DType, Device, Tensor};
use candle_nn::{Module, VarBuilder};
use candle_rbe::RbeTensor;
use candle_rbe::archive::{self, Archive, DecodeOptions, Dtype};
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
use candle_transformers::models::qwen2;
use std::path::Path;

const LLAMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/llama-books");

fn logits(vb: VarBuilder, ids: &Tensor) -> Vec<f32> {
    let config = std::fs::read(Path::new(LLAMA).join("config.json")).unwrap();
    let config = serde_json::from_slice::<LlamaConfig>(&config).unwrap().into_config(false);
    let mut cache = Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
    let model = Llama::load(vb, &config).unwrap();
    model.forward(ids, 0, &mut cache).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn an_unmodified_llama_runs_on_a_compressed_model() {
    let room = tempfile::tempdir().unwrap();
    let (rbe, decoded) = (room.path().join("rbe"), room.path().join("decoded"));
    archive::compress(LLAMA, &rbe, &encoder(), &selecting("_proj"), &mut |_| go()).unwrap();
    let options = DecodeOptions { dtype: Some(Dtype::F32), overwrite: false };
    archive::decode(&rbe, &decoded, &options, &mut |_| go()).unwrap();

    let ids = Tensor::new(&[[17u32, 300, 45, 2024, 9, 1111, 512, 33]], &Device::Cpu).unwrap();
    let load = |path: &Path| logits(archive::open_decoded(path, DType::F32, &Device::Cpu).unwrap(), &ids);
    let ours = load(&rbe);
    let dense = std::fs::read(&decoded).unwrap();
    let file = logits(VarBuilder::from_buffered_safetensors(dense, DType::F32, &Device::Cpu).unwrap(), &ids);
    let original = load(Path::new(LLAMA));
    assert_eq!(ours.len(), 4096);
    assert_eq!(ours, file, "decoding on load and decoding to a file differ");
    let largest = original.iter().zip(&ours).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(largest > 1e-3 && largest < 3.0, "the logits differ from the uncompressed model's by {largest}");
}

#[test]
fn a_var_builder_serves_payloads_and_tensors() {
    let tensors = tensors(DType::F16);
    let room = Room::compressed(&tensors);
    let vb = archive::open(room.path("rbe"), DType::F32, &Device::Cpu).unwrap();
    assert!(vb.contains_tensor("embed.weight.rbe") && vb.contains_tensor("embed.weight"));
    assert!(vb.contains_tensor("types.weight") && !vb.contains_tensor("types.weight.rbe"));
    assert!(!vb.contains_tensor("nothing") && !vb.contains_tensor("embed"));
    let layer = vb.pp("layers").pp(0).pp("up_proj");
    let payload = layer.get_unchecked_dtype("weight.rbe", DType::U8).unwrap().to_vec1::<u8>().unwrap();
    assert_eq!(RbeTensor::from_bytes(&payload).unwrap().shape().dims(), [80, 64]);
    assert_eq!(layer.get(80, "bias").unwrap().dtype(), DType::F32);

    let text = |result: candle_core::Result<Tensor>| result.unwrap_err().to_string();
    let shape = text(layer.get((64, 80), "weight"));
    assert!(shape.contains("shape mismatch for layers.0.up_proj.weight"), "{shape}");
    assert!(text(layer.get(9, "weight.rbe")).contains("shape mismatch for layers.0.up_proj.weight.rbe"));
    assert!(text(layer.get(81, "bias")).contains("shape mismatch for layers.0.up_proj.bias"));
    assert!(text(layer.get_unchecked_dtype("weight.rbe", DType::F32)).contains("it is U8"));
    assert!(text(layer.get(1, "gain")).contains("no tensor named \"layers.0.up_proj.gain\""));
}

#[test]
fn a_decoding_var_builder_serves_the_model_s_own_names() {
    let tensors = tensors(DType::F16);
    let room = Room::compressed(&tensors);
    let archive = Archive::open(room.path("rbe")).unwrap();
    let vb = archive::open_decoded(room.path("rbe"), DType::F32, &Device::Cpu).unwrap();
    for (name, original) in &tensors {
        assert!(vb.contains_tensor(name), "{name}");
        let compressed = archive.entry(name).unwrap().compressed;
        assert_eq!(vb.contains_tensor(&format!("{name}.rbe")), compressed, "{name}");
        let served = vb.get(original.shape(), name).unwrap();
        assert_eq!(served.dtype(), DType::F32);
        let expected = archive.tensor(archive.entry(name).unwrap(), &Device::Cpu).unwrap();
        assert_eq!(relative_error(&expected, &served), 0.0, "{name}");
    }
    let error = vb.get((64, 80), "layers.0.up_proj.weight").unwrap_err().to_string();
    assert!(error.contains("shape mismatch"), "{error}");
    assert!(vb.get(3, "nothing").unwrap_err().to_string().contains("no tensor named \"nothing\""));
}

/// A Qwen2 of two layers whose head is not its embeddings.
fn qwen2_tensors() -> Tensors {
    let mut tensors: Tensors = vec![];
    let mut put = |name: &str, tensor: Tensor| tensors.push((name.to_owned(), tensor));
    // Of one shape, and not of one content.
    put("model.embed_tokens.weight", matrix(96, 64, DType::F32));
    put("lm_head.weight", matrix(64, 96, DType::F32).reshape((96, 64)).unwrap());
    let ones = Tensor::ones(64, DType::F32, &Device::Cpu).unwrap();
    put("model.norm.weight", ones.clone());
    for layer in ["model.layers.0", "model.layers.1"] {
        for (name, rows, cols) in [
            ("self_attn.q_proj", 64, 64),
            ("self_attn.k_proj", 32, 64),
            ("self_attn.v_proj", 32, 64),
            ("self_attn.o_proj", 64, 64),
            ("mlp.gate_proj", 96, 64),
            ("mlp.up_proj", 96, 64),
            ("mlp.down_proj", 64, 96),
        ] {
            put(&format!("{layer}.{name}.weight"), matrix(rows, cols, DType::F32));
            if ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"].contains(&name) {
                put(&format!("{layer}.{name}.bias"), vector(rows, DType::F32));
            }
        }
        put(&format!("{layer}.input_layernorm.weight"), ones.clone());
        put(&format!("{layer}.post_attention_layernorm.weight"), ones.clone());
    }
    tensors
}

fn qwen2_logits(vb: VarBuilder) -> Tensor {
    let config = qwen2::Config {
        vocab_size: 96,
        hidden_size: 64,
        intermediate_size: 96,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        max_position_embeddings: 32,
        sliding_window: 32,
        max_window_layers: 2,
        tie_word_embeddings: false,
        rope_theta: 1e4,
        rms_norm_eps: 1e-6,
        use_sliding_window: false,
        hidden_act: candle_nn::Activation::Silu,
    };
    let ids = Tensor::new(&[[17u32, 30, 45, 90, 9, 11]], &Device::Cpu).unwrap();
    qwen2::ModelForCausalLM::new(&config, vb).unwrap().forward(&ids, 0).unwrap()
}

#[test]
fn a_model_that_asks_whether_its_head_is_there_is_told_so() {
    let room = Room::compressed(&qwen2_tensors());
    let open = |name: &str| archive::open(room.path(name), DType::F32, &Device::Cpu).unwrap();
    let original = qwen2_logits(open("dense"));
    archive::decode(room.path("rbe"), room.path("decoded"), &DecodeOptions::default(), &mut |_| go())
        .unwrap();
    let decoded = qwen2_logits(open("decoded"));
    for vb in [open("rbe"), archive::open_decoded(room.path("rbe"), DType::F32, &Device::Cpu).unwrap()] {
        let ours = qwen2_logits(vb);
        assert_eq!(relative_error(&decoded, &ours), 0.0);
        let error = relative_error(&original, &ours);
        assert!(error > 0.01 && error < 0.3, "{error}");
    }
    // What the documentation warns of: Candle's own builder does not know that there is a head.
    let file = std::fs::read(room.path("decoded")).unwrap();
    let theirs = VarBuilder::from_buffered_safetensors(file, DType::F32, &Device::Cpu).unwrap();
    assert_eq!(relative_error(&decoded, &qwen2_logits(theirs)), 0.0);
    let file = std::fs::read(room.path("rbe/model.safetensors")).unwrap();
    let theirs = VarBuilder::from_buffered_safetensors(file, DType::F32, &Device::Cpu).unwrap();
    assert!(!theirs.contains_tensor("lm_head.weight") && theirs.contains_tensor("lm_head.weight.rbe"));
}

#[test]
fn one_builder_serves_layers_of_both_kinds() {
    candle_rbe::set_default_layer_config(candle_rbe::LayerConfig {
        precision: candle_rbe::Precision::Exact,
        ..candle_rbe::LayerConfig::default()
    });
    let room = Room::compressed(&tensors(DType::F16));
    let vb = archive::open(room.path("rbe"), DType::F32, &Device::Cpu).unwrap();
    let layer = vb.pp("layers").pp(0).pp("up_proj");
    let ours = candle_rbe::linear(64, 80, layer.clone()).unwrap();
    let compressed = ours.weight().rbe().expect("a layer that runs on the payload");
    let theirs = candle_nn::linear(64, 80, layer).unwrap();
    let decoded = compressed.dequantize().unwrap();
    assert_eq!(relative_error(&decoded, theirs.weight()), 0.0);
    let x = matrix(3, 64, DType::F32);
    let error = relative_error(&theirs.forward(&x).unwrap(), &ours.forward(&x).unwrap());
    assert!(error < 1e-5, "{error}");
    let table = candle_rbe::embedding(96, 64, vb.pp("embed")).unwrap();
    assert!(table.embeddings().rbe().is_some(), "{table:?}");
    assert!(candle_nn::embedding(96, 64, vb.pp("embed")).is_ok());
}
