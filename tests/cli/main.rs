//! The `rbe` program as its users meet it: arguments in, standard output, standard error and exit status out.
//! CI runs this at the best CPU level alone: the program is the same at all.
#![cfg(feature = "cli")]

mod files;
#[cfg(feature = "hub")]
mod hub;
mod language;
mod sources;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use tempfile::TempDir;

const MODEL: &str = "models/llama-books";
const TEXT: &str = "models/evaluation.txt";
const PROJECTIONS: &str = r"_proj\.weight$";

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rbe"));
    command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// Standard output of a run that succeeds; standard error, which is no terminal here, stays free of bars.
fn succeed(arguments: &[&str]) -> String {
    let output = run(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {errors}");
    assert!(!errors.contains("%"), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// The one JSON object that is all of standard output.
fn json(arguments: &[&str]) -> Value {
    let text = succeed(arguments);
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{arguments:?}: {e} in {text}"));
    assert!(value.is_object());
    value
}

/// Standard error of a run that fails, with nothing on standard output.
fn fail(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    assert!(output.stdout.is_empty(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.matches("error:").count(), 1, "{text}");
    text
}

fn string(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A compressed model for all tests, made once: the projections at five bits.
fn compressed() -> &'static Path {
    static ROOM: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = ROOM.get_or_init(|| {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("rbe");
        succeed(&["compress", MODEL, string(&path), "--bits", "5", "--include", PROJECTIONS]);
        (room, path)
    });
    path
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} in {value}"))
}

#[test]
fn the_long_version_names_the_levels_of_this_processor() {
    let levels: Vec<_> = candle_rbe::cpu::levels().iter().map(|level| level.name()).collect();
    let version = env!("CARGO_PKG_VERSION");
    let expected = format!("rbe {version}\nCPU levels: {}\n", levels.join(" "));
    assert_eq!(succeed(&["--version"]), expected);
    assert_eq!(succeed(&["-V"]), format!("rbe {version}\n"));
}

#[test]
fn help_names_every_command() {
    let help = succeed(&["--help"]);
    for name in ["compress", "decode", "inspect", "verify", "eval", "generate", "demo"] {
        assert!(help.contains(name), "{name}");
        assert!(succeed(&[name, "--help"]).len() > 200, "{name}");
    }
}
