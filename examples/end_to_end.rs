//! A whole LLaMA beside Candle's own: tokens read and written per second, weights in memory, peak memory.
//!
//! ```sh
//! cargo run --release --features cli --example end_to_end -- [BITS] [MODEL_DIR]
//! ```
//!
//! The same weights as `candle_transformers`' LLaMA in F32, as its quantised LLaMA (a GGUF of each type whose blocks the matrices have
//! room for, made here), and as this crate's compressed model: all matrices, the token table and the head too. Every model reads the
//! same 384 tokens and writes 96 after them, four times; the best counts. Each runs in a process of its own (this program,
//! called with its row's name), so that the peak of memory is its own; where the system does not tell, there is none.

use anyhow::{Context, Result, ensure};
use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{D, DType, Device, Tensor};
use candle_rbe::archive::{self, CompressOptions};
use candle_rbe::models::{CausalLm, Model};
use candle_rbe::{
    Budget, Encoder, EncoderConfig, LayerConfig, Precision, Rate, TermChoice, set_default_layer_config,
};
use candle_transformers::models::llama::{Cache, Config, Llama, LlamaConfig};
use candle_transformers::models::quantized_llama::ModelWeights;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::Cursor;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use tokenizers::Tokenizer;

const PROMPT: usize = 384;
const WRITTEN: usize = 96;
const TYPES: [(&str, GgmlDType); 6] = [
    ("Q2_K", GgmlDType::Q2K),
    ("Q3_K", GgmlDType::Q3K),
    ("Q4_0", GgmlDType::Q4_0),
    ("Q4_K", GgmlDType::Q4K),
    ("Q6_K", GgmlDType::Q6K),
    ("Q8_0", GgmlDType::Q8_0),
];
const OURS: [(&str, TermChoice, Precision); 4] = [
    ("trellis", TermChoice::Trellis, Precision::Auto),
    ("trellis, exact", TermChoice::Trellis, Precision::Exact),
    ("planes", TermChoice::Planes, Precision::Auto),
    ("planes, exact", TermChoice::Planes, Precision::Exact),
];

/// What a row measures.
#[derive(Serialize, Deserialize)]
struct Measured {
    read_per_second: f64,
    written_per_second: f64,
    /// Bytes of all matrices in the file.
    matrices: usize,
    /// Largest resident memory of the process, from before its model was loaded on.
    peak: Option<u64>,
    /// Logits of the last token of the prompt.
    logits: Vec<f32>,
}

/// A model with its cache: tokens from a position on to the logits of the last.
type Forward<'m> = Box<dyn FnMut(&Tensor, usize) -> Result<Tensor> + 'm>;

/// Reads and writes, four times.
fn measure(mut forward: Forward, tokens: &[u32], matrices: usize) -> Result<Measured> {
    let prompt = Tensor::new(&tokens[..PROMPT], &Device::Cpu)?.unsqueeze(0)?;
    let mut best = [f64::INFINITY; 2];
    let mut logits = vec![];
    for _ in 0..4 {
        let start = Instant::now();
        let mut last = forward(&prompt, 0)?;
        best[0] = best[0].min(start.elapsed().as_secs_f64());
        logits = last.flatten_all()?.to_vec1()?;
        let start = Instant::now();
        for position in PROMPT..PROMPT + WRITTEN {
            let token = last.flatten_all()?.argmax(D::Minus1)?.to_scalar::<u32>()?;
            last = forward(&Tensor::new(&[[token]], &Device::Cpu)?, position)?;
        }
        best[1] = best[1].min(start.elapsed().as_secs_f64());
    }
    Ok(Measured {
        read_per_second: PROMPT as f64 / best[0],
        written_per_second: WRITTEN as f64 / best[1],
        matrices,
        peak: peak_memory(),
        logits,
    })
}

/// The high-water mark of resident memory, where Linux tells it.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

fn dense(dir: &Path, config: &Config, tokens: &[u32]) -> Result<Measured> {
    let vb = archive::open_decoded(dir, DType::F32, &Device::Cpu)?;
    let model = Llama::load(vb, config)?;
    let mut cache = Cache::new(true, DType::F32, config, &Device::Cpu)?;
    let forward = |ids: &Tensor, position| {
        if position == 0 {
            cache = Cache::new(true, DType::F32, config, &Device::Cpu)?;
        }
        Ok(model.forward(ids, position, &mut cache)?)
    };
    measure(Box::new(forward), tokens, 0)
}

