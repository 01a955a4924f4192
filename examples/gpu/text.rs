//! A text read by a model of LLaMA 7B's shape, and one written, token by token.
//!
//! Weights are random: of `DISTINCT` layers, which come again and again, but are together more than the card's second cache holds. A token's
//! time is the median of those after the first ones, from one token in the host's hands to the next, beside what its bytes would take at a
//! copy's speed. Reading is that of a prompt at once, the median of three, of which the logits of the last token come to the host.

use crate::{Filter, Report, speed};
use anyhow::Result;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, TensorInfo, Value, VersionedMagic};
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use candle_rbe::models::decoder::{FeedForwardConfig, LayerConfig};
use candle_rbe::models::{CausalLm, Config, Model, generate, greedy};
use candle_rbe::{Linear, RbeLinear, RbeTensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use serde::Serialize;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Write;
use std::io::Cursor;
use std::sync::Mutex;
use std::time::Instant;

const DISTINCT: usize = 4;
const PROMPT_TOKENS: u32 = 64;
const NEW_TOKENS: usize = 120;
const READ_TOKENS: u32 = 512;
/// Until memory is allocated, kernels are loaded and graphs captured.
const FIRST_TOKENS: usize = 20;

const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}"#;

/// One model's text.
#[derive(Serialize)]
pub(crate) struct Written {
    weight: String,
    weight_bytes: usize,
    us: f64,
    /// Of what its bytes allow.
    share: f64,
    /// Of `READ_TOKENS` together.
    read_us: f64,
}

pub(crate) fn run(device: &Device, filter: &Filter, report: &mut Report) -> Result<()> {
    let copy_gb_s = speed::Clock::new(device)?.copy_gb_s();
    type Make = fn(usize, usize) -> Result<RbeTensor>;
    let forms: [(&str, Form<Make>); 4] = [
        ("uncompressed F16", Form::Dense),
        ("Candle Q4_K", Form::Quantized),
        ("planes 4", Form::Compressed(|out, input| speed::planes(out, input, 4))),
        ("trellis 4", Form::Compressed(|out, input| speed::trellis(out, input, 4))),
    ];
    for (name, form) in forms.into_iter().filter(|(name, _)| filter.form(name)) {
        report.attempt(&format!("a text by {name}"), |report| {
            let (weight_bytes, us, read_us) = match form {
                Form::Quantized => quantized(device)?,
                Form::Dense => {
                    let mut model = model(device, false)?;
                    let bytes =
                        model.linears_mut().iter().map(|(_, linear)| 2 * linear.weight().elem_count()).sum();
                    (bytes, token_us(&model)?, read_us(&model)?)
                }
                Form::Compressed(make) => {
                    let mut model = model(device, true)?;
                    let bytes = compress(&mut model, make, device)?;
                    (bytes, token_us(&model)?, read_us(&model)?)
                }
            };
            let share = weight_bytes as f64 / (copy_gb_s * 1e3) / us;
            eprintln!(
                "7B, {name}: {us:.0} us a token, {:.0} % of what its bytes allow; {READ_TOKENS} read in {read_us:.0} us",
                100.0 * share
            );
            report.texts.push(Written { weight: name.to_owned(), weight_bytes, us, share, read_us });
            Ok(())
        })?;
    }
    Ok(())
}

/// What a model's weights are.
enum Form<Make> {
    Dense,
    /// Candle's own quantised model.
    Quantized,
    Compressed(Make),
}

fn model(device: &Device, is_empty: bool) -> Result<Model> {
    let noise = Noise { tensors: Mutex::default(), is_empty };
    let vb = VarBuilder::from_backend(Box::new(noise), DType::F16, device.clone());
    Ok(Model::new(Config::from_json(CONFIG)?, vb)?)
}

