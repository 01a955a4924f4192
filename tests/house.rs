//! The layers of the crate, kept true by reading its sources.
//!
//! The picture in `src/lib.rs` says which rooms there are and in what order; a file imports only from rooms to the
//! right of its own. Besides, `codec`, `encode` and `cpu` never name Candle, `models` never names `ops`, and `unsafe`
//! stays in `cpu`, in `cuda` and at the memory map, and the library asks its own `clock` for the time.
//! CI runs this at the best CPU level alone: it reads sources.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Rooms that know nothing of Candle.
const WITHOUT_CANDLE: [&str; 3] = ["codec", "encode", "cpu"];
/// Rooms that may have `unsafe` code.
const WITH_UNSAFE: [&str; 2] = ["cpu", "cuda"];
/// Rooms that may ask the system for the time: elsewhere it would panic where there is no clock.
const WITH_CLOCK: [&str; 2] = ["bin", "clock"];
/// Who must not name whom, although it lies to the right.
const STRANGERS: [(&str, &str); 1] = [("models", "ops")];

/// A word or a punctuation mark of a source.
struct Token<'a> {
    line: usize,
    text: &'a str,
}

/// The tokens of a source without comments and literals.
fn tokens(source: &str) -> Vec<Token<'_>> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut tokens, mut rest, mut line) = (Vec::new(), source, 1);
    while let Some(first) = rest.chars().next() {
        let (len, kept) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), false)
        } else if rest.starts_with("/*") {
            (rest.find("*/").expect("a comment that ends") + 2, false)
        } else if let Some(len) = raw_string(rest) {
            (len, false)
        } else if first == '"' {
            (string(rest), false)
        } else if first == '\'' {
            (character(rest), false)
        } else if first.is_whitespace() {
            (first.len_utf8(), false)
        } else if is_word(first) {
            (rest.find(|c| !is_word(c)).unwrap_or(rest.len()), true)
        } else {
            (if rest.starts_with("::") { 2 } else { first.len_utf8() }, true)
        };
        if kept {
            tokens.push(Token { line, text: &rest[..len] });
        }
        line += rest[..len].matches('\n').count();
        rest = &rest[len..];
    }
    tokens
}

/// Bytes of the raw string that `text` begins with, if it does.
fn raw_string(text: &str) -> Option<usize> {
    let (hashes, inside) = text.strip_prefix('r')?.split_once('"')?;
    let end = format!("\"{hashes}");
    let ours = hashes.chars().all(|c| c == '#');
    ours.then(|| 2 + hashes.len() + inside.find(&end).expect("a raw string that ends") + end.len())
}

/// Bytes of the string that `text` begins with.
fn string(text: &str) -> usize {
    let mut at = 1;
    while !text[at..].starts_with('"') {
        let escaped = usize::from(text[at..].starts_with('\\'));
        at += escaped + text[at + escaped..].chars().next().expect("a string that ends").len_utf8();
    }
    at + 1
}

/// Bytes of the character that `text` begins with, or of a lifetime's mark.
fn character(text: &str) -> usize {
    let mut inside = text[1..].chars();
    match (inside.next(), inside.next()) {
        (Some('\\'), _) => 4 + text[3..].find('\'').expect("a character that ends"),
        (Some(c), Some('\'')) => 2 + c.len_utf8(),
        _ => 1,
    }
}