/// The names that a GGUF has for a layer's tensors.
const GGUF_NAMES: [(&str, &str); 9] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
];

/// A GGUF whose matrices have a type.
fn write_gguf(dir: &Path, config: &Config, dtype: GgmlDType, out: &Path) -> Result<()> {
    let weights = candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu)?;
    let mut tensors = HashMap::new();
    let mut put = |name: String, weight: &Tensor, dtype| -> Result<()> {
        tensors.insert(name, QTensor::quantize(&weight.to_dtype(DType::F32)?, dtype)?);
        Ok(())
    };
    let weight = |name: &str| weights.get(name).with_context(|| format!("no {name}"));
    put("token_embd.weight".into(), weight("model.embed_tokens.weight")?, dtype)?;
    put("output_norm.weight".into(), weight("model.norm.weight")?, GgmlDType::F32)?;
    // Where there is none, Candle's takes the table.
    if let Some(head) = weights.get("lm_head.weight") {
        put("output.weight".into(), head, dtype)?;
    }
    for layer in 0..config.num_hidden_layers {
        for (theirs, short) in GGUF_NAMES {
            let mut value = weight(&format!("model.layers.{layer}.{theirs}.weight"))?.clone();
            // A GGUF's LLaMA rotates neighbours, Hugging Face's the halves of a head.
            let heads = match short {
                "attn_q" => Some(config.num_attention_heads),
                "attn_k" => Some(config.num_key_value_heads),
                _ => None,
            };
            if let Some(heads) = heads {
                let (rows, cols) = value.dims2()?;
                let halves = value.reshape((heads, 2, rows / heads / 2, cols))?;
                value = halves.transpose(1, 2)?.contiguous()?.reshape((rows, cols))?;
            }
            let dtype = if short.ends_with("norm") { GgmlDType::F32 } else { dtype };
            put(format!("blk.{layer}.{short}.weight"), &value, dtype)?;
        }
    }
    let number = |n: usize| gguf_file::Value::U32(n as u32);
    let metadata = [
        ("general.architecture", gguf_file::Value::String("llama".into())),
        ("llama.attention.head_count", number(config.num_attention_heads)),
        ("llama.attention.head_count_kv", number(config.num_key_value_heads)),
        ("llama.block_count", number(config.num_hidden_layers)),
        ("llama.embedding_length", number(config.hidden_size)),
        ("llama.rope.dimension_count", number(config.hidden_size / config.num_attention_heads)),
        ("llama.rope.freq_base", gguf_file::Value::F32(config.rope_theta)),
        ("llama.attention.layer_norm_rms_epsilon", gguf_file::Value::F32(config.rms_norm_eps as f32)),
    ];
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    Ok(gguf_file::write(&mut std::fs::File::create(out)?, &metadata, &tensors)?)
}

fn quantized(gguf: &Path, tokens: &[u32]) -> Result<Measured> {
    let mut file = Cursor::new(std::fs::read(gguf)?);
    let content = gguf_file::Content::read(&mut file)?;
    let matrices = content.tensor_infos.values().filter(|info| info.ggml_dtype != GgmlDType::F32);
    let bytes = |info: &gguf_file::TensorInfo| {
        info.shape.elem_count() / info.ggml_dtype.block_size() * info.ggml_dtype.type_size()
    };
    let matrices = matrices.map(bytes).sum();
    let mut model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
    drop(file);
    measure(Box::new(|ids, position| Ok(model.forward(ids, position)?)), tokens, matrices)
}

fn compressed(dir: &Path, tokens: &[u32]) -> Result<Measured> {
    let file = archive::Archive::open(dir)?;
    let matrices = file.entries().filter(|entry| entry.compressed).map(|entry| entry.bytes).sum();
    drop(file);
    let model = Model::load(dir, archive::open(dir, DType::F32, &Device::Cpu)?)?;
    let mut cache = model.new_cache();
    let forward = |ids: &Tensor, position| {
        if position == 0 {
            cache = model.new_cache();
        }
        Ok(model.forward_last(ids, Some(&mut cache))?)
    };
    measure(Box::new(forward), tokens, matrices)
}

