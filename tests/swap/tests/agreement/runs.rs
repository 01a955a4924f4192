// Small models of every kind, from the weights of a builder to their outputs. `main.rs` compiles this file twice: `models` are
// candle-transformers' own, and the same files with the line that swaps them.

use candle::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use serde::de::DeserializeOwned;
use serde_json::{json, Value};

pub(crate) type Run = fn(VarBuilder) -> Result<Tensor>;

/// What the configurations of most models say, under the names that they have for it.
const COMMON: &str = r#"{
    "vocab_size": 96, "hidden_size": 64, "dim": 64, "d_model": 64, "intermediate_size": 96, "hidden_dim": 96, "d_ff": 96,
    "num_hidden_layers": 2, "n_layers": 2, "num_layers": 2, "num_attention_heads": 4, "n_heads": 4, "num_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "d_kv": 16, "hidden_act": "silu", "hidden_activation": "gelu",
    "activation": "gelu", "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "layer_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5, "norm_epsilon": 1e-5, "norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
    "attention_bias": true, "mlp_bias": false, "use_bias": true, "qkv_bias": true, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0, "initializer_range": 0.02, "use_cache": true, "sliding_window": 64, "max_window_layers": 2,
    "use_sliding_window": false, "partial_rotary_factor": 0.5, "qk_layernorm": false, "query_pre_attn_scalar": 16,
    "sliding_window_pattern": 2, "rope_local_base_freq": 10000.0, "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0, "num_experts_per_tok": 2, "num_local_experts": 4, "use_flash_attn": false,
    "hidden_dropout": 0.0, "attention_dropout": 0.0, "hidden_dropout_prob": 0.0, "dropout_rate": 0.0,
    "type_vocab_size": 2, "model_type": "any"
}"#;

/// A configuration of these values and the common ones; a `null` takes away.
fn config<C: DeserializeOwned>(own: Value) -> C {
    let mut all: Value = serde_json::from_str(COMMON).expect("JSON");
    for (name, value) in own.as_object().expect("an object") {
        all[name] = value.clone();
    }
    serde_json::from_value(all).expect("all that the configuration asks for")
}

fn prompt() -> Result<Tensor> {
    Tensor::new(&[[3u32, 17, 95, 4, 60, 17]], &Device::Cpu)
}

/// What comes out for a prompt and, with what the model remembers of it, for one token more.
fn two_steps(mut forward: impl FnMut(&Tensor, usize) -> Result<Tensor>) -> Result<Tensor> {
    let prompt = prompt()?;
    let first = forward(&prompt, 0)?.flatten_all()?;
    let second = forward(&prompt.narrow(1, 1, 1)?, prompt.dim(1)?)?.flatten_all()?;
    Tensor::cat(&[first, second], 0)
}

/// A decoder that takes `(ids, offset)`, with what is its own in the configuration.
macro_rules! decoders {
    ($($name:ident: $model:ident($($before:expr),*) $own:tt;)*) => {
        $(fn $name(vb: VarBuilder) -> Result<Tensor> {
            let config: models::$name::Config = config(json!($own));
            let mut model = models::$name::$model::new($($before,)* &config, vb)?;
            two_steps(|ids, offset| model.forward(ids, offset))
        })*
    };
}

decoders! {
    mistral: Model() {};
    qwen2: ModelForCausalLM() {};
    qwen3: ModelForCausalLM() {};
    gemma: Model(false) {"hidden_act": null};
    gemma2: Model(false) {};
    gemma3: Model(false) {"num_key_value_heads": 1};
    phi3: Model() {"partial_rotary_factor": null, "rope_scaling": null};
    mixtral: Model() {};
    stable_lm: Model() {"use_qkv_bias": true};
    starcoder2: Model() {};
    olmo: Model() {};
    olmo2: Model() {};
    helium: Model() {};
}

fn llama(vb: VarBuilder) -> Result<Tensor> {
    let config: models::llama::LlamaConfig = config(json!({}));
    let config = config.into_config(false);
    let mut cache = models::llama::Cache::new(true, DType::F32, &config, &Device::Cpu)?;
    let model = models::llama::Llama::load(vb, &config)?;
    two_steps(|ids, offset| model.forward(ids, offset, &mut cache))
}