/// The first names of the path at `tokens[at]`, or of the paths where it is a group: `a` and `b` of `{a, b::{c, d}}`.
fn names<'a>(tokens: &[Token<'a>], at: usize) -> Vec<&'a str> {
    let (mut names, mut depth) = (Vec::new(), 0);
    for index in at..tokens.len() {
        match tokens[index].text {
            "{" => depth += 1,
            "}" => depth -= 1,
            name if depth == 0 => return vec![name],
            name if depth == 1 && ["{", ","].contains(&tokens[index - 1].text) => names.push(name),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

/// The rooms, their order, and what `lib.rs` lifts out of them.
struct House {
    /// How far to the right a room lies.
    ranks: HashMap<String, usize>,
    /// The room of each name at the crate's root.
    lifted: HashMap<String, String>,
}

impl House {
    fn new(lib: &str) -> Self {
        let picture = lib.lines().find_map(|line| line.strip_prefix("//!     bin, examples ->"));
        let mut ranks = HashMap::from([("bin".to_owned(), 0)]);
        for (index, layer) in picture.expect("the picture of the layers").split("->").enumerate() {
            ranks.extend(layer.split(',').map(|room| (room.trim().to_owned(), index + 1)));
        }
        let tokens = tokens(lib);
        let mut lifted = HashMap::new();
        for at in (0..tokens.len()).filter(|&at| tokens[at].text == "use") {
            let room = tokens[at + 1].text;
            lifted.extend(names(&tokens, at + 3).into_iter().map(|name| (name.to_owned(), room.to_owned())));
        }
        Self { ranks, lifted }
    }

    /// What is wrong with the file at `path`, counted from `src`.
    fn faults(&self, path: &str, source: &str) -> Vec<String> {
        let module = path.trim_end_matches(".rs").trim_end_matches("/mod");
        let (room, depth) = (module.split('/').next().unwrap_or_default(), module.split('/').count());
        if !self.ranks.contains_key(room) {
            return vec![format!("src/{path}: {room} is no room in the picture of src/lib.rs")];
        }
        let tokens = tokens(source);
        let is = |at: usize, text: &str| tokens.get(at).is_some_and(|token| token.text == text);
        // How deep in braces we are, at which of them inline modules opened, and the body of a macro, whose `super`
        // depends on where it is called.
        let (mut braces, mut inline, mut macro_body) = (0, Vec::new(), None);
        let mut faults = Vec::new();
        for (at, token) in tokens.iter().enumerate() {
            let mut root_path = None;
            let mut fault = |what: String| faults.push(format!("src/{path}:{}: {what}", token.line));
            match token.text {
                "{" => {
                    braces += 1;
                    if at >= 3 && is(at - 3, "macro_rules") {
                        macro_body.get_or_insert(braces);
                    }
                    if at >= 2 && is(at - 2, "mod") {
                        inline.push(braces);
                    }
                }
                "}" => {
                    macro_body = macro_body.filter(|level| *level != braces);
                    inline.retain(|level| *level != braces);
                    braces -= 1;
                }
                "unsafe" | "unsafe_code" if !WITH_UNSAFE.contains(&room) => {
                    // `#[allow(unsafe_code)] let map = unsafe { Mmap::map`
                    let reach = if token.text == "unsafe" { 2 } else { 8 };
                    if !(at..=at + reach).any(|at| is(at, "Mmap") && is(at + 2, "map")) {
                        fault(format!("{room} has {}", token.text));
                    }
                }
                "candle_rbe" if room == "bin" => root_path = Some(at + 2),
                "std" if !WITH_CLOCK.contains(&room) && is(at + 2, "time") => {
                    for name in names(&tokens, at + 4).into_iter().filter(|name| *name != "Duration") {
                        fault(format!("{room} names std::time::{name}"));
                    }
                }
                word if word.starts_with("candle") && WITHOUT_CANDLE.contains(&room) => {
                    fault(format!("{room} names {word}"));
                }
                "crate" if room != "bin" => root_path = Some(at + 2),
                "super" if room != "bin" && macro_body.is_none() && (at == 0 || !is(at - 1, "::")) => {
                    let supers = (0..).take_while(|n| is(at + 2 * n, "super")).count();
                    root_path = (supers >= depth + inline.len()).then_some(at + 2 * supers);
                }
                _ => {}
            }
            let Some(next) = root_path.filter(|&next| is(next - 1, "::")) else { continue };
            for name in names(&tokens, next) {
                let other = self.lifted.get(name).map_or(name, String::as_str);
                match self.ranks.get(other) {
                    None => fault(format!("{name} is neither a room nor lifted out of one by src/lib.rs")),
                    _ if other == room => {}
                    Some(rank) if *rank <= self.ranks[room] => {
                        fault(format!("{room} imports {name} of {other}, which is not to its right"));
                    }
                    _ if STRANGERS.contains(&(room, other)) => fault(format!("{room} names {other}")),
                    _ => {}
                }
            }
        }
        faults
    }
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries
        .flat_map(|path| match path.is_dir() {
            true => sources(&path),
            false => vec![path],
        })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect();
    files.sort();
    files
}

fn house() -> House {
    House::new(include_str!("../src/lib.rs"))
}

#[test]
fn every_file_imports_only_from_layers_to_its_right() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (house, files) = (house(), sources(&root));
    let mut faults = Vec::new();
    for file in files.iter().filter(|file| **file != root.join("lib.rs")) {
        let path = file.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
        faults.extend(house.faults(&path, &std::fs::read_to_string(file).unwrap()));
    }
    assert!(files.len() > 50, "only {} files found", files.len());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn what_is_wrong_is_found_with_its_line() {
    let house = house();
    for (path, source, expected) in [
        ("codec/x.rs", "use crate::cpu::decode;", "codec imports cpu of cpu, which is not to its right"),
        ("nn/x.rs", "use crate::{Error,\n models::Model};", "nn imports models of models"),
        ("archive/x.rs", "fn f() { crate::models::f() }", "archive imports models of models"),
        ("cpu/x.rs", "use crate::{Result, Encoder};", "cpu imports Encoder of encode"),
        ("error.rs", "use super::codec::Layout;", "error imports codec of codec"),
        ("codec/mod.rs", "mod m { use super::super::nn::Linear; }", "codec imports nn of nn"),
        ("encode/x.rs", "use candle_core::Tensor;", "encode names candle_core"),
        ("models/x.rs", "use crate::{nn::Linear, ops};", "models names ops"),
        ("models/x.rs", "fn f() { unsafe { g() } }", "models has unsafe"),
        ("archive/x.rs", "#![allow(unsafe_code)]", "archive has unsafe_code"),
        ("nn/x.rs", "use std::time::{Duration, Instant};", "nn names std::time::Instant"),
        ("nn/x.rs", "fn f() { std::time::Instant::now() }", "nn names std::time::Instant"),
        ("utils.rs", "", "utils is no room"),
        ("nn/x.rs", "use crate::helpers;", "helpers is neither a room nor"),
    ] {
        let faults = house.faults(path, &format!("\n{source}\n"));
        assert_eq!(faults.len(), 1, "{source}: {faults:?}");
        assert!(faults[0].contains(expected), "{faults:?}");
        assert!(path == "utils.rs" || faults[0].starts_with(&format!("src/{path}:2: ")), "{faults:?}");
    }
}

#[test]
fn what_is_right_is_left_alone() {
    let house = house();
    for (path, source) in [
        ("codec/x.rs", "// crate::cpu\n/// [`crate::nn`]\nconst A: &str = \"crate::nn\"; /* candle_core */"),
        ("codec/x.rs", "const A: &str = r#\"\"unsafe\"#; const B: char = '\\''; const C: char = '\"';"),
        ("codec/x.rs", "use super::layout::Layout; mod tests { use super::super::*; }"),
        ("cpu/x.rs", "fn f<'a>(x: &'a u8) { unsafe { g(x) } }"),
        ("archive/x.rs", "#[allow(unsafe_code)]\nlet map = unsafe { Mmap::map(&file) };"),
        ("cpu/x.rs", "macro_rules! m { () => { mod a { use super::super::super::B; } } }"),
        ("nn/x.rs", "use std::time::Duration; use crate::clock::Instant;"),
        ("bin/rbe/x.rs", "use std::time::Instant;"),
        ("bin/rbe/x.rs", "use crate::print; use super::bar; use candle_rbe::{Error, archive::{self, open}};"),
    ] {
        let faults = house.faults(path, source);
        assert!(faults.is_empty(), "{faults:?}");
    }
}
