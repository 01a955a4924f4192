//! What is published is what builds: `cargo package` takes every source along, and leaves out what is for a checkout alone.
//! CI runs this at the best CPU level alone: it reads sources.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The files in and below a folder of the checkout, by their paths from its root, but for those of a crate of its own.
fn files(folder: &Path) -> Vec<PathBuf> {
    if Path::new(ROOT).join(folder).join("Cargo.toml").exists() {
        return vec![];
    }
    let entries = std::fs::read_dir(Path::new(ROOT).join(folder)).unwrap();
    let paths = entries.map(|entry| folder.join(entry.unwrap().file_name()));
    paths
        .flat_map(|path| if Path::new(ROOT).join(&path).is_dir() { files(&path) } else { vec![path] })
        .collect()
}

#[test]
fn the_package_has_every_source_and_nothing_of_the_checkout_alone() {
    let output = Command::new(env!("CARGO"))
        .args(["package", "--list", "--allow-dirty", "--offline"])
        .current_dir(ROOT)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let packed = String::from_utf8(output.stdout).unwrap();
    let packed: BTreeSet<&Path> = packed.lines().map(Path::new).collect();

    let folders = ["src", "kernels", "examples", "benches"];
    let sources = folders.iter().flat_map(|folder| files(Path::new(folder)));
    let alone = ["Cargo.toml", "build.rs", "README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"];
    let missing: Vec<_> =
        sources.chain(alone.map(PathBuf::from)).filter(|path| !packed.contains(path.as_path())).collect();
    assert!(missing.is_empty(), "not in the package: {missing:?}");

    let checkout = [".ci", "examples/browser", "fuzz", "models", "proptest-regressions", "tests"];
    let more: Vec<_> =
        packed.iter().filter(|path| checkout.iter().any(|folder| path.starts_with(folder))).collect();
    assert!(more.is_empty(), "for a checkout alone, yet in the package: {more:?}");
}