/// One row, in a process of its own; `path` is what the row's model is loaded from.
fn row(name: &str, dir: &Path, path: &Path) -> Result<Measured> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/models/evaluation.txt"))?;
    let tokenizer = Tokenizer::from_file(dir.join("tokenizer.json")).map_err(anyhow::Error::msg)?;
    let tokens = tokenizer.encode(text, false).map_err(anyhow::Error::msg)?.get_ids().to_vec();
    drop(tokenizer);
    if let Some((_, _, precision)) = OURS.iter().find(|(ours, _, _)| *ours == name) {
        set_default_layer_config(LayerConfig { precision: *precision, ..LayerConfig::default() });
        return compressed(path, &tokens);
    }
    if TYPES.iter().any(|(theirs, _)| *theirs == name) {
        quantized(path, &tokens)
    } else {
        dense(path, &config(dir)?, &tokens)
    }
}

fn config(dir: &Path) -> Result<Config> {
    let config: LlamaConfig = serde_json::from_slice(&std::fs::read(dir.join("config.json"))?)?;
    Ok(config.into_config(false))
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [child, name, dir, path] = &args[..] {
        ensure!(child == "--row", "three arguments too many");
        println!("{}", serde_json::to_string(&row(name, dir.as_ref(), path.as_ref())?)?);
        return Ok(());
    }
    let bits: f64 = args.first().map_or(Ok(4.02), |bits| bits.parse())?;
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/models/llama-books").to_owned();
    let dir = Path::new(args.get(1).unwrap_or(&default));
    let config = config(dir)?;
    let room = tempfile::tempdir()?;
    let mut rows = vec![("F32".to_owned(), dir.to_owned())];
    let has_room = |dtype: GgmlDType| {
        [config.hidden_size, config.intermediate_size]
            .iter()
            .all(|cols| cols.is_multiple_of(dtype.block_size()))
    };
    for (name, dtype) in TYPES.into_iter().filter(|(_, dtype)| has_room(*dtype)) {
        let path = room.path().join(name);
        write_gguf(dir, &config, dtype, &path)?;
        rows.push((name.into(), path));
    }
    for (name, term, _) in OURS {
        let path = room.path().join(format!("{term:?}"));
        if !path.exists() {
            let config = EncoderConfig { term, budget: Budget::Memory, ..Rate::BitsPerWeight(bits).into() };
            let options = CompressOptions { plain: true, ..CompressOptions::default() };
            let mut go_on = |_: archive::Progress| ControlFlow::Continue(());
            archive::compress(dir, &path, &Encoder::new(config)?, &options, &mut go_on)?;
        }
        rows.push((name.into(), path));
    }
    println!(
        "{:<16} {:>10} {:>12} {:>13} {:>10} {:>9}",
        "", "read / s", "written / s", "matrices", "peak", "logits"
    );
    let mut expected: Option<Vec<f32>> = None;
    for (name, path) in rows {
        let child =
            Command::new(std::env::current_exe()?).args(["--row", &name]).arg(dir).arg(path).output()?;
        ensure!(child.status.success(), "{name}: {}", String::from_utf8_lossy(&child.stderr));
        let measured: Measured = serde_json::from_slice(&child.stdout)?;
        let expected = expected.get_or_insert_with(|| measured.logits.clone());
        let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
        let difference = squares(&mut measured.logits.iter().zip(&*expected).map(|(a, b)| a - b));
        let error = (difference / squares(&mut expected.iter().copied())).sqrt();
        let megabytes = |bytes: f64| format!("{:.2} MB", bytes / 1e6);
        println!(
            "{name:<16} {:>10.0} {:>12.0} {:>13} {:>10} {error:>9.4}",
            measured.read_per_second,
            measured.written_per_second,
            if measured.matrices > 0 { megabytes(measured.matrices as f64) } else { "-".into() },
            measured.peak.map_or_else(|| "-".into(), |peak| megabytes(peak as f64)),
        );
    }
    Ok(())
}
