//! Which model files of candle-transformers compile with one line more, and what stops the others.
//!
//! ```sh
//! cargo run --release -p swap --example table
//! ```
//!
//! A file that does not compile is left out, and its own module of candle-transformers stands in, until the rest compiles: what
//! the compiler says first hides what it would say next.

use serde_json::Value;
use std::collections::BTreeMap;
use std::process::{Command, ExitCode};

/// The model that a copied file belongs to: the first name below `out/models`.
fn model(path: &str) -> Option<&str> {
    let path = path.rsplit_once("/out/models/")?.1;
    path.split(['/', '.']).next()
}

/// What is wrong with which model while others are left out; `None` where an error is not a model's.
fn faults(without: &str) -> Option<BTreeMap<String, String>> {
    let output = Command::new(env!("CARGO"))
        .args(["check", "--release", "--offline", "-p", "swap", "--lib", "--message-format=json"])
        .env("SWAP_WITHOUT", without)
        .env("SWAP_ONE_LINE", "1")
        .output()
        .expect("cargo runs");
    let mut faults = BTreeMap::new();
    let lines = String::from_utf8_lossy(&output.stdout);
    for line in lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let message = &line["message"];
        if message["level"] != "error" {
            continue;
        }
        let spans = message["spans"].as_array().into_iter().flatten();
        if let Some(span) = spans.into_iter().find(|span| span["is_primary"] == true) {
            let said =
                format!("line {}: {}", span["line_start"], message["message"].as_str().unwrap_or_default());
            faults.entry(model(span["file_name"].as_str()?)?.to_owned()).or_insert(said);
        }
    }
    if faults.is_empty() && !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    Some(faults)
}

fn main() -> ExitCode {
    let mut found = BTreeMap::new();
    loop {
        let without = found.keys().cloned().collect::<Vec<String>>().join(",");
        match faults(&without) {
            None => return ExitCode::FAILURE,
            Some(new) if new.is_empty() => break,
            Some(new) => found.extend(new),
        }
    }
    let names: Vec<&str> = swap::SWAPPED.into_iter().filter(|name| !found.contains_key(*name)).collect();
    println!("compile: {}", names.join(" "));
    found.iter().for_each(|(name, fault)| println!("{name}: {fault}"));
    println!("{} of {} compile with one line more", names.len(), names.len() + found.len());
    ExitCode::SUCCESS
}
