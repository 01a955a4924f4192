//! Copies the model files of candle-transformers with the line that swaps them, and writes `models.rs`, which declares them.

use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The line.
const SWAP: &str = "#[allow(unused_imports)] use candle_rbe::candle_nn;\n";

/// Files that take more than the line, and what.
const EDITS: [(&str, &str, &str); 2] = [
    // Returns the table where it says `Tensor`.
    ("debertav2.rs", "return Ok(Some(rel_embeddings));", "return Ok(Some(rel_embeddings.into()));"),
    // Takes all from above into modules of its own, and in one of them imports from `candle_nn`.
    ("metavoice.rs", "    use super::*;\n", "    use super::*;\n    use candle_rbe::candle_nn;\n"),
];

fn main() -> Result<(), Box<dyn Error>> {
    let source = source()?;
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", source.display());
    println!("cargo::rerun-if-env-changed=SWAP_WITHOUT");
    println!("cargo::rerun-if-env-changed=SWAP_ONE_LINE");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let copies = out.join("models");
    if copies.exists() {
        fs::remove_dir_all(&copies)?;
    }
    copy(&source.join("models"), &copies)?;
    let fused = out.join("fused_moe.rs");
    fs::write(&fused, swapped(&source.join("fused_moe.rs"))?)?;
    let without = env::var("SWAP_WITHOUT").unwrap_or_default();
    fs::write(out.join("models.rs"), declarations(&source, &copies, &fused, &without)?)?;
    Ok(())
}

/// Where Cargo keeps the sources of candle-transformers.
fn source() -> Result<PathBuf, Box<dyn Error>> {
    let manifest = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("Cargo.toml");
    let output = Command::new(env::var("CARGO")?)
        .args(["metadata", "--offline", "--format-version", "1", "--filter-platform", &env::var("TARGET")?])
        .arg("--manifest-path")
        .arg(manifest)
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().ok_or("no packages")?;
    let transformers = packages.iter().find(|package| package["name"] == "candle-transformers");
    let manifest = transformers.and_then(|package| package["manifest_path"].as_str());
    Ok(Path::new(manifest.ok_or("no candle-transformers")?).with_file_name("src"))
}

fn copy(from: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let target = to.join(path.file_name().ok_or("a file without a name")?);
        if path.is_dir() {
            copy(&path, &target)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            fs::write(target, swapped(&path)?)?;
        }
    }
    Ok(())
}

/// A file with the line before its first item; one for weights that are quantised otherwise stays as it is.
fn swapped(path: &Path) -> Result<String, Box<dyn Error>> {
    // A macro that is included cannot be exported; the files have candle-transformers' own.
    let mut text = fs::read_to_string(path)?.replace("#[macro_export]\n", "");
    let name = path.file_name().ok_or("a file without a name")?.to_string_lossy();
    if name.starts_with("quantized") {
        return Ok(text);
    }
    if env::var_os("SWAP_ONE_LINE").is_none() {
        for (_, from, to) in EDITS.iter().filter(|(file, ..)| *file == name) {
            text = text.replace(from, to);
        }
    }
    if text.contains("\npub use candle_nn;") {
        return Ok(text.replacen("\npub use candle_nn;", "\npub use candle_rbe::candle_nn;", 1));
    }
    let ends = text.split_inclusive('\n').scan(0, |end, line| {
        *end += line.len();
        Some((*end, line))
    });
    let at = ends.filter(|(_, line)| line.starts_with("//!") || line.starts_with("#![")).last();
    let (head, rest) = text.split_at(at.map_or(0, |(end, _)| end));
    Ok(format!("{head}{SWAP}{rest}"))
}

/// The modules that candle-transformers declares, from the copies; those for quantised weights are its own.
fn declarations(source: &Path, copies: &Path, fused: &Path, without: &str) -> Result<String, Box<dyn Error>> {
    let mut text = format!("#[path = {fused:?}]\npub mod fused_moe;\npub mod models {{\n");
    let mut names = Vec::new();
    for line in fs::read_to_string(source.join("models/mod.rs"))?.lines() {
        let Some(name) = line.strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(';')) else {
            continue;
        };
        if name == "with_tracing" {
            // The line that swaps these layers.
            writeln!(text, "pub mod with_tracing {{ pub use candle_rbe::with_tracing::*; pub use candle_transformers::models::with_tracing::QMatMul; }}")?;
        } else if name.starts_with("quantized") || without.split(',').any(|other| other == name) {
            writeln!(text, "pub use candle_transformers::models::{name};")?;
        } else {
            let file = copies.join(format!("{name}.rs"));
            let file = if file.exists() { file } else { copies.join(name).join("mod.rs") };
            writeln!(text, "#[path = {file:?}]\npub mod {name};")?;
            names.push(name.to_owned());
        }
    }
    writeln!(
        text,
        "}}\n/// The models that were swapped.\npub const SWAPPED: [&str; {}] = {names:?};",
        names.len()
    )?;
    Ok(text)
}