/// Candle's LLaMA of Q4_K weights: their bytes, and the times of a token and of a prompt.
fn quantized(device: &Device) -> Result<(usize, f64, f64)> {
    let config = Config::from_json(CONFIG)?;
    let Some(LayerConfig { attention, feed_forward: FeedForwardConfig::Dense(mlp), .. }) =
        config.layers.first()
    else {
        anyhow::bail!("a model without layers");
    };
    let (hidden, inner, vocab) = (config.hidden_size, mlp.intermediate_size, config.vocab_size);
    // Tensors of one shape lie in one place: a file of all would be of gigabytes.
    let (mut file, mut tensor_infos, mut bytes) = (Vec::new(), HashMap::new(), 0);
    let mut places: HashMap<(usize, usize), u64> = HashMap::new();
    let mut add = |name: String, out: usize, input: usize, counts: bool| -> Result<()> {
        let ggml_dtype = if out == 1 { GgmlDType::F32 } else { GgmlDType::Q4K };
        let shape: Shape = if out == 1 { input.into() } else { (out, input).into() };
        let data = || speed::quantized_bytes(ggml_dtype, (out, input));
        let offset = match places.entry((out, input)) {
            Entry::Occupied(place) => *place.get(),
            Entry::Vacant(place) => {
                let offset = *place.insert(file.len() as u64);
                file.extend(data()?);
                offset
            }
        };
        if counts {
            bytes += out * input / ggml_dtype.block_size() * ggml_dtype.type_size();
        }
        tensor_infos.insert(name, TensorInfo { ggml_dtype, shape, offset });
        Ok(())
    };
    for layer in 0..config.layers.len() {
        for (name, out, input) in [
            ("attn_q", hidden, hidden),
            ("attn_k", hidden, hidden),
            ("attn_v", hidden, hidden),
            ("attn_output", hidden, hidden),
            ("ffn_gate", inner, hidden),
            ("ffn_up", inner, hidden),
            ("ffn_down", hidden, inner),
            ("attn_norm", 1, hidden),
            ("ffn_norm", 1, hidden),
        ] {
            add(format!("blk.{layer}.{name}.weight"), out, input, out > 1)?;
        }
    }
    add("token_embd.weight".to_owned(), vocab, hidden, false)?;
    add("output.weight".to_owned(), vocab, hidden, true)?;
    add("output_norm.weight".to_owned(), 1, hidden, false)?;
    let number = |n: usize| Ok::<_, anyhow::Error>(Value::U32(u32::try_from(n)?));
    let metadata = HashMap::from([
        ("general.architecture".to_owned(), Value::String("llama".to_owned())),
        ("llama.attention.head_count".to_owned(), number(attention.heads)?),
        ("llama.attention.head_count_kv".to_owned(), number(attention.kv_heads)?),
        ("llama.block_count".to_owned(), number(config.layers.len())?),
        ("llama.embedding_length".to_owned(), number(hidden)?),
        ("llama.rope.dimension_count".to_owned(), number(attention.head_dim)?),
        ("llama.attention.layer_norm_rms_epsilon".to_owned(), Value::F32(config.norm.eps() as f32)),
    ]);
    let content = Content { magic: VersionedMagic::GgufV3, metadata, tensor_infos, tensor_data_offset: 0 };
    let mut model = ModelWeights::from_gguf(content, &mut Cursor::new(file), device)?;
    let mut times = Times::new();
    let mut input: Vec<u32> = (1..=PROMPT_TOKENS).collect();
    let mut position = 0;
    for _ in 0..NEW_TOKENS {
        let logits = model.forward(&Tensor::new(input.as_slice(), device)?.unsqueeze(0)?, position)?;
        position += input.len();
        input = vec![greedy(&logits.squeeze(0)?)?];
        times.note();
    }
    let prompt = Tensor::arange(1, READ_TOKENS + 1, device)?.unsqueeze(0)?;
    let read_us = median_of_prompts(|| model.forward(&prompt, 0))?;
    Ok((bytes, times.median(), read_us))
}

/// Random tensors by their names, where layers that many further share them; of no element where others take their place.
struct Noise {
    tensors: Mutex<HashMap<String, Tensor>>,
    is_empty: bool,
}

