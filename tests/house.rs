//! The layers within a crate, kept true by reading its sources: a module imports only from those to its right in the picture
//! in `lib.rs`. (Between crates Cargo keeps them.)
//! CI runs this at the best CPU level alone: it reads sources.

use regex::Regex;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// How far to the right each module stands in the picture, a line of `a, b -> c -> d`.
fn ranks(lib: &str) -> HashMap<String, usize> {
    let arrows = Regex::new(r"^//! .*\w -> .*\w -> \w").unwrap();
    let picture = lib.lines().find(|line| arrows.is_match(line));
    let layers = picture.expect("a picture of the layers").trim_start_matches("//!").replace('`', "");
    let layers = layers.split(':').next_back().unwrap().trim_end_matches('.').split(" -> ").enumerate();
    layers
        .flat_map(|(rank, layer)| layer.split(", ").map(|m| (m.trim().to_owned(), rank)).collect::<Vec<_>>())
        .collect()
}

/// The modules at the crate's root that a source names, with their lines.
fn imports(source: &str) -> Vec<(usize, String)> {
    let code = Regex::new(r"(?m)//.*$").unwrap().replace_all(source, "");
    let path = Regex::new(r"\bcrate::(?:([a-z_]+)|\{([^;]*)\})").unwrap();
    // Inside a group only its own names, not those of groups within: `a` and `b` of `{a, b::{c}}`.
    let inner = Regex::new(r"(::)?\{[^{}]*\}|::[A-Za-z_]+").unwrap();
    let mut found = Vec::new();
    for import in path.captures_iter(&code) {
        let line = code[..import.get(0).unwrap().start()].matches('\n').count() + 1;
        let mut names = import.get(1).or(import.get(2)).unwrap().as_str().to_owned();
        while inner.is_match(&names) {
            names = inner.replace_all(&names, "").into_owned();
        }
        let modules = names.split(',').map(|name| name.trim().to_owned());
        found.extend(modules.filter(|name| name.starts_with(char::is_lowercase)).map(|name| (line, name)));
    }
    found
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

/// What the sources below `root` import from their left.
fn faults(root: &Path) -> Vec<String> {
    let ranks = ranks(&std::fs::read_to_string(root.join("lib.rs")).unwrap());
    let clock = Regex::new(r"std::time::(\{[^}]*)?Instant").unwrap();
    let mut faults = Vec::new();
    for file in sources(root) {
        let path = file.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
        let module = path.split(['/', '.']).next().unwrap().to_owned();
        if ["lib", "bin"].contains(&module.as_str()) {
            continue;
        }
        let Some(own) = ranks.get(&module) else {
            faults.push(format!("{path}: {module} is not in the picture of lib.rs"));
            continue;
        };
        let source = std::fs::read_to_string(&file).unwrap();
        if module != "clock" && clock.is_match(&source) {
            faults.push(format!(
                "{path}: asks the system for the time, which not every target has; crate::clock knows"
            ));
        }
        for (line, other) in imports(&source) {
            if other != module && ranks.get(&other).is_none_or(|rank| rank <= own) {
                faults.push(format!("{path}:{line}: imports {other}, which is not to its right"));
            }
        }
    }
    faults
}

/// The paths of an import, one of each name in its braces.
fn expanded(import: &str) -> Vec<String> {
    let Some((before, group)) = import.trim().strip_suffix('}').and_then(|import| import.split_once('{'))
    else {
        return vec![import.split(" as ").next().unwrap().trim().to_owned()];
    };
    let (mut names, mut depth) = (vec![String::new()], 0);
    for letter in group.chars() {
        depth += i32::from(letter == '{') - i32::from(letter == '}');
        match letter {
            ',' if depth == 0 => names.push(String::new()),
            _ => names.last_mut().unwrap().push(letter),
        }
    }
    let names = names.iter().filter(|name| !name.trim().is_empty());
    names.flat_map(|name| expanded(&format!("{before}{}", name.trim()))).collect()
}

/// The module that a source file is: `["codec", "term"]` of `codec/term/mod.rs`.
fn module(root: &Path, file: &Path) -> Vec<String> {
    let path = file.strip_prefix(root).unwrap().with_extension("");
    let mut module: Vec<String> = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    module.pop_if(|last| ["mod", "lib"].contains(&last.as_str()));
    module
}

/// The modules that each module imports from, other than to export it again.
fn graph(root: &Path) -> HashMap<Vec<String>, Vec<Vec<String>>> {
    let comments = Regex::new(r"//[^\n]*").unwrap();
    let own = Regex::new(r"(?:^|[;}\n])\s*use ([^;]+);").unwrap();
    let is_test = |file: &PathBuf| {
        file.ends_with("tests.rs") || file.components().any(|part| part.as_os_str() == "tests")
    };
    let files = sources(root).into_iter().filter(|file| !is_test(file)).collect::<Vec<_>>();
    let known: Vec<_> = files.iter().map(|file| module(root, file)).collect();
    let imports = |(file, own_path): (&PathBuf, &Vec<String>)| {
        let source = comments.replace_all(&std::fs::read_to_string(file).unwrap(), "").into_owned();
        let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let paths = own.captures_iter(source).flat_map(|import| expanded(&import[1])).collect::<Vec<_>>();
        let resolved = paths.iter().filter_map(|path| {
            let mut parts = path.split("::").peekable();
            let mut target = own_path.clone();
            match *parts.peek()? {
                "crate" => target = vec![],
                "self" => {}
                "super" => _ = target.pop(),
                child if known.contains(&[own_path.clone(), vec![child.to_owned()]].concat()) => {
                    target.push(child.to_owned())
                }
                _ => return None,
            }
            parts.next();
            while parts.next_if_eq(&"super").is_some() {
                target.pop();
            }
            target.extend(parts.map(str::to_owned));
            while !known.contains(&target) {
                target.pop()?;
            }
            (target != *own_path && !target.is_empty()).then_some(target)
        });
        (own_path.clone(), resolved.collect())
    };
    files.iter().zip(&known).map(imports).collect()
}

#[test]
fn imports_have_no_circles() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for source in ["src", "rbe-core/src"] {
        let mut graph = graph(&root.join(source));
        assert!(graph.values().map(Vec::len).sum::<usize>() > 100, "{source}: imports are not found");
        // What imports from nothing that is left is in no circle, nor is what nothing left imports from.
        loop {
            let before = graph.len();
            let left: Vec<_> = graph.keys().cloned().collect();
            graph.retain(|_, imports| imports.iter().any(|module| left.contains(module)));
            let imported: Vec<_> = graph.values().flatten().cloned().collect();
            graph.retain(|module, _| imported.contains(module));
            if graph.len() == before {
                break;
            }
        }
        let circle: Vec<_> = graph.keys().map(|module| module.join("::")).collect();
        assert!(circle.is_empty(), "{source}: these import from each other: {}", circle.join(", "));
    }
}

#[test]
fn modules_import_only_from_those_to_their_right() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for source in ["src", "rbe-core/src"] {
        let faults = faults(&root.join(source));
        assert!(faults.is_empty(), "{source}:\n{}", faults.join("\n"));
    }
}

#[test]
fn imports_are_found_however_they_are_written() {
    let source =
        "use crate::{Error, ops,\n nn::{Linear, norm::X}};\n// crate::cpu\nfn f() { crate::archive::open() }";
    let found: Vec<_> = imports(source).into_iter().map(|(line, name)| format!("{line} {name}")).collect();
    assert_eq!(found, ["1 ops", "1 nn", "4 archive"]);
    assert_eq!(ranks("//!  `bin -> models, archive -> error`.\n")["archive"], 1);
}