fn granite(vb: VarBuilder) -> Result<Tensor> {
    let config: models::granite::GraniteConfig = config(json!({}));
    let config = config.into_config(false);
    let mut cache = models::granite::Cache::new(true, DType::F32, &config, &Device::Cpu)?;
    let model = models::granite::Granite::load(vb, &config)?;
    two_steps(|ids, offset| model.forward(ids, offset, &mut cache))
}

fn phi(vb: VarBuilder) -> Result<Tensor> {
    let config: models::phi::Config = config(json!({}));
    let mut model = models::phi::Model::new(&config, vb)?;
    two_steps(|ids, _| model.forward(ids))
}

fn falcon(vb: VarBuilder) -> Result<Tensor> {
    let own = json!({
        "n_head_kv": null, "alibi": false, "new_decoder_architecture": false, "multi_query": true, "parallel_attn": true,
        "bias": false,
    });
    let mut model = models::falcon::Falcon::load(vb, config(own))?;
    two_steps(|ids, _| model.forward(ids))
}

fn bigcode(vb: VarBuilder) -> Result<Tensor> {
    let config = models::bigcode::Config {
        vocab_size: 96,
        max_position_embeddings: 128,
        num_hidden_layers: 2,
        hidden_size: 64,
        layer_norm_epsilon: 1e-5,
        n_inner: Some(96),
        num_attention_heads: 4,
        multi_query: true,
        use_cache: true,
    };
    let mut model = models::bigcode::GPTBigCode::load(vb, config)?;
    two_steps(|ids, offset| model.forward(ids, offset))
}

fn bert(vb: VarBuilder) -> Result<Tensor> {
    let model = models::bert::BertModel::load(vb, &config(json!({"hidden_act": "gelu"})))?;
    let ids = prompt()?;
    model.forward(&ids, &ids.zeros_like()?, None)
}

fn distilbert(vb: VarBuilder) -> Result<Tensor> {
    let model = models::distilbert::DistilBertModel::load(vb, &config(json!({})))?;
    let ids = prompt()?;
    model.forward(&ids, &ids.zeros_like()?)
}

fn t5(vb: VarBuilder) -> Result<Tensor> {
    let own = json!({
        "relative_attention_num_buckets": 32, "initializer_factor": 1.0, "is_encoder_decoder": true,
        "decoder_start_token_id": 0,
    });
    let config: models::t5::Config = config(own);
    let mut model = models::t5::T5ForConditionalGeneration::load(vb, &config)?;
    model.forward(&prompt()?, &prompt()?.narrow(1, 0, 2)?)
}

fn vit(vb: VarBuilder) -> Result<Tensor> {
    let own = json!({"hidden_act": "gelu", "image_size": 32, "patch_size": 8, "num_channels": 3});
    let model = models::vit::Model::new(&config(own), 10, vb)?;
    let pixels = Tensor::arange(0f32, 3.0 * 32.0 * 32.0, &Device::Cpu)?.sin()?.reshape((1, 3, 32, 32))?;
    model.forward(&pixels)
}

fn whisper(vb: VarBuilder) -> Result<Tensor> {
    let own = json!({
        "num_mel_bins": 16, "max_source_positions": 20, "encoder_attention_heads": 4, "encoder_layers": 2,
        "max_target_positions": 16, "decoder_attention_heads": 4, "decoder_layers": 2, "suppress_tokens": [],
    });
    let mut model = models::whisper::model::Whisper::load(&vb, config(own))?;
    let mel = Tensor::arange(0f32, 16.0 * 40.0, &Device::Cpu)?.sin()?.reshape((1, 16, 40))?;
    let heard = model.encoder.forward(&mel, true)?;
    let states = model.decoder.forward(&prompt()?, &heard, true)?;
    model.decoder.final_linear(&states)
}

pub(crate) const RUNS: [(&str, Run); 23] = [
    ("bert", bert),
    ("bigcode", bigcode),
    ("distilbert", distilbert),
    ("falcon", falcon),
    ("gemma", gemma),
    ("gemma2", gemma2),
    ("gemma3", gemma3),
    ("granite", granite),
    ("helium", helium),
    ("llama", llama),
    ("mistral", mistral),
    ("mixtral", mixtral),
    ("olmo", olmo),
    ("olmo2", olmo2),
    ("phi", phi),
    ("phi3", phi3),
    ("qwen2", qwen2),
    ("qwen3", qwen3),
    ("stable_lm", stable_lm),
    ("starcoder2", starcoder2),
    ("t5", t5),
    ("vit", vit),
    ("whisper", whisper),
];
