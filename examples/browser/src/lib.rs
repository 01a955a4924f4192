//! A compressed language model that writes text, as a module for `wasm32-unknown-unknown`: `writer.mjs` calls it.
//!
//! The host writes files and prompts into [`buffer`]s, [`load`]s a model once, and lets it [`write`]; pieces of text and failures
//! come back by the functions that it imports. After a failure the module is not to be called again.

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use candle_rbe::archive;
use candle_rbe::models::{Config, Model, generate, greedy};
use tokenizers::Tokenizer;

#[link(wasm_import_module = "host")]
unsafe extern "C" {
    /// Takes a piece of the text.
    fn piece(text: *const u8, bytes: usize);
    /// Is told what went wrong.
    fn fail(text: *const u8, bytes: usize);
}

/// What the host holds between calls.
pub struct Writer {
    model: Model,
    tokenizer: Tokenizer,
}

/// Bytes for the host to fill; the function that is given them takes them back.
#[unsafe(no_mangle)]
pub extern "C" fn buffer(bytes: usize) -> *mut u8 {
    Box::leak(vec![0; bytes].into_boxed_slice()).as_mut_ptr()
}

/// A buffer that the host has filled.
///
/// # Safety
/// It is one of [`buffer`], of as many bytes, and not taken yet.
unsafe fn filled(start: *mut u8, bytes: usize) -> Vec<u8> {
    // SAFETY: as the caller says.
    unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(start, bytes)) }.into_vec()
}

/// The value, or the end of the module: the host is told why.
fn expect<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| {
        let text = format!("{error:#}");
        // SAFETY: the host reads the text before it returns.
        unsafe { fail(text.as_ptr(), text.len()) };
        std::process::abort()
    })
}

/// Makes a model of its `config.json`, `tokenizer.json` and compressed safetensors file.
///
/// # Safety
/// All three are buffers that the host has filled.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn load(
    config: *mut u8,
    config_bytes: usize,
    tokenizer: *mut u8,
    tokenizer_bytes: usize,
    model: *mut u8,
    model_bytes: usize,
) -> *mut Writer {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.to_string();
        // SAFETY: the host reads the text before it returns.
        unsafe { fail(text.as_ptr(), text.len()) }
    }));
    // SAFETY: as the caller says.
    let [config, tokenizer, model] = unsafe {
        [filled(config, config_bytes), filled(tokenizer, tokenizer_bytes), filled(model, model_bytes)]
    };
    let writer = || -> Result<Writer> {
        let config = Config::from_json(std::str::from_utf8(&config).context("config.json")?)?;
        let vb = archive::open_bytes("model.safetensors", model, DType::F32, &Device::Cpu)?;
        let tokenizer =
            Tokenizer::from_bytes(&tokenizer).map_err(anyhow::Error::msg).context("tokenizer.json")?;
        Ok(Writer { model: Model::new(config, vb)?, tokenizer })
    };
    Box::leak(Box::new(expect(writer())))
}

/// Continues a prompt by at most so many tokens, each the likeliest, and returns how many there were.
///
/// # Safety
/// `writer` is one of [`load`], the prompt a buffer that the host has filled.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(
    writer: *const Writer,
    prompt: *mut u8,
    prompt_bytes: usize,
    most_tokens: usize,
) -> usize {
    // SAFETY: as the caller says.
    let (writer, prompt) = unsafe { (&*writer, filled(prompt, prompt_bytes)) };
    expect(continued(writer, &prompt, most_tokens))
}

fn continued(Writer { model, tokenizer }: &Writer, prompt: &[u8], most_tokens: usize) -> Result<usize> {
    let prompt = std::str::from_utf8(prompt).context("the prompt")?;
    let encoding = tokenizer.encode(prompt, true).map_err(anyhow::Error::msg)?;
    anyhow::ensure!(!encoding.is_empty(), "the prompt has no tokens; begin with a word");
    let mut text = tokenizer.decode_stream(true);
    let mut tokens = 0;
    for token in generate(model, encoding.get_ids(), most_tokens, greedy) {
        tokens += 1;
        if let Some(text) = text.step(token?).map_err(anyhow::Error::msg)? {
            // SAFETY: the host reads the text before it returns.
            unsafe { piece(text.as_ptr(), text.len()) };
        }
    }
    Ok(tokens)
}