/// A name without the number of the layer among those that are distinct.
fn distinct(name: &str) -> String {
    let part = |part: &str| part.parse::<usize>().map_or(part.to_owned(), |n| (n % DISTINCT).to_string());
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

impl SimpleBackend for Noise {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let mut tensors = self.tensors.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(tensor) = tensors.get(&distinct(name)) {
            return Ok(tensor.clone());
        }
        let is_projection = name.contains("_proj") || name.contains("lm_head");
        let tensor = match self.is_empty && is_projection {
            true => Tensor::zeros(1, dtype, device)?.broadcast_as(shape)?,
            false => Tensor::randn(0f32, 0.02, shape, device)?.to_dtype(dtype)?,
        };
        tensors.insert(distinct(name), tensor.clone());
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("no shape is known of {name}")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        !name.ends_with("bias") && !name.contains(".rbe")
    }
}

/// Puts compressed layers in the place of all; their bytes.
fn compress(
    model: &mut Model,
    make: fn(usize, usize) -> Result<RbeTensor>,
    device: &Device,
) -> Result<usize> {
    let mut by_shape = HashMap::new();
    let mut by_name: HashMap<String, RbeTensor> = HashMap::new();
    let mut bytes = 0;
    for (name, linear) in model.linears_mut() {
        let (out, input) = linear.weight().dims2()?;
        let tensor = match by_name.get(&distinct(&name)) {
            Some(tensor) => tensor.clone(),
            None => match by_shape.entry((out, input)) {
                Entry::Occupied(tensor) => tensor.into_mut(),
                Entry::Vacant(place) => place.insert(make(out, input)?),
            }
            .to_device(device)?,
        };
        by_name.insert(distinct(&name), tensor.clone());
        bytes += tensor.plain_size_in_bytes();
        *linear = Linear::from(RbeLinear::new(tensor, None));
    }
    Ok(bytes)
}

/// Times from one token to the next.
struct Times {
    last: Instant,
    us: Vec<f64>,
}

impl Times {
    fn new() -> Self {
        Self { last: Instant::now(), us: Vec::with_capacity(NEW_TOKENS) }
    }

    fn note(&mut self) {
        self.us.push(self.last.elapsed().as_secs_f64() * 1e6);
        self.last = Instant::now();
    }

    /// Of those after the first.
    fn median(mut self) -> f64 {
        let mut us = self.us.split_off(FIRST_TOKENS.min(self.us.len()));
        us.sort_by(f64::total_cmp);
        us.get(us.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// The median time of a token.
fn token_us(model: &Model) -> Result<f64> {
    let prompt: Vec<u32> = (1..=PROMPT_TOKENS).collect();
    let mut times = Times::new();
    for token in generate(model, &prompt, NEW_TOKENS, greedy) {
        token?;
        times.note();
    }
    Ok(times.median())
}

/// The median time in which a prompt is read.
fn read_us(model: &Model) -> Result<f64> {
    let prompt = Tensor::arange(1, READ_TOKENS + 1, model.device())?.unsqueeze(0)?;
    median_of_prompts(|| model.forward_last(&prompt, Some(&mut model.new_cache())))
}

/// The median time until a prompt's logits are on the host.
fn median_of_prompts(mut read: impl FnMut() -> candle_core::Result<Tensor>) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..4 {
        let start = Instant::now();
        read()?.to_vec2::<f32>()?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    // The first one allocates.
    let mut times = times.split_off(1);
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

pub(crate) fn markdown(texts: &[Written]) -> String {
    if texts.is_empty() {
        return String::new();
    }
    let mut table = format!(
        "\n## A text by a model of LLaMA 7B's shape\n\n| weight | bytes | us a token | tokens a second | of what its bytes allow | \
         {READ_TOKENS} tokens read, us |\n|---|---|---|---|---|---|"
    );
    for Written { weight, weight_bytes, us, share, read_us } in texts {
        let _ = write!(
            table,
            "\n| {weight} | {weight_bytes} | {us:.0} | {:.0} | {:.0} % | {read_us:.0} |",
            1e6 / us,
            100.0 * share
        );
    }
    table + "\n"
}
